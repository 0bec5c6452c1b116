"""The compose file as Compose reads it, and its services as processes of this machine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import yaml

from tests.support.waiting import LONG_SECONDS

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[2]

_VARIABLE = re.compile(r"\$\$|\$\{(\w+)(?::?-([^}]*))?\}")


def read_compose(name: str = "compose.yaml", variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A compose file, with the variables put in and anchors merged."""
    text = (ROOT / name).read_text()

    def value(found: re.Match[str]) -> str:
        return "$" if found[0] == "$$" else (variables or {}).get(found[1]) or found[2] or ""

    def put_in(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: put_in(one) for key, one in node.items()}
        if isinstance(node, list):
            return [put_in(one) for one in node]
        return _VARIABLE.sub(value, node) if isinstance(node, str) else node

    return dict(put_in(yaml.safe_load(text)))


def variables_of(name: str) -> set[str]:
    """The variables that a compose file asks for."""
    return {found[1] for found in _VARIABLE.finditer((ROOT / name).read_text()) if found[1]}


def image_environment() -> dict[str, str]:
    """What the image sets, but for PATH, which is this machine's."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.split()[1:] for line in text.splitlines() if line.startswith("ENV ")]
    return {
        name: value for line in lines for name, _, value in (pair.partition("=") for pair in line) if name != "PATH"
    }


def seconds_of(duration: str) -> int:
    """A duration of the kind that the compose file has."""
    return int(duration.removesuffix("s"))


class Service:
    """A service as a process: its command, environment and health check, with paths and addresses of this machine.

    Arguments:
        name: of the service.
        places: what stands here for what there.
        more: variables that the operator's .env would have, and where things are on this machine.
    """

    def __init__(self, name: str, places: Mapping[str, str], more: Mapping[str, str], log: Path) -> None:
        self._declared = read_compose(variables=more)["services"][name]
        self._places = places
        own = {key: self._here(str(value)) for key, value in self._declared.get("environment", {}).items()}
        self.environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **image_environment(), **more, **own}
        self._log = log
        self._popen: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self._log.open("ab") as log:
            self._popen = subprocess.Popen(
                [self._here(word) for word in self._declared["command"]],
                env=self.environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """The process."""
        assert self._popen is not None
        return self._popen.pid

    @property
    def text(self) -> str:
        """What it has said."""
        return self._log.read_text()

    @property
    def grace(self) -> int:
        """Seconds that it has to end."""
        return seconds_of(self._declared["stop_grace_period"])

    def is_healthy(self) -> bool:
        """What its health check says."""
        kind, *words = self._declared["healthcheck"]["test"]
        words = ["sh", "-c", *words] if kind == "CMD-SHELL" else words
        try:
            checked = subprocess.run(
                [self._here(word) for word in words],
                env=self.environment,
                cwd=ROOT,
                capture_output=True,
                timeout=seconds_of(self._declared["healthcheck"]["timeout"]),
                check=False,
            )
        except subprocess.TimeoutExpired:  # which an engine takes for a failure, too
            return False
        return checked.returncode == 0

    def stop(self) -> int:
        """Ask it to end, as `docker compose stop` does; its exit code. A busy machine has more time than its grace."""
        assert self._popen is not None
        self._popen.send_signal(signal.SIGTERM)
        return self._popen.wait(max(self.grace, LONG_SECONDS))

    def kill(self) -> None:
        """End it and all that it started."""
        assert self._popen is not None
        try:
            os.killpg(self._popen.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        finally:
            self._popen.wait()

    def _here(self, text: str) -> str:
        """The text with paths and addresses of this machine."""
        if text == "python":
            return sys.executable
        there = "|".join(map(re.escape, self._places))
        return re.sub(rf"(?:{there})\b", lambda found: self._places[found[0]], text)


def make_secrets(
    directory: Path, *options: str, typed: str = "secret\n", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the script that makes secrets."""
    return subprocess.run(
        [ROOT / "tools" / "secrets.sh", *options, directory],
        env={"PATH": os.environ["PATH"], **environment},
        input=typed,
        capture_output=True,
        text=True,
        check=False,
    )
