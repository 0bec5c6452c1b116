"""A container engine, and a project of Docker Compose on it."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

ROOT: Final = Path(__file__).parents[3]
IMAGE: Final = "kekkai-backup:smoke"
OWNER: Final = "10001:10001"
PASSWORD: Final = "p@ss w0rd$x"
SECONDS: Final = 900
_NOT_COPIED: Final = (".git", ".venv", ".env", "secrets", "secrets-*", "__pycache__", ".*_cache")


def copy_checkout(directory: Path) -> None:
    """Copy this project as a fresh checkout has it, with changes that are not committed."""
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(ROOT, directory, symlinks=True, ignore=shutil.ignore_patterns(*_NOT_COPIED))


def eventually(holds: Callable[[], object], seconds: float = 90) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"it did not happen within {seconds:g} s"
        time.sleep(0.5)


@dataclass(frozen=True, kw_only=True)
class Engine:
    """The container engine that `docker` reaches.

    Arguments:
        directory: the checkout.
        images: variables of .env.example that say where images and packages come from.
        majors: PostgreSQL's versions in the image.
    """

    directory: Path
    images: Mapping[str, str]
    majors: tuple[str, ...]

    def docker(self, *arguments: str, typed: str = "", check: bool = True) -> str:
        """Run a docker command; its standard output."""
        done = subprocess.run(
            ["docker", *arguments],
            cwd=self.directory,
            input=typed,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
        assert not check or done.returncode == 0, (
            f"docker {' '.join(arguments)}\n{done.stdout[-4000:]}{done.stderr[-8000:]}"
        )
        return done.stdout.strip()

    def run(self, *options: str, script: str, image: str = IMAGE) -> str:
        """Run a shell script in a container of its own."""
        return self.docker("run", "--rm", *options, image, "sh", "-ec", script)

    def fetch(self, url: str, password: str = "") -> tuple[int, str]:
        """Status and text of a page, as the engine's machine sees it."""
        script = f"""
import base64, json, urllib.error, urllib.request
request = urllib.request.Request({url!r})
if {password!r}:
    request.add_header("Authorization", "Basic " + base64.b64encode({password!r}.encode()).decode())
try:
    with urllib.request.urlopen(request, timeout=10) as answer:
        print(json.dumps([answer.status, answer.read().decode()]))
except urllib.error.HTTPError as error:
    print(json.dumps([error.code, ""]))
"""
        status, text = json.loads(self.docker("run", "--rm", "--network", "host", IMAGE, "python", "-c", script))
        return status, text


class Stack:
    """A project of Docker Compose, with an env file and secrets of its own."""

    def __init__(self, engine: Engine, *, project: str, env_file: str, flower_port: int) -> None:
        self.engine = engine
        self.project = project
        self.env_file = env_file
        self.flower_port = flower_port

    @property
    def secrets(self) -> Path:
        """The directory of the secret files."""
        return self.engine.directory / f"secrets-{self.project}"

    def write_env(self, **more: str) -> None:
        """Write the env file, as somebody does who has copied the example."""
        own = {
            "COMPOSE_PROJECT_NAME": self.project,
            "KEKKAI_ENV_FILE": self.env_file,
            "KEKKAI_SECRETS": self.secrets.name,
            "KEKKAI_VERSION": "smoke",
            "KEKKAI_FLOWER_LISTEN": f"127.0.0.1:{self.flower_port}",
            **self.engine.images,
            **more,
        }
        text = (self.engine.directory / ".env.example").read_text()
        lines = "".join(f"{name}={value}\n" for name, value in own.items())
        (self.engine.directory / self.env_file).write_text(text + lines)

    def make_secrets(self) -> None:
        """Run the script that makes them."""
        subprocess.run(
            [self.engine.directory / "tools" / "secrets.sh", "--env-file", self.engine.directory / self.env_file],
            input=PASSWORD,
            text=True,
            check=True,
            capture_output=True,
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        """Bring everything up, built from here; take it down with its data in the end."""
        self.make_secrets()
        try:
            self.up("--build")
            yield
        finally:
            self.compose("down", "--volumes", "--remove-orphans", check=False)

    def compose(self, *arguments: str, typed: str = "", check: bool = True) -> str:
        """Run a command of Docker Compose."""
        return self.engine.docker("compose", "--env-file", self.env_file, *arguments, typed=typed, check=check)

    def up(self, *options: str) -> None:
        """Start everything, and wait until it is healthy."""
        self.compose("up", "--detach", "--wait", *options)

    def services(self) -> dict[str, dict[str, Any]]:
        """What Compose says of every running service."""
        lines = self.compose("ps", "--format", "json").splitlines()
        return {found["Service"]: found for found in map(json.loads, lines)}

    def containers(self) -> dict[str, str]:
        """The container of every running service."""
        return {name: found["ID"] for name, found in self.services().items()}

    def inside(self, service: str, *command: str, check: bool = True) -> str:
        """Run a command in the container of a service."""
        return self.compose("exec", "-T", service, *command, check=check)

    def backup(self, *arguments: str, service: str = "worker") -> dict[str, Any]:
        """Run a backup command; its result."""
        found: dict[str, Any] = json.loads(self.inside(service, "scripts/backup.sh", *arguments))
        return found

    def archives(self, kind: str) -> list[str]:
        """The archives of a type, newest first."""
        return [str(one["backup_id"]) for one in self.backup("list")["backups"] if one["type"] == kind]

    def sql(self, statement: str) -> str:
        """What the database answers."""
        return self.inside("postgres", "psql", "-qAtU", "defectdojo", "-d", "defectdojo", "-c", statement)

    def uploads(self, script: str) -> str:
        """Run a script in the uploads, as their owner."""
        return self.engine.run(
            "--user", OWNER, "--volume", f"{self.project}_uploads:/u", script=f"umask 077; cd /u; {script}"
        )

    def log(self, service: str) -> list[dict[str, Any]]:
        """What a service has logged; every line has to be JSON."""
        text = self.compose("logs", "--no-log-prefix", service)
        return [json.loads(line.replace("\x1b[2K", "")) for line in text.splitlines()]
