"""Sends one archive: encrypts and stores segment by segment, and records its progress.

    choose    choose an unused stem, or continue with that of an interrupted copy, if its segments are still there
    seal      encrypt the next segment while the last one is sent
    intend    record the digest before sending: after a crash it identifies our object
    store     store the segment with one PUT, which is refused if the name exists
    note      record that it is stored; after a crash it is not sent again
    check     compare the archive's digest with its sidecar
    commit    store the commit last, and only if there is none

An archive that turned out to be damaged is hashed before it is sent again, so that no attempt leaves new segments.

Nothing that was sent is overwritten or deleted. If an unknown object has a name of this copy, the copy starts again
under the next stem, and `prune` removes the remains.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import queue
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Self

from portal.ops.chains.lineage import read_manifest
from portal.ops.codec import decode, encode
from portal.ops.errors import NotIntactError, ObjectAbsentError, ObjectExistsError, OpsError, StorageError
from portal.ops.offsite.commit import MOST_BYTES, Commit, Segment
from portal.ops.offsite.layout import Stem, segment_bytes_for
from portal.ops.offsite.wal import wal_start
from portal.ops.repository.faults import explain
from portal.ops.repository.records import ENVELOPE
from portal.ops.repository.sidecar import file_digest, read_sidecar
from portal.ops.runtime.logs import engine_log
from portal.ops.storage.backend import read_all
from portal.ops.storage.encryption import BUFFERS, Encryptor, Sealed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from portal.ops.offsite.ledger import Ledger
    from portal.ops.offsite.signing import Trust
    from portal.ops.repository.entry import Entry
    from portal.ops.repository.repository import ArchiveFile
    from portal.ops.runtime.progress import Advance, Clock
    from portal.ops.storage.backend import Backend
    from portal.ops.storage.signature import SigningKey

log = engine_log("portal.ops.offsite.sending")

_READ_BYTES: Final = 1 << 20
_PATIENCE_SECONDS: Final = 1.0
_MOST_STEMS: Final = 1000


class TakenError(Exception):
    """Raised if another's object has a name that we need."""


@dataclass(kw_only=True)
class _Pending:
    """The progress of a copy, in a record that is named after the archive.

    Arguments:
        is_damaged: whether the archive sent did not match its sidecar.
    """

    backup_id: str
    generation: int
    archive_sha256: str
    segment_bytes: int
    recipients: tuple[str, ...]
    segments: list[Segment] = field(default_factory=list)
    intended: list[Segment] = field(default_factory=list)
    is_damaged: bool = False

    @property
    def stem(self) -> Stem:
        return Stem(self.backup_id, self.generation)


