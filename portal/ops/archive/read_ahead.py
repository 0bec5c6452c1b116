"""Read-ahead of an archive's frames: several threads decompress and hash them before it is their turn.

Whoever reads an archive through goes from member to member. These threads are told where in a frame a whole file lies,
so that its SHA-256 is there when it is asked for. Files that span frames are hashed by one more thread, in their order.
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
"""So many members are looked at before it is their turn, however many an index that lies puts into a frame."""

_WORTH_HASHING: Final = 1 << 15
"""A smaller file is hashed sooner than it is handed to another thread."""

WORTH_A_THREAD: Final = 1 << 22
"""A file of this size, which spans frames, is hashed by a thread of its own."""

Span = tuple[int, int]
"""Where the content of a file begins and ends in a frame that has all of it."""


class Loaded(NamedTuple):
    """A frame that was read.

    Arguments:
        number: which one.
        data: what it holds, or what is wrong with it.
        digests: the SHA-256 of files in it, where somebody has made them.
    """

    number: int
    data: bytes | NotIntactError
    digests: Mapping[Span, str] = MappingProxyType({})


class Expected(NamedTuple):
    """A member that comes, and its tar header where that was made already."""

    member: Member
    header: bytes | None = None


class Coming:
    """The members in their order, of which some are looked at before it is their turn.

    Arguments:
        members: those that come. What they raise is raised when it is their turn.
        tar_lengths: how much each frame holds.
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
        """The spans of complete files in a frame that are worth hashing ahead."""
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
        """The next one that nobody has been given; it may be looked at again."""
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
    """Frames in their order, which `jobs` threads decompress and hash before somebody asks for them.

    Arguments:
        read: gives what a frame holds, or what is wrong with it.
        numbers: which frames.
        coming: knows what is worth hashing in them.
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
        # Threads are not joined: this also runs where Python collects garbage, which may be in the middle of the
        # start of another thread, with a lock held that joining needs. What still reads the file is waited for.
        threads.shutdown(wait=False, cancel_futures=True)
        wait([future for future in pending if not future.cancelled()])


def hashed(pieces: Iterator[memoryview], hashing: Executor | None) -> Generator[memoryview, None, str]:
    """The pieces; returns their SHA-256, made by a thread, where there is one, while the next piece is being used."""
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
    """A thread that is started once there is work for it; as those that decompress, it is not joined."""
    from concurrent.futures import ThreadPoolExecutor

    thread = ThreadPoolExecutor(1, thread_name_prefix=name)
    try:
        yield thread
    finally:
        thread.shutdown(wait=False, cancel_futures=True)
