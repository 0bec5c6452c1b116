"""Receives WAL: a slot on the server, a supervised pg_receivewal, and the archive for completed segments.

    check     may the role replicate, and does the server limit what a slot retains?
    slot      create the slot if there is none; a lost one is a gap, and requests a new base backup
    receive   run pg_receivewal, which confirms only what is on our disk
    archive   compress completed segments durably, then remove the originals
    watch     query the positions of server, slot and archive every second

An error ends one turn, and the next turn starts after a pause. Meanwhile the slot keeps the WAL, as far as the server
permits. If the disk is nearly full, receiving stops in time to leave room for backups.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import psycopg

from portal.ops.errors import BusyError, DiskFullError, OpsError, RepositoryError, SourceError
from portal.ops.pitr.lsn import PARTIAL, parse_history_name
from portal.ops.pitr.replication import SLOT, Position, check, ensure_slot, named, position, server_clock
from portal.ops.pitr.wal_archive import WalArchive
from portal.ops.pitr.wal_state import Coverage, state_of
from portal.ops.postgres.client_tools import find_client
from portal.ops.postgres.connection import conninfo, libpq_environment
from portal.ops.postgres.server import maintenance
from portal.ops.repository.faults import disk_full
from portal.ops.runtime.logs import engine_log
from portal.ops.runtime.process import DEVNULL
from portal.ops.units import first_line, human_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from threading import Event

    from portal.ops.pitr.lsn import Segment
    from portal.ops.postgres.connection import Connection
    from portal.ops.repository.repository import Repository
    from portal.ops.runtime.process import ProcessRunner, RunningProcess
    from portal.ops.settings.load import DatabaseTarget

log = engine_log("portal.ops.pitr.receiver")

APPLICATION: Final = "kekkai-wal"

_TICK_SECONDS: Final = 0.1
_WATCH_SECONDS: Final = 1.0
_FIRST_PAUSE_SECONDS: Final = 0.5
_LONGEST_PAUSE_SECONDS: Final = 30.0
_STEADY_SECONDS: Final = 60.0
"""After this time without an error, the next pause is short again."""

_RESERVE_BYTES: Final = 64 << 20
_CONSEQUENCE: Final = "disconnected"
"""The last line of pg_receivewal, which gives no reason."""

_GONE: Final = ("has already been removed", "is not in this server's history")
"""The message of pg_receivewal if the server cannot continue where our files end."""


class ReceiverEndedError(SourceError):
    """Raised if pg_receivewal ends unasked."""

    retryable = True


class GapError(SourceError):
    """Raised if the server no longer has the WAL that would continue ours."""

    retryable = True


class WalReceiver:
    """Receives WAL until it is stopped.

    Arguments:
        repository: holds the archive.
        target: the server, with the replication role.
        runner: starts pg_receivewal.
        bin_dir: the only directory to look for it in.
        slot: the name of the replication slot.
        on_archived: called with every file that is durable in the archive.
        on_gap: called with the reason, in words, if a new base backup is needed.
        watch_seconds: the interval between two looks at the server.
    """

    def __init__(
        self,
        repository: Repository,
        target: DatabaseTarget,
        *,
        runner: ProcessRunner,
        bin_dir: Path | None = None,
        slot: str = SLOT,
        on_archived: Callable[[str], None] = lambda _: None,
        on_gap: Callable[[str], None] = lambda _: None,
        watch_seconds: float = _WATCH_SECONDS,
    ) -> None:
        self._repository = repository
        self._target = named(target, APPLICATION)
        self._runner = runner
        self._bin_dir = bin_dir
        self._slot = slot
        self._on_archived = on_archived
        self._on_gap = on_gap
        self._watch_seconds = watch_seconds
        self._covered = Coverage()
        self._archive: WalArchive | None = None
        self._received = 0
        self._is_streaming = False

    def run(self, stop: Event) -> None:
        """Run until `stop` is set; errors are logged, shown in the state, and retried.

        Raises:
            BusyError: another service receives into this repository.
        """
        pause = _FIRST_PAUSE_SECONDS
        while not stop.is_set():
            started = time.monotonic()
            try:
                self._turn(stop)
            except BusyError:
                raise
            except (OpsError, OSError, psycopg.Error) as error:
                fault = error if isinstance(error, OpsError) else self._explained(error)
                if time.monotonic() - started > _STEADY_SECONDS:
                    pause = _FIRST_PAUSE_SECONDS
                log.error("wal_interrupted", error=fault.message, hint=fault.hint, pause_seconds=pause)
                self._report(problem=str(fault))
                stop.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _explained(self, error: Exception) -> OpsError:
        if isinstance(error, OSError):
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                return disk_full(self._repository.path)
            return RepositoryError(
                f"the operating system refused: {error}", hint="Look at the disk and the permissions."
            )
        return SourceError(f"the server refuses: {first_line(str(error))}", hint="See the server's log.")

    def _turn(self, stop: Event) -> None:
        """One turn: from the check to the first error."""
        self._repository.prepare()
        with maintenance(self._target) as connection:
            settings = check(connection, self._target)
            archive = self._archive = WalArchive.prepare(self._repository, settings.cluster)
            with archive.receiving_alone():
                self._check_space(archive)
                self._recall(archive)
                self._sweep(archive, connection)
                self._take_slot(archive, connection)
                self._receive(archive, connection, stop)

    def _recall(self, archive: WalArchive) -> None:
        """Load what was known when the service ended."""
        state = archive.state()
        self._received, self._is_streaming = int(state.get("received", 0)), False
        if covered_to := state.get("covered_to"):
            covered = datetime.fromisoformat(covered_to)
            self._covered.recall(covered, self._received)
            archive.note_covered(self._received, covered)

    def _take_slot(self, archive: WalArchive, connection: Connection) -> None:
        """Create or take the slot. If a new slot does not continue our files, pg_receivewal finds out."""
        if not ensure_slot(connection, self._slot):
            return
        log.info("slot_created", slot=self._slot)
        if archive.files() or archive.partials():
            self._gap(f"the slot {self._slot} was lost or removed", certain=False)

    def _gap(self, reason: str, *, certain: bool) -> None:
        log.warning("wal_gap_suspected" if not certain else "wal_gap", reason=reason)
        self._on_gap(reason)

    def _receive(self, archive: WalArchive, connection: Connection, stop: Event) -> None:
        tool = find_client("pg_receivewal", archive.cluster.major, runner=self._runner, bin_dir=self._bin_dir)
        command = [
            str(tool.path),
            f"--directory={archive.receiving}",
            f"--slot={self._slot}",
            "--synchronous",
            "--no-loop",
            "--no-password",
            "--status-interval=1",
            f"--dbname={conninfo(self._target)}",
        ]
        process = self._runner.start(command, environment=libpq_environment(self._target), stdout=DEVNULL)
        log.info("wal_receiving", slot=self._slot, version=tool.version, directory=str(archive.receiving))
        try:
            self._watch(archive, connection, process, stop)
        finally:
            process.kill()

    def _watch(self, archive: WalArchive, connection: Connection, process: RunningProcess, stop: Event) -> None:
        next_look = 0.0
        while not stop.wait(_TICK_SECONDS):
            if _has_ended(process):
                self._raise_end(archive, connection, process)
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + self._watch_seconds
                self._check_space(archive)
                self._look(archive, connection)
            if archive.completed() or len(archive.partials()) > 1:
                self._collect(archive, connection)

    def _raise_end(self, archive: WalArchive, connection: Connection, process: RunningProcess) -> None:
        """Raise the reason why pg_receivewal ended; if the server cannot continue our files, put them away."""
        code = process.wait()
        said = [line for line in process.stderr_tail().strip().splitlines() if line]
        errors = [line for line in said if "error" in line.lower() and not line.endswith(_CONSEQUENCE)]
        last = (errors or said or [f"exit code {code}"])[-1]
        if any(os.strerror(errno.ENOSPC) in line for line in said):
            raise disk_full(self._repository.path)
        if any(gone in line for line in said for gone in _GONE):
            self._collect(archive, connection, with_last=True)
            self._gap(last, certain=True)
            raise GapError(f"the WAL cannot be continued: {last}", hint="A new base backup begins a new window.")
        raise ReceiverEndedError(
            f"pg_receivewal ended: {last}", hint="It is started again; the server's log may say more."
        )

    # -- archiving --------------------------------------------------------------------------------------------------

    def _collect(self, archive: WalArchive, connection: Connection, *, with_last: bool = False) -> None:
        """Archive the files that pg_receivewal has completed, and partial segments that a newer one has replaced.

        Arguments:
            with_last: also archive the newest partial segment, because it will not be continued.
        """
        partials = archive.partials()
        sources = [*archive.completed(), *(partials if with_last else partials[:-1])]
        until = server_clock(connection) if sources else None
        for source in sources:
            self._publish(archive, source, until)

    def _publish(self, archive: WalArchive, source: Path, until: datetime | None) -> None:
        is_history = parse_history_name(source.name) is not None
        segment = archive.segment(source.name)
        end = 0 if is_history else self._end(archive, segment, source.name)
        covered = self._covered.at(end)
        file = archive.publish(source, covered=covered, until=until)
        log.info("wal_archived", name=file.name, bytes=file.size)
        self._covered.forget(end)
        self._on_archived(file.name)

    def _end(self, archive: WalArchive, segment: Segment | None, name: str) -> int:
        assert segment is not None
        if name.endswith(PARTIAL):
            return self._received
        return (segment.number + 1) * archive.cluster.segment_bytes

    def _sweep(self, archive: WalArchive, connection: Connection) -> None:
        """Remove unfinished copies, and a segment that pg_receivewal was only allocating, after a crash."""
        archive.sweep()
        for partial in archive.partials():
            if partial.stat().st_size != archive.cluster.segment_bytes:  # it is empty until it has its full size
                partial.unlink()
        self._collect(archive, connection)

    # -- watching ---------------------------------------------------------------------------------------------------

    def _check_space(self, archive: WalArchive) -> None:
        disk = os.statvfs(archive.path)
        free, needed = disk.f_bavail * disk.f_frsize, _RESERVE_BYTES + 2 * archive.cluster.segment_bytes
        if free < needed:
            raise DiskFullError(
                f"{archive.path} has {human_bytes(free)} free, and receiving WAL needs {human_bytes(needed)}",
                hint="Make room in the repository soon: the server keeps WAL only as far as max_slot_wal_keep_size.",
            )

    def _look(self, archive: WalArchive, connection: Connection) -> None:
        found = position(connection, self._slot)
        if not found.is_usable:
            raise GapError(
                f"the replication slot {self._slot} is {'lost' if found.has_slot else 'gone'}",
                hint="It is made again, and a new base backup is begun; see who has removed it, and the server's disk.",
            )
        self._covered.note(
            found.clock.astimezone(UTC),
            flushed=found.flushed_lsn,
            inserted=found.inserted_lsn,
            delay=found.longest_delay,
        )
        self._save(archive, found)

    def _report(self, *, problem: str) -> None:
        """Record an error in the state, even if the server cannot be queried."""
        if self._archive is not None:
            with suppress(OpsError, OSError):
                state = {**self._archive.state(), "problem": problem, "updated": _now(), "pid": os.getpid()}
                self._archive.save_state(state)

    def _save(self, archive: WalArchive, found: Position) -> None:
        """Save all positions.

        The slot's position counts only once it is within a segment that we have: a new slot starts anywhere.
        """
        is_streaming, self._is_streaming = self._is_streaming and found.active, found.active
        if is_streaming and archive.has_segment_at(found.restart_lsn):
            self._received = max(self._received, found.restart_lsn)
        archive.save_state(
            state_of(found, known=archive.state(), received=self._received, covered=self._covered.at(self._received))
            | {"updated": _now(), "pid": os.getpid(), "problem": None}
        )


def _has_ended(process: RunningProcess) -> bool:
    try:
        process.wait(0)
    except TimeoutError:
        return False
    return True


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