@dataclass(frozen=True, kw_only=True)
class Sender:
    """Copies archives to one destination; the caller holds the ledger's lock.

    Arguments:
        recipients: age public keys; if empty, segments are stored unencrypted.
        rate: bytes per second on average; 0 for no limit.
        key: signs commits.
        trust: whose copies count.
        advance: called with the number of archive bytes after each segment is stored.
    """

    backend: Backend
    ledger: Ledger
    recipients: tuple[str, ...]
    rate: int
    key: SigningKey
    trust: Trust
    clock: Clock
    advance: Advance

    def send(self, archive: ArchiveFile, entry: Entry, *, again: bool = False) -> Commit:
        """Copy an archive, which the caller keeps locked; return its commit.

        Arguments:
            again: make another copy if there is one already.

        Raises:
            NotIntactError: the archive does not match its sidecar; nothing was committed.
            StorageError: the store failed; stored segments are not sent again.
        """
        digest = read_sidecar(archive.path)
        if digest is None:
            raise NotIntactError(
                f"{archive.path.name} has no .sha256 file, so it cannot be verified",
                hint="Verify it, then make its .sha256 file with sha256sum.",
            )
        pending = self._pending(entry.name, digest)
        if pending is not None and pending.is_damaged:
            if file_digest(archive.path) != digest:
                raise _damaged(archive)
            pending = None
        if pending is not None and (difference := self._difference(pending)):
            log.warning("offsite_segments_gone", stem=str(pending.stem), error=difference)
            pending = None
        while True:
            if pending is None:
                pending = self._start(entry.name, digest, entry.size, again=again)
            try:
                return self._send(archive, entry, pending)
            except TakenError as taken:
                log.warning("offsite_name_taken", stem=str(pending.stem), error=str(taken))
                self.ledger.forget_pending(entry.name)
                pending = None

    def _send(self, archive: ArchiveFile, entry: Entry, pending: _Pending) -> Commit:
        try:
            descriptor = os.open(archive.path, os.O_RDONLY)
        except OSError as error:
            raise explain(error, "cannot read", archive.path) from error
        try:
            size = os.fstat(descriptor).st_size
            with _checksum(descriptor) as checksum:
                self._send_segments(descriptor, size, pending)
                if checksum() != pending.archive_sha256:
                    self._save(replace(pending, segments=[], is_damaged=True))
                    raise _damaged(archive)
        except OSError as error:
            raise explain(error, "cannot read", archive.path) from error
        finally:
            os.close(descriptor)
        return self._commit(archive, entry, pending, size)

    def _send_segments(self, descriptor: int, size: int, pending: _Pending) -> None:
        length = pending.segment_bytes
        count = -(-size // length)
        done = len(pending.segments)
        self.advance(min(size, done * length))
        if done == count:
            return
        pace = _Pace(self.rate)
        with self._sealing(descriptor) as seal, _Storing(self.backend) as storing:
            seal.begin(done * length, min(length, size - done * length), done % BUFFERS)
            for number in range(done, count):
                with seal.sealed(number % BUFFERS) as sealed:
                    following = (number + 1) * length
                    if following < size:
                        seal.begin(following, min(length, size - following), (number + 1) % BUFFERS)
                    self._store(pending, number, sealed, storing)
                    pace.sent(len(sealed.data))
                self.advance(min(length, size - number * length))

    def _store(self, pending: _Pending, number: int, sealed: Sealed, storing: _Storing) -> None:
        name = pending.stem.segment(number, encrypted=bool(pending.recipients))
        segment = Segment(len(sealed.data), sealed.sha256)
        pending.intended.append(segment)
        self._save(pending)
        try:
            storing.put(name, sealed)
        except ObjectExistsError as error:
            segment = self._own(name, pending.intended, error)
        pending.segments.append(segment)
        pending.intended = []
        self._save(pending)

    def _own(self, name: str, intended: Sequence[Segment], error: ObjectExistsError) -> Segment:
        """The existing segment, if an interrupted attempt of ours stored it."""
        found = self.backend.head(name)
        for segment in intended:
            if (found.size, found.sha256) == segment:
                return segment
        raise TakenError(error.message) from error

    def _difference(self, pending: _Pending) -> str:
        """The first sent segment that the store does not have, or has with another size; empty if it has all."""
        there = {one.name: one.size for one in self.backend.list(pending.stem.directory)}
        for number, segment in enumerate(pending.segments):
            name = pending.stem.segment(number, encrypted=bool(pending.recipients))
            if (size := there.get(name)) != segment.size:
                has = "does not have it" if size is None else f"has {size} bytes of {segment.size}"
                return f"{self.backend.shown}/{name} differs from the data sent: the store accepted it, and {has}"
        return ""

    def _check_stored(self, pending: _Pending) -> None:
        """Check that the store has all segments, before the copy is committed.

        Raises:
            StorageError: a segment is missing or has the wrong size; the next attempt starts from the beginning.
        """
        if difference := self._difference(pending):
            self.ledger.forget_pending(pending.stem.backup_id)
            raise StorageError(difference, hint="Look at the store; its answers cannot be relied on.")

    def _check_commit(self, stem: Stem, data: bytes) -> None:
        """Read the commit back.

        Raises:
            StorageError: the store has another one, or none.
        """
        try:
            is_there = read_all(self.backend, stem.commit, MOST_BYTES) == data
        except (NotIntactError, ObjectAbsentError):
            is_there = False
        if not is_there:
            raise StorageError(
                f"{self.backend.shown}/{stem.commit} differs from the data sent, so there is no copy",
                hint="Look at the store; its answers cannot be relied on.",
            )

    def _commit(self, archive: ArchiveFile, entry: Entry, pending: _Pending, size: int) -> Commit:
        self._check_stored(pending)
        manifest = read_manifest(archive.path)
        commit = Commit(
            stem=pending.stem,
            type=entry.type.value if entry.type else "",
            moment=entry.moment,
            copied=self.clock(),
            archive_size=size,
            archive_sha256=pending.archive_sha256,
            segment_bytes=pending.segment_bytes,
            segments=tuple(pending.segments),
            recipients=pending.recipients,
            parent=entry.parent,
            parent_sha256=manifest.parent_sha256 if manifest else None,
            base=entry.base,
            components=tuple(component.value for component in entry.components),
            wal=wal_start(manifest),
        )
        data = commit.encode(self.key)
        try:
            self.backend.put(pending.stem.commit, data, hashlib.sha256(data).hexdigest())
        except ObjectExistsError as error:
            there = self._committed(pending.stem)
            if there is None or there.segments != commit.segments:
                raise TakenError(error.message) from error
            commit = there  # our own, stored before a crash
        else:
            self._check_commit(pending.stem, data)
        return commit

    # -- where to start -----------------------------------------------------------------------------------------------

    def _pending(self, backup_id: str, digest: str) -> _Pending | None:
        """The interrupted copy, if it can be continued."""
        found = self.ledger.pending(backup_id)
        try:
            pending = decode(_Pending, {**found, "backup_id": backup_id}, beside=ENVELOPE) if found else None
        except ValueError:
            pending = None
        if pending is None or pending.archive_sha256 != digest or pending.recipients != self.recipients:
            return None
        return pending

    def _start(self, backup_id: str, digest: str, size: int, *, again: bool) -> _Pending:
        """A new copy, under a stem without any objects."""
        for generation in range(_MOST_STEMS):
            stem = Stem(backup_id, generation)
            if not self._is_used(stem):
                pending = _Pending(
                    backup_id=backup_id,
                    generation=generation,
                    archive_sha256=digest,
                    segment_bytes=segment_bytes_for(self.rate, size),
                    recipients=self.recipients,
                )
                self._save(pending)
                return pending
            there = self._committed(stem)
            if there is not None and not again and there.archive_sha256 == digest:
                raise AlreadyCopiedError(there)
        raise OpsError(f"{backup_id} has {_MOST_STEMS} copies", hint="Remove some with an administrator's credentials.")

    def _is_used(self, stem: Stem) -> bool:
        if next(iter(self.backend.list(stem.directory)), None) is not None:
            return True
        return any(True for _ in self._read_commit(stem))

    def _committed(self, stem: Stem) -> Commit | None:
        """The commit of a stem, if it is ours."""
        try:
            commit = Commit.decode(read_all(self.backend, stem.commit, MOST_BYTES), stem)
            return commit if self.trust.accepts(commit) else None
        except (ObjectAbsentError, NotIntactError):
            return None

    def _read_commit(self, stem: Stem) -> Iterator[bytes]:
        with suppress(ObjectAbsentError):
            yield from self.backend.read(stem.commit, 0, 1)

    def _save(self, pending: _Pending) -> None:
        facts = encode(pending)
        self.ledger.save_pending(facts.pop("backup_id"), facts)

    def _sealing(self, descriptor: int) -> Encryptor | _Plain:
        return Encryptor(self.recipients, descriptor) if self.recipients else _Plain(descriptor)


def _damaged(archive: ArchiveFile) -> NotIntactError:
    return NotIntactError(
        f"{archive.path.name} is damaged: its SHA-256 is not the one of its sidecar",
        hint="It was not copied. Look at the disk, and make a new backup.",
    )


class AlreadyCopiedError(Exception):
    """Raised if the store has the copy, and only our record of it was lost."""

    def __init__(self, commit: Commit) -> None:
        super().__init__(str(commit.stem))
        self.commit = commit


class _Plain:
    """Reads parts of a file unchanged, in place of an `Encryptor`, if encryption is switched off."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._parts: dict[int, tuple[int, int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held."""

    def begin(self, start: int, length: int, buffer: int) -> None:
        """Choose the next part."""
        self._parts[buffer] = start, length

    def sealed(self, buffer: int) -> AbstractContextManager[Sealed]:
        """The part, unchanged.

        Raises:
            OSError: it cannot be read.
        """
        return self._read(*self._parts[buffer])

    @contextmanager
    def _read(self, start: int, length: int) -> Iterator[Sealed]:
        # The file itself is not mapped: where a sector is bad, a look at it would end this process with SIGBUS.
        memory = mmap.mmap(-1, length)
        view, digest, at = memoryview(memory), hashlib.sha256(), 0
        try:
            while at < length and (count := os.preadv(self._descriptor, [view[at : at + _READ_BYTES]], start + at)):
                digest.update(view[at : at + count])
                at += count
            yield Sealed(view[:at], digest.hexdigest())
        finally:
            with suppress(BufferError):  # an abandoned thread still reads it
                view.release()
                memory.close()


class _Storing:
    """A thread that stores objects, so that the main thread notices signals; a context manager.

    If the process has to end, a request in progress is abandoned: the store keeps all of the object, or nothing.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._requests: queue.SimpleQueue[tuple[str, Sealed] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="store", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._requests.put(None)

    def put(self, name: str, sealed: Sealed) -> None:
        """Store an object and wait.

        Raises:
            StorageError: storing failed.
        """
        self._requests.put((name, sealed))
        while True:
            with suppress(queue.Empty):
                failure = self._answers.get(timeout=_PATIENCE_SECONDS)
                break
        if failure is not None:
            raise failure

    def _work(self) -> None:
        while (request := self._requests.get()) is not None:
            name, sealed = request
            try:
                self._backend.put(name, sealed.data, sealed.sha256)
                self._answers.put(None)
            except BaseException as error:  # the waiting thread raises it
                self._answers.put(error)
            del request, sealed


class _Pace:
    """Limits the average rate of sending."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._due = time.monotonic()

    def sent(self, count: int) -> None:
        """Wait until the rate permits so many bytes more."""
        if not self._rate:
            return
        self._due += count / self._rate
        while (left := self._due - time.monotonic()) > 0:
            time.sleep(min(left, _PATIENCE_SECONDS))


@contextmanager
def _checksum(descriptor: int) -> Iterator[Callable[[], str]]:
    """Compute the SHA-256 of a file in a thread; the returned function waits for it."""
    found: queue.SimpleQueue[str | OSError] = queue.SimpleQueue()
    own = os.dup(descriptor)
    stopped = threading.Event()

    def compute() -> None:
        digest, at = hashlib.sha256(), 0
        try:
            while not stopped.is_set() and (piece := os.pread(own, _READ_BYTES, at)):
                digest.update(piece)
                at += len(piece)
            found.put(digest.hexdigest())
        except OSError as error:
            found.put(error)
        finally:
            os.close(own)

    threading.Thread(target=compute, name="checksum", daemon=True).start()

    def wait() -> str:
        while True:
            with suppress(queue.Empty):
                result = found.get(timeout=_PATIENCE_SECONDS)
                break
        if isinstance(result, OSError):
            raise result
        return result

    try:
        yield wait
    finally:
        stopped.set()
