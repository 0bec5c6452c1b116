"""Receives the segments of a copy, several at once, and decrypts each to its place in the archive.

age notices every changed byte. It cannot notice a segment of another archive for the same recipients, but that changes
the SHA-256 of the archive, which is computed meanwhile; `blame` then finds the segment. So nothing is hashed twice if
the copy is intact.
"""

from __future__ import annotations

import queue
import threading
from contextlib import suppress
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from portal.ops.errors import NotIntactError, ObjectAbsentError
from portal.ops.storage.age_format import StreamDecryptor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from portal.ops.offsite.commit import Commit
    from portal.ops.runtime.progress import Advance
    from portal.ops.storage.age_keys import Identity
    from portal.ops.storage.backend import Backend

_THREADS: Final = 2
_PATIENCE_SECONDS: Final = 1.0
_TAKE_BACK: Final = (
    "Take another copy or an older archive: the list of copies has them; with versions, one as of a time."
)


class Target(Protocol):
    """The file for a received archive."""

    def patch(self, offset: int, data: bytes) -> None:
        """Write a piece at its place; several threads call this, in any order."""

    def settle(self, end: int) -> None:
        """Called by one thread when everything up to `end` has been written."""


class _Got(NamedTuple):
    """A number of archive bytes that one thread has written."""

    number: int
    size: int


def receive(backend: Backend, commit: Commit, identities: Sequence[Identity], target: Target, advance: Advance) -> None:
    """Receive a whole archive. The caller has to compare its SHA-256 with the commit's.

    Raises:
        IdentityError: it is encrypted for none of the identities.
        NotIntactError: a segment is damaged or missing.
        StorageError: the store failed.
    """
    work = _Work(backend, commit, identities, target)
    for _ in range(min(_THREADS, len(commit.segments))):
        threading.Thread(target=work.run, name="receive", daemon=True).start()
    try:
        _follow(commit, work, target, advance)
    finally:
        work.stop()


def _follow(commit: Commit, work: _Work, target: Target, advance: Advance) -> None:
    """Report progress, and settle the part of the archive that has no gap."""
    left = commit.archive_size
    written = [0] * len(commit.segments)
    first = 0  # the first incomplete segment
    while left:
        with suppress(queue.Empty):
            got = work.done.get(timeout=_PATIENCE_SECONDS)
            if isinstance(got, BaseException):
                raise got
            left -= got.size
            written[got.number] += got.size
            advance(got.size)
            while first < len(written) and written[first] == commit.plain_size(first):
                first += 1
            more = written[first] if first < len(written) else 0
            target.settle(min(commit.archive_size, first * commit.segment_bytes + more))


class _Work:
    """State shared by the threads: the next segments, and the received ones."""

    def __init__(self, backend: Backend, commit: Commit, identities: Sequence[Identity], target: Target) -> None:
        self._backend = backend
        self._commit = commit
        self._identities = identities
        self._target = target
        self._numbers: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(len(commit.segments)):
            self._numbers.put(number)
        self.done: queue.SimpleQueue[_Got | BaseException] = queue.SimpleQueue()
        self._stopped = False
        self._writing = threading.Lock()

    def stop(self) -> None:
        """Stop all writing: a thread that waits for the store must not write to a closed file later."""
        with self._writing:
            self._stopped = True

    def run(self) -> None:
        """Receive segments until none are left."""
        with suppress(queue.Empty):
            while not self._stopped:
                number = self._numbers.get_nowait()
                try:
                    self._segment(number)
                except BaseException as error:  # the waiting thread raises it
                    self.done.put(error)
                    return

    def _segment(self, number: int) -> None:
        commit, name = self._commit, self._commit.segment_name(number)
        size, plain_size = 0, 0
        decryptor = StreamDecryptor(self._identities) if commit.is_encrypted else None
        try:
            for piece in self._backend.read(name):
                if self._stopped:
                    return
                size += len(piece)
                if size > commit.segments[number].size:
                    raise self._damaged(name, "it has more bytes than it should")
                plain_size += self._keep(number, plain_size, b"".join(decryptor.feed(piece)) if decryptor else piece)
            if size != commit.segments[number].size:
                raise self._damaged(name, "it has fewer bytes than it should")
            if decryptor:
                plain_size += self._keep(number, plain_size, decryptor.finish())
        except ObjectAbsentError as error:
            raise self._damaged(name, "it is missing") from error
        except _DamagedError:
            raise
        except NotIntactError as error:
            raise self._damaged(name, error.message) from error
        if plain_size != commit.plain_size(number):
            raise self._damaged(name, "it holds another part of an archive")

    def _keep(self, number: int, start: int, plain: bytes) -> int:
        """Write a part of a segment that begins at its byte `start`; return the number of bytes."""
        if start + len(plain) > self._commit.plain_size(number):
            raise self._damaged(self._commit.segment_name(number), "it holds another part of an archive")
        with self._writing:
            if plain and not self._stopped:
                self._target.patch(number * self._commit.segment_bytes + start, plain)
                self.done.put(_Got(number, len(plain)))
        return len(plain)

    def _damaged(self, name: str, what: str) -> NotIntactError:
        return damaged_segment(name, self._backend, what)


class _DamagedError(NotIntactError):
    """Raised for a damaged segment; the message names it."""


def damaged_segment(name: str, backend: Backend, what: str) -> NotIntactError:
    """The error for a damaged segment."""
    return _DamagedError(f"the off-site segment {name} in {backend.shown} is damaged: {what}", hint=_TAKE_BACK)


def blame(backend: Backend, commit: Commit) -> NotIntactError:
    """The error for a received archive with a wrong digest; it names the segment, if one is wrong."""
    for number, segment in enumerate(commit.segments):
        name, digest = commit.segment_name(number), sha256()
        for piece in backend.read(name):
            digest.update(piece)
        if digest.hexdigest() != segment.sha256:
            return damaged_segment(name, backend, "its SHA-256 is not the one of the commit")
    return NotIntactError(
        f"the copy of {commit.backup_id} in {backend.shown} does not give the archive that its commit describes",
        hint=_TAKE_BACK,
    )
