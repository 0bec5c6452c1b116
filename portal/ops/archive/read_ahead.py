"""Reads frames ahead: several threads decompress and hash them before the reader needs them.

A reader goes from member to member. The threads know where a complete file lies in a frame, so its SHA-256 is ready
when the reader gets there. Another thread hashes files that span frames, in order.
"""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from hashlib import sha256
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from portal.ops.archive import index
from portal.ops.archive.index import Member, MemberType
from portal.ops.errors import NotIntactError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
    from concurrent.futures import Executor, Future

_AHEAD: Final = 2
_MOST_WAITING: Final = 5_000
"""The most members that are looked at in advance, however many an index claims for one frame."""

_WORTH_HASHING: Final = 1 << 15
"""Hashing a smaller file, in bytes, is faster than passing it to another thread."""

WORTH_A_THREAD: Final = 1 << 22
"""A file that spans frames and has at least this many bytes is hashed in a thread."""

Span = tuple[int, int]
"""The start and end of a file's content within a frame that holds all of it."""


class Loaded(NamedTuple):
    """A frame that has been read.

    Arguments:
        number: the number of the frame.
        data: its content, or the error that reading it raised.
        digests: the SHA-256 of files in it, if they were hashed in advance.
    """

    number: int
    data: bytes | NotIntactError
    digests: Mapping[Span, str] = MappingProxyType({})


class Expected(NamedTuple):
    """A member that comes next, and its tar header if that was already made."""

    member: Member
    header: bytes | None = None


class Coming:
    """The next members in order, some of which are looked at in advance.

    Arguments:
        members: the members; an error from the iterator is raised when its turn comes.
        tar_lengths: the length of each frame in the tar.
    """

    def __init__(self, members: Iterator[Member], tar_lengths: Sequence[int], backup_id: str) -> None:
        self._members = members
        self._tar_lengths = tar_lengths
        self._backup_id = backup_id
        self._waiting: deque[Expected] = deque()
        self._seen: Member | None = None
        self._failure: NotIntactError | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Expected:
        if self._waiting:
            return self._waiting.popleft()
        if (member := self._look()) is None:
            raise self._failure or StopIteration
        self._seen = None
        return Expected(member)

    def spans(self, frame: int) -> list[Span]:
        """The places of complete files in a frame that are worth hashing in advance."""
        found = []
        while len(self._waiting) < _MOST_WAITING and (member := self._look()) is not None and member.frame <= frame:
            self._seen, header = None, None
            if member.frame == frame and member.type is MemberType.FILE and member.size >= _WORTH_HASHING:
                header = index.tar_header(member, self._backup_id)
                start = member.at + len(header)
                if start + member.payload_bytes <= self._tar_lengths[frame]:
                    found.append((start, start + member.payload_bytes))
            self._waiting.append(Expected(member, header))
        return found

    def _look(self) -> Member | None:
        """The next member that was not looked at yet; it stays in the queue."""
        if self._seen is None and self._failure is None:
            try:
                self._seen = next(self._members, None)
            except NotIntactError as error:
                self._failure = error
        return self._seen


@contextmanager
def frames_ahead(
    read: Callable[[int], bytes | NotIntactError], numbers: range, coming: Coming, jobs: int
) -> Iterator[Iterator[Loaded]]:
    """Frames in order, decompressed and hashed in advance by `jobs` threads.

    Arguments:
        read: returns the content of a frame, or its error.
        numbers: the numbers of the frames.
        coming: knows which files in a frame are worth hashing.
    """
    from concurrent.futures import ThreadPoolExecutor, wait

    threads = ThreadPoolExecutor(jobs, thread_name_prefix="inflate")
    pending: deque[Future[Loaded]] = deque()

    def load(number: int, spans: Sequence[Span]) -> Loaded:
        data = read(number)
        if isinstance(data, NotIntactError):
            return Loaded(number, data)
        view = memoryview(data)
        return Loaded(number, data, {span: sha256(view[slice(*span)]).hexdigest() for span in spans})

    def ahead() -> Iterator[Loaded]:
        following = iter(numbers)
        for _ in numbers:
            while len(pending) < jobs + _AHEAD and (number := next(following, None)) is not None:
                pending.append(threads.submit(load, number, coming.spans(number)))
            yield pending.popleft().result()

    try:
        yield ahead()
    finally:
        # Threads are not joined: this may run during garbage collection, possibly while another thread is being started
        # and holds a lock that joining needs. Pending reads of the file are waited for.
        threads.shutdown(wait=False, cancel_futures=True)
        wait([future for future in pending if not future.cancelled()])


def hashed(pieces: Iterator[memoryview], hashing: Executor | None) -> Generator[memoryview, None, str]:
    """Yield the pieces and return their SHA-256; a thread, if given, hashes each while the caller uses the next."""
    digest = sha256()
    last: Future[None] | None = None
    for piece in pieces:
        if hashing is None:
            digest.update(piece)
        else:
            if last:
                last.result()
            last = hashing.submit(digest.update, piece)
        yield piece
    if last:
        last.result()
    return digest.hexdigest()


@contextmanager
def one_thread(name: str) -> Iterator[Executor]:
    """A thread that starts with its first job; like those that decompress, it is not joined."""
    from concurrent.futures import ThreadPoolExecutor

    thread = ThreadPoolExecutor(1, thread_name_prefix=name)
    try:
        yield thread
    finally:
        thread.shutdown(wait=False, cancel_futures=True)
