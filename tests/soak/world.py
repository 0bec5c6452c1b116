"""The world of a soak: a portal, its servers and services, all in directories that are removed afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from demo.object_store import ADMINISTRATOR, EmbeddedObjectStore
from demo.portal import create_portal_schema, fill
from demo.portal_files import write_audit_log, write_uploads
from demo.postgres import EmbeddedPostgres
from demo.redis import EmbeddedRedis
from demo.service import own_environment
from portal.ops.repository.repository import Repository
from tests.support.wal_servers import SETTINGS, WalPortal
from tests.support.workers import MARK

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVICES: Final = ("worker", "beat", "beat.watcher", "beat.wal")
DATABASE: Final = "portal"
PLAYGROUND: Final = "playground"
"""The database and the directory that operators restore to."""

ROOT: Final = Path(__file__).parents[2]
_DISK: Final = "1500m"
_BUCKET: Final = "copies"
_END_SECONDS: Final = 90.0
_RULES: Final = {
    "BACKUP_SCHEDULE_FULL": "*/2 * * * *",
    "BACKUP_SCHEDULE_DATABASE": "* * * * *",
    "BACKUP_SCHEDULE_VERIFY": "* * * * *",
    "BACKUP_SCHEDULE_PRUNE": "* * * * *",
    "BACKUP_SCHEDULE_DRILL": "*/3 * * * *",
    "BACKUP_SCHEDULE_BASE": "*/2 * * * *",
    "BACKUP_SCHEDULE_OFFSITE": "* * * * *",
    "BACKUP_RETENTION_DAYS": "0",
    "BACKUP_RETENTION_COUNT": "6",
    "BACKUP_WAL": "on",
}


@dataclass(kw_only=True)
class World:
    """Everything that a soak acts upon.

    Arguments:
        home: the directory of uploads, audit log, repository and logs.
        environ: the settings of services and commands.
        has_own_disk: whether the repository has a file system of its own, which may be filled.
        mark: the value of a variable that all processes of ours inherit.
    """

    home: Path
    server: EmbeddedPostgres
    broker: EmbeddedRedis
    store: EmbeddedObjectStore
    environ: dict[str, str]
    has_own_disk: bool
    mark: str
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def repository(self) -> Repository:
        """The repository."""
        return Repository(self.home / "repository")

    @property
    def uploads(self) -> Path:
        """The uploads."""
        return self.home / "uploads"

    @property
    def portal(self) -> WalPortal:
        """Server and repository, as the tests of recoveries see them."""
        return WalPortal(postgres=self.server, repository=self.repository, bin_dir=self.server.reachable_bin_dir)

    def revive(self) -> None:
        """Start each service that does not run, as systemd does."""
        for module in SERVICES:
            process = self._running.get(module)
            if process is None or process.poll() is not None:
                with (self.home / f"{module}.log").open("ab") as log:
                    self._running[module] = subprocess.Popen(
                        [sys.executable, "-I", "-m", module],
                        cwd=ROOT,
                        env=self.environ,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )

    def service(self, module: str) -> subprocess.Popen[bytes]:
        """The process of a service."""
        return self._running[module]

    def end_services(self) -> list[str]:
        """Ask the services to end; return the names of those that did not."""
        for process in self._running.values():
            process.send_signal(signal.SIGTERM)
        late = []
        for module, process in self._running.items():
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                late.append(module)
        return late

    def processes(self) -> list[int]:
        """Every process of services and commands, with their children."""
        mark = f"{MARK}={self.mark}".encode()
        found = []
        for directory in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if mark in (directory / "environ").read_bytes():
                    found.append(int(directory.name))
        return found

    def run(self, tool: str, *arguments: str, local: bool = False, **options: Any) -> subprocess.Popen[str]:
        """Start `tools/backup.sh` or `tools/restore.sh`, without the shell around it."""
        environ = self.environ | ({"CELERY_BROKER_URL": ""} if local else {})
        return subprocess.Popen(
            [sys.executable, "-I", "-m", f"tools.{tool}", *arguments],
            cwd=ROOT,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )


@contextmanager
def world() -> Iterator[World]:
    """Make a world, without services; kill whatever is left of them afterwards."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kekkai-soak-")))
        home.chmod(0o755)  # the user of a scratch server passes through
        has_own_disk = stack.enter_context(_small_disk(home / "repository"))
        server = EmbeddedPostgres(unsafe_speed=True, settings=SETTINGS | {"summarize_wal": "on"}, segment_mb=1)
        stack.enter_context(server)
        broker = stack.enter_context(EmbeddedRedis(is_persistent=True))
        store = stack.enter_context(EmbeddedObjectStore())
        store.create_bucket(_BUCKET)
        _make_portal(server, home)
        mark = uuid4().hex
        environ = _environment(home, server, broker, store) | {MARK: mark}
        made = World(
            home=home,
            server=server,
            broker=broker,
            store=store,
            environ=environ,
            has_own_disk=has_own_disk,
            mark=mark,
        )
        stack.callback(_kill_all, made)
        yield made


def _kill_all(made: World) -> None:
    while pids := [pid for pid in made.processes() if not _is_zombie(pid)]:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


@contextmanager
def _small_disk(place: Path) -> Iterator[bool]:
    """A file system of its own at a place, where that can be had; whether it was."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK},mode=755", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def _make_portal(server: EmbeddedPostgres, home: Path) -> None:
    server.create_database(DATABASE)
    with server.connect(DATABASE) as connection:
        create_portal_schema(connection)
        fill(connection, findings=500)
    with server.connect() as connection:
        connection.execute("CREATE TABLE stamped (number int)")
    write_uploads(home / "uploads", tenants=3, files_per_tenant=20, results=2)
    write_audit_log(home / "audit" / "audit.jsonl", entries=50)


def _environment(
    home: Path, server: EmbeddedPostgres, broker: EmbeddedRedis, store: EmbeddedObjectStore
) -> dict[str, str]:
    address = server.superuser(DATABASE)
    environ = own_environment() | {
        "DD_DATABASE_HOST": address.host,
        "DD_DATABASE_PORT": str(address.port),
        "DD_DATABASE_NAME": address.database,
        "DD_DATABASE_USER": address.user,
        "DD_DATABASE_PASSWORD": address.password,
        "BACKUP_LOCAL_PATH": str(home / "repository"),
        "BACKUP_ALLOWED_PATHS": str(home / PLAYGROUND),
        "BACKUP_PG_BIN_DIR": str(server.reachable_bin_dir),
        "BACKUP_LOG_FORMAT": "json",
        "BACKUP_JOBS": "2",
        "PORTAL_UPLOAD_DIR": str(home / "uploads"),
        "PORTAL_AUDIT_DIR": str(home / "audit" / "audit.jsonl"),
        "XDG_STATE_HOME": str(home / "state"),
        "CELERY_BROKER_URL": broker.url,
        "BACKUP_OFFSITE_URLS": store.url(_BUCKET, "soak"),
        **ADMINISTRATOR.environ(),
        **_RULES,
    }
    key = home / "identity.txt"
    command = [sys.executable, "-I", "-m", "tools.backup", "keygen", "--output", str(key)]
    made = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=True)
    recipient: str = json.loads(made.stdout)["recipient"]
    return environ | {"BACKUP_ENCRYPTION_RECIPIENTS": recipient, "BACKUP_ENCRYPTION_IDENTITY_FILE": str(key)}
