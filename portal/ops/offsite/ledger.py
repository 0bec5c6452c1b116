"""The repository's record of off-site copies, in `.offsite/<destination>/`; the store itself is authoritative.

    copies.jsonl           a line for each complete copy
    pending/<id>.json      the progress of an interrupted copy
    proof.json             the results of the last verification and the last drill
    turns.json             when each copy was last verified
    wal.json               when WAL was last copied, and the fault since

Listing the store updates the record. The status reads only the record, so it works while the store cannot be reached.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from portal.ops.errors import BusyError, RepositoryError
from portal.ops.offsite.layout import Stem, parse_stem
from portal.ops.repository.durable import append_line, make_hidden, sync_directory, write_durably
from portal.ops.repository.faults import disk_full
from portal.ops.repository.locks import locked_file, try_lock
from portal.ops.repository.records import DamagedRecordError, RecordStore
from portal.ops.runtime.logs import engine_log
from portal.ops.units import system_reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from portal.ops.offsite.commit import Commit
    from portal.ops.repository.repository import Repository
    from portal.ops.settings.destination import Destination

log = engine_log("portal.ops.offsite.ledger")

DIRECTORY: Final = ".offsite"
VERSION: Final = 1

_COPIES: Final = "copies.jsonl"
_PENDING: Final = "pending"
_PROOF: Final = "proof"
_TURNS: Final = "turns"
_WAL: Final = "wal"
_LOCK: Final = ".lock"
_LOCK_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.1


@dataclass(frozen=True, kw_only=True)
class CopyRecord:
    """A complete copy, as the repository records it.

    Arguments:
        copied: when it was completed.
        archive_sha256: the digest of the archive.
        stored_bytes: the bytes it takes off-site.
        recipients: the recipients of its encryption.
    """

    stem: Stem
    copied: datetime
    archive_sha256: str
    stored_bytes: int
    recipients: tuple[str, ...] = ()

    @classmethod
    def of(cls, commit: Commit) -> CopyRecord:
        """The record of a commit."""
        return cls(
            stem=commit.stem,
            copied=commit.copied,
            archive_sha256=commit.archive_sha256,
            stored_bytes=commit.stored_bytes,
            recipients=commit.recipients,
        )

    def encode(self) -> bytes:
        """The record as a line."""
        facts = {
            "version": VERSION,
            "stem": str(self.stem),
            "copied": self.copied.isoformat(),
            "archive_sha256": self.archive_sha256,
            "stored_bytes": self.stored_bytes,
            "recipients": list(self.recipients),
        }
        return json.dumps(facts).encode("ascii") + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> CopyRecord | None:
        """Decode a line; None if it is invalid, perhaps truncated by a crash."""
        try:
            found = json.loads(line)
            stem = parse_stem(found["stem"])
            if stem is None or found["version"] != VERSION:
                return None
            return cls(
                stem=stem,
                copied=datetime.fromisoformat(found["copied"]),
                archive_sha256=str(found["archive_sha256"]),
                stored_bytes=int(found["stored_bytes"]),
                recipients=tuple(map(str, found["recipients"])),
            )
        except (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError):
            return None


class Ledger:
    """The record of copies in one destination."""

    def __init__(self, repository: Repository, destination: Destination) -> None:
        self.directory = repository.path / DIRECTORY / destination.identifier
        self._repository = repository
        self._destination = destination
        self._path = self.directory / _COPIES
        self._pending = RecordStore(self.directory / _PENDING)
        self._records = RecordStore(self.directory)

    def prepare(self) -> None:
        """Create the directory if necessary.

        Raises:
            RepositoryError: it cannot be created.
        """
        self._repository.prepare()
        with _explained(self.directory):
            make_hidden(self.directory.parent)
            make_hidden(self.directory)

    @property
    def can_be_kept(self) -> bool:
        """True if there is a repository that this user may write to."""
        return os.access(self._repository.path, os.W_OK | os.X_OK)

    @contextmanager
    def locked(self, timeout: float) -> Iterator[None]:
        """Keep other processes from copying to this destination, and from removing copies there.

        Raises:
            BusyError: another process does, and did not end in time.
        """
        self.prepare()
        descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            deadline = time.monotonic() + timeout
            while not try_lock(descriptor, fcntl.LOCK_EX):
                if time.monotonic() >= deadline:
                    raise BusyError(
                        f"another process copies to {self._destination.shown}, or removes copies there",
                        hint="A copy takes whatever is missing; wait for it to end.",
                    )
                time.sleep(_POLL_SECONDS)
            yield
        finally:
            os.close(descriptor)

    def locked_if_kept(self, timeout: float) -> AbstractContextManager[None]:
        """Like `locked`; without effect on a machine that has no record of copies, or may not write it.

        Raises:
            BusyError: as `locked`.
        """
        return self.locked(timeout) if self.directory.exists() and self.can_be_kept else nullcontext()

    @contextmanager
    def recording(self) -> Iterator[bool]:
        """Keep other processes from recording proofs and turns, while what is recorded is read and replaced.

        False if nothing can be recorded, which is only logged.
        """
        with ExitStack() as held:
            is_ours = self.can_be_kept
            try:
                if is_ours:
                    self.prepare()
                    lock = locked_file(self.directory / _LOCK, fcntl.LOCK_EX, _LOCK_SECONDS, what=str(self.directory))
                    held.enter_context(lock)
            except (BusyError, RepositoryError) as error:
                log.warning("proof_unrecorded", error=error.message)
                is_ours = False
            yield is_ours

    # -- copies -------------------------------------------------------------------------------------------------------

    def copies(self) -> dict[Stem, CopyRecord]:
        """Every known copy.

        Raises:
            RepositoryError: the record cannot be read.
        """
        try:
            lines = self._path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise _trouble(error, self._path) from error
        found = (CopyRecord.decode(line) for line in lines if line)
        return {record.stem: record for record in found if record}

    def add(self, record: CopyRecord) -> None:
        """Add a copy durably.

        Raises:
            RepositoryError: it cannot be written.
        """
        with _explained(self._path):
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
            try:
                append_line(descriptor, record.encode())
            finally:
                os.close(descriptor)
            sync_directory(self.directory)

    def replace(self, records: Iterable[CopyRecord]) -> None:
        """Replace the record by the copies found in the store.

        Raises:
            RepositoryError: it cannot be written.
        """
        self.prepare()
        with _explained(self._path):
            write_durably(self._path, b"".join(record.encode() for record in records))

    # -- interrupted copies -------------------------------------------------------------------------------------------

    def pending(self, backup_id: str) -> dict[str, Any] | None:
        """The progress of an interrupted copy, or None if there is none or its record is invalid."""
        try:
            return self._pending.read(backup_id)
        except DamagedRecordError as error:
            log.warning("record_unreadable", error=error.message)
            return None

    def save_pending(self, backup_id: str, facts: dict[str, Any]) -> None:
        """Record the progress of a copy durably."""
        self._pending.write(backup_id, facts)

    def forget_pending(self, backup_id: str) -> None:
        """Remove the progress of a copy that is complete or given up."""
        self._pending.remove(backup_id)

    # -- proofs -------------------------------------------------------------------------------------------------------

    def proof(self) -> dict[str, Any]:
        """The last verification and the last drill; may be empty."""
        try:
            return self._records.read(_PROOF) or {}
        except DamagedRecordError as error:
            log.warning("record_unreadable", error=error.message)
            return {}

    def note_proof(self, kind: str, facts: dict[str, Any]) -> None:
        """Record a result, keeping those of the other kind; if writing fails, it is only logged.

        The caller must hold `recording`.

        Arguments:
            kind: ``verified`` or ``drilled``.
        """
        try:
            known = {name: value for name, value in self.proof().items() if name != "version"}
            self._records.write(_PROOF, {**known, kind: facts})
        except RepositoryError as error:
            log.warning("proof_unrecorded", error=error.message)

    # -- WAL ----------------------------------------------------------------------------------------------------------

    def wal(self) -> dict[str, Any]:
        """The last success of copying WAL, and its fault; empty if WAL was never copied."""
        try:
            return self._records.read(_WAL) or {}
        except DamagedRecordError as error:
            log.warning("record_unreadable", error=error.message)
            return {}

    def note_wal(self, now: datetime, problem: str) -> None:
        """Record the state of copying WAL; if writing fails, it is only logged.

        Arguments:
            problem: the fault with its hint; empty if there is none.
        """
        try:
            worked = self.wal().get("worked", now.isoformat()) if problem else now.isoformat()
            self.prepare()
            self._records.write(_WAL, {"worked": worked, "problem": problem})
        except RepositoryError as error:
            log.warning("wal_copy_unrecorded", error=error.message)

    # -- turns --------------------------------------------------------------------------------------------------------

    def turns(self) -> dict[str, datetime]:
        """When each copy was last verified, by stem."""
        try:
            found = self._records.read(_TURNS) or {}
            return {stem: datetime.fromisoformat(moment) for stem, moment in found["verified"].items()}
        except (DamagedRecordError, AttributeError, KeyError, TypeError, ValueError):
            return {}

    def note_turns(self, turns: Mapping[str, datetime]) -> None:
        """Record when copies were verified; if writing fails, it is only logged. The caller must hold `recording`."""
        try:
            self._records.write(_TURNS, {"verified": {stem: moment.isoformat() for stem, moment in turns.items()}})
        except RepositoryError as error:
            log.warning("proof_unrecorded", error=error.message)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _trouble(error, path) from error


def _trouble(error: OSError, path: Path) -> RepositoryError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(path.parent)
    return RepositoryError(
        f"cannot use {path}: {system_reason(error)}",
        hint="Run this as the user that the backups belong to, and look at the disk.",
    )
