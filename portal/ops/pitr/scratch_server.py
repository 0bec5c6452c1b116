"""A temporary PostgreSQL server that replays WAL onto a base backup, answers queries, and disappears.

It runs as an unprivileged user with a configuration of our own: a private socket and no network, none of the live
server's libraries, no archiving, no subscriptions, no durability. It ends with the thread that started it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from portal.ops.errors import ClientToolError, RestoreError
from portal.ops.pitr.scratch import reachable
from portal.ops.postgres.client_tools import find_same_version
from portal.ops.postgres.connection import Connection, connect
from portal.ops.runtime.logs import engine_log
from portal.ops.runtime.process import launch_command
from portal.ops.settings.database_url import DatabaseTarget
from portal.ops.units import duration

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from pathlib import Path

    from portal.ops.pitr.scratch import Owner
    from portal.ops.pitr.wal_feed import WalFeed
    from portal.ops.runtime.process import ProcessRunner

log = engine_log("portal.ops.pitr.scratch_server")

_PORT: Final = 5432
_POLL_SECONDS: Final = 0.02
_STOP_SECONDS: Final = 30.0
_STALLED_SECONDS: Final = 600.0
"""A server without progress for this time hangs: replaying a segment takes seconds."""

_IDLE_REQUESTS: Final = 3
"""A server that has asked for WAL this often without progress has replayed all there is."""

_MOMENT: Final = ("recovery_target_time", "recovery_target_action")
_PROGRESS: Final = "SELECT pg_is_in_recovery(), pg_last_wal_replay_lsn()::text, pg_last_xact_replay_timestamp()"
_TAIL_BYTES: Final = 16 << 10
_EVENT_TRIGGERS_SINCE: Final = 17

_SETTINGS: Final = {
    "listen_addresses": "",
    "port": str(_PORT),
    "unix_socket_permissions": "0700",
    "ssl": "off",
    "shared_preload_libraries": "",
    "session_preload_libraries": "",
    "local_preload_libraries": "",
    "archive_mode": "off",
    "archive_command": "",
    "archive_cleanup_command": "",
    "recovery_end_command": "",
    "primary_conninfo": "",
    "primary_slot_name": "",
    "max_logical_replication_workers": "0",
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_min_messages": "log",
    "lc_messages": "C",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "hot_standby": "on",
    "wal_level": "replica",
    "wal_retrieve_retry_interval": "50ms",
    "autovacuum": "off",
    "synchronous_commit": "off",
    "synchronous_standby_names": "",
    "full_page_writes": "off",
    "checkpoint_timeout": "30min",
    "max_wal_size": "2GB",
    "shared_buffers": "128MB",
    "maintenance_work_mem": "64MB",
    "huge_pages": "off",
    "jit": "off",
    "max_connections": "100",
    "max_worker_processes": "8",
}


@dataclass(frozen=True, kw_only=True)
class Target:
    """The end of a replay.

    Arguments:
        moment: the last moment whose transactions count; None for the end of the WAL.
        timeline: the timeline of that moment.
    """

    moment: datetime | None
    timeline: int


@dataclass(kw_only=True)
class Progress:
    """Checks that a server makes progress."""

    facts: tuple[object, ...] = ()
    since: float = field(default_factory=time.monotonic)

    def note(self, facts: tuple[object, ...], doing: str) -> None:
        """Check whether anything has changed.

        Arguments:
            facts: values that change as long as there is progress.
            doing: what the server does, for the error.

        Raises:
            RestoreError: nothing has changed for too long.
        """
        now = time.monotonic()
        if facts != self.facts:
            self.facts, self.since = facts, now
        elif now - self.since > _STALLED_SECONDS:
            raise RestoreError(
                f"the scratch server hangs: it {doing}, and has done nothing more for {duration(_STALLED_SECONDS)}",
                hint="Look at the disk of its directory (TMPDIR) and at the system's log, then start it again.",
            )


@dataclass(kw_only=True)
class ScratchServer:
    """A server on an unpacked data directory.

    Arguments:
        directory: the scratch directory, for sockets, configuration and log.
        data: the data directory.
        owner: the user to run as, if not the user of this process.
        major: the server's major version.
        limits: the least values of settings that replay depends on.
        last_transaction: the commit time of the last replayed transaction, once known.
        is_durable: whether its writes must survive a crash of the machine.
    """

    directory: Path
    data: Path
    owner: Owner | None
    major: int
    superuser: str
    limits: Mapping[str, int]
    runner: ProcessRunner
    bin_dir: Path | None = None
    is_durable: bool = False
    last_transaction: datetime | None = field(default=None, init=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def recover(self, feed: WalFeed, target: Target) -> None:
        """Replay WAL up to the target, and open the database for writing.

        Raises:
            RestoreError: the server ended, or WAL is damaged.
        """
        (self.data / "standby.signal").touch(mode=0o600)
        self._give(self.data / "standby.signal")
        settings = {"restore_command": feed.command, "recovery_target_timeline": str(target.timeline)}
        if target.moment:
            settings |= {
                "recovery_target_time": target.moment.isoformat(sep=" ", timespec="microseconds"),
                "recovery_target_action": "promote",
            }
        self.start(settings)
        if not self._reaches_target(feed, has_target=target.moment is not None):
            # All WAL is older than the moment, and the server would refuse such a target: replay all of it instead.
            self.stop()
            self.start({name: value for name, value in settings.items() if name not in _MOMENT})
            self._reaches_target(feed, has_target=False)

    def start(self, settings: Mapping[str, str] = {}) -> None:
        """Start the server; it may still be replaying WAL when this returns."""
        program = self.find_program()
        socket = self.directory / "socket"
        socket.mkdir(mode=0o700, exist_ok=True)
        self._give(socket)
        configuration, rules = self.directory / "empty.conf", self.directory / "hba.conf"
        configuration.write_text("")
        rules.write_text("local all all trust\n")
        for path in (configuration, rules):
            self._give(path)
        given = {
            **_SETTINGS,
            **({"event_triggers": "off"} if self.major >= _EVENT_TRIGGERS_SINCE else {}),
            **{name: str(max(value, int(_SETTINGS.get(name, 0)))) for name, value in self.limits.items()},
            "fsync": "on" if self.is_durable else "off",
            "full_page_writes": "on" if self.is_durable else "off",
            "unix_socket_directories": str(socket),
            "config_file": str(configuration),
            "hba_file": str(rules),
            "ident_file": str(configuration),
            **settings,
        }
        command: list[str | Path] = [
            program,
            "-D",
            str(self.data),
            *(f"--{name}={value}" for name, value in given.items()),
        ]
        owner = (self.owner.uid, self.owner.gid) if self.owner else None
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                launch_command(command, owner=owner, death_signal=signal.SIGQUIT),
                env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC", "HOME": str(self.directory)},
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def find_program(self) -> Path:
        """The server program of the same major version, executable by the server's user.

        Raises:
            ClientToolError: there is none.
        """
        return find_server_program(self.major, self.owner, runner=self.runner, bin_dir=self.bin_dir)

    def target(self, database: str) -> DatabaseTarget:
        """The connection to one of its databases, without settings that run code on connecting."""
        options = "-c session_preload_libraries= -c local_preload_libraries="
        if self.major >= _EVENT_TRIGGERS_SINCE:
            options += " -c event_triggers=off"
        return DatabaseTarget(
            host=str(self.directory / "socket"),
            port=_PORT,
            name=database,
            user=self.superuser,
            options={"options": options, "application_name": "kekkai-scratch"},
        )

    def stop(self, *, fast: bool = False) -> None:
        """Stop the server; does nothing if it is not running.

        Arguments:
            fast: with a checkpoint, so that the data directory is complete; otherwise immediately.

        Raises:
            RestoreError: it did not stop with a checkpoint.
        """
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGINT if fast else signal.SIGQUIT)
        try:
            code = process.wait(_STALLED_SECONDS if fast else _STOP_SECONDS)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        if fast and code != 0:
            raise self._failed()

    # -- waiting ----------------------------------------------------------------------------------------------------

    def _reaches_target(self, feed: WalFeed, *, has_target: bool) -> bool:
        """Wait for the target or the end of the WAL; return whether the database is open for writing.

        Arguments:
            has_target: return if the WAL ends before the target; otherwise the end of the WAL is the target.
        """
        with ExitStack() as opened:
            progress = Progress()
            while not self._accepts_connections(feed):
                progress.note((feed.given,), "starts, or replays up to where the base backup is consistent")
                time.sleep(_POLL_SECONDS)
            connection = opened.enter_context(connect(self.target("postgres")))
            position, idle, is_asked = "", 0, False
            while True:
                self._accepts_connections(feed)
                in_recovery, replayed, self.last_transaction = _progress(connection)
                if not in_recovery:
                    return True
                progress.note((replayed, feed.given, is_asked or feed.idle_requests), f"has replayed WAL to {replayed}")
                if replayed != position or feed.idle_requests < idle:
                    position, idle = replayed, feed.idle_requests
                elif not is_asked and feed.idle_requests >= idle + _IDLE_REQUESTS:
                    if has_target:
                        return False
                    connection.execute("SELECT pg_promote(false)")
                    is_asked = True
                time.sleep(_POLL_SECONDS)

    def _accepts_connections(self, feed: WalFeed) -> bool:
        """True if the server answers queries.

        Raises:
            RestoreError: it has ended, or cannot get WAL that it needs.
        """
        if feed.failure:
            raise RestoreError(f"the WAL cannot be used: {feed.failure}", hint="Recover to an earlier moment.")
        return self._state() == "ready"

    def _state(self) -> str:
        """The status in the server's pid file; empty if there is none yet.

        Raises:
            RestoreError: it has ended.
        """
        assert self._process is not None
        if self._process.poll() is not None:
            raise self._failed()
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except (FileNotFoundError, ValueError):
            return ""
        return lines[7].strip() if len(lines) > 7 else ""

    def _failed(self) -> RestoreError:
        with self._log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            said = file.read().decode("utf-8", "replace").splitlines()
        grave = [line for line in said if any(word in line for word in ("FATAL:", "PANIC:", "ERROR:"))] or said[-1:]
        reason = grave[-1].partition(":  ")[2] or grave[-1] if grave else "it says nothing"
        log.error("scratch_server_ended", log=said[-20:])
        return RestoreError(
            f"the scratch server ended: {reason}", hint="Its last lines are in the log; recover to another moment."
        )

    @property
    def _log(self) -> Path:
        return self.directory / "server.log"

    def _give(self, path: Path) -> None:
        if self.owner:
            os.chown(path, self.owner.uid, self.owner.gid)


def find_server_program(major: int, owner: Owner | None, *, runner: ProcessRunner, bin_dir: Path | None) -> Path:
    """The server program of a major version, executable by a user.

    Raises:
        ClientToolError: there is none.
    """
    purpose = "a recovery needs a server of version"
    path = find_same_version("postgres", major, purpose=purpose, runner=runner, bin_dir=bin_dir)
    if owner and not all(reachable(part, owner) for part in (path, *path.parents)):
        raise ClientToolError(
            f"a scratch server runs as user {owner.name}, who may not run {path}",
            hint=f"apt-get install postgresql-{major}, or set BACKUP_PG_BIN_DIR to programs that it may run.",
        )
    return path


def _progress(connection: Connection) -> tuple[bool, str, datetime | None]:
    """Whether the server is in recovery, the replayed position, and the commit time of the last transaction."""
    row = connection.execute(_PROGRESS).fetchone()
    assert row is not None
    return bool(row[0]), str(row[1]), row[2]
