"""Compression on all cores: threads for large blocks, helper processes for small files.

Deflating and hashing a large block release Python's lock, so threads do it in parallel. Small files do not: see
`packer.py`.
"""

from __future__ import annotations

import itertools
import os
import queue
import socket
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, NamedTuple, Self, TypeVar

from portal.ops.archive import frame, packer
from portal.ops.archive.frame import Effort
from portal.ops.errors import OpsError
from portal.ops.model import Compression
from portal.ops.runtime.helper_process import Helper, end_helpers, start_helper
from portal.ops.runtime.pipe_messages import send

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from portal.ops.filesystem.tree import Tree

T = TypeVar("T")

_PACKER: Final = "portal.ops.archive.packer"
_FEW_WAITING: Final = 2
_NICENESS: Final = 5
"""How far the threads that compress step back behind the source: the main thread, pg_dump and the server."""


class _PackingHelper(NamedTuple):
    """A helper process, the socket that trees are handed over by, and the numbers of those that it has."""

    helper: Helper
    control: socket.socket
    trees: set[int]


class CompressorPool:
    """A pool of threads and, from the first pack on, as many helper processes.

    Arguments:
        backup_id: the archive's top directory, which every member's name starts with.
        jobs: how many blocks are worked on at once.
        helpers: do without helper processes where there is little to pack: starting one takes longer than a few files.
        compression: how hard to compress; ``auto`` follows the blocks that wait (ADR 150).
    """

    def __init__(
        self, backup_id: str, jobs: int, *, helpers: bool = True, compression: Compression = Compression.AUTO
    ) -> None:
        self.jobs = jobs
        self._backup_id = backup_id
        self._compression = compression
        self._threads = ThreadPoolExecutor(jobs, thread_name_prefix="compress", initializer=_step_back)
        self._waiting = 0
        self._counting = threading.Lock()
        self._helpers: list[_PackingHelper] = []
        self._idle: queue.SimpleQueue[_PackingHelper] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._trees: dict[int, Tree] = {}
        self._wanted = jobs if helpers else 0
        self._own = packer.Packer()
        self._turn = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is not None:
            for one in self._helpers:
                one.helper.process.kill()
        self._threads.shutdown(cancel_futures=True)
        for one in self._helpers:
            one.control.close()
        for tree in self._trees.values():
            tree.close()
        end_helpers([one.helper for one in self._helpers])

    def compress(self, data: frame.Buffer) -> Future[bytes]:
        """One frame of a block."""
        return self._submit(lambda effort: frame.compress(data, effort))

    def number(self) -> int:
        """A number for a tree that items will be packed of."""
        return next(self._numbers)

    def pack(self, number: int, tree: Tree, items: Sequence[packer.Item]) -> Future[packer.Pack]:
        """One frame of small files of a tree.

        Arguments:
            number: the tree's own number, from `number`.
        """
        self.start_helpers()
        return self._submit(lambda effort: self._pack(number, tree, items, effort))

    def _submit(self, work: Callable[[Effort], T]) -> Future[T]:
        with self._counting:
            self._waiting += 1
        return self._threads.submit(lambda: work(self._effort()))

    def _effort(self) -> Effort:
        """The effort for the next frame: the less waits behind it, the higher."""
        with self._counting:
            self._waiting -= 1
            waiting = self._waiting
        if self._compression is not Compression.AUTO:
            return Effort.FAST if self._compression is Compression.FAST else Effort.HARDEST
        if not waiting:
            return Effort.HARDEST
        if waiting <= _FEW_WAITING:
            return Effort.HARD
        return Effort.MEDIUM if waiting <= 2 * _FEW_WAITING else Effort.FAST

    def start_helpers(self) -> None:
        """Start the helper processes that do not run yet: they are ready when the first files have been found."""
        for _ in range(self._wanted - len(self._helpers)):
            ours, theirs = socket.socketpair()
            with theirs:
                helper = start_helper(_PACKER, str(theirs.fileno()), descriptors=[theirs.fileno()])
            one = _PackingHelper(helper, ours, set())
            self._helpers.append(one)
            self._idle.put(one)

    def forgo_helpers(self) -> None:
        """Do without helper processes from now on, since there is little to pack; those that run are not used."""
        self._wanted = 0

    def _pack(self, number: int, tree: Tree, items: Sequence[packer.Item], effort: Effort) -> packer.Pack:
        if not self._wanted:
            with self._turn:
                if number not in self._trees:
                    self._trees[number] = tree.again()
                return self._own.pack(self._backup_id, self._trees[number], items, effort)
        one = self._idle.get()
        try:
            if number not in one.trees:
                packer.hand_over(one.control, number, tree.fileno())
                one.trees.add(number)
            send(one.helper.requests, (self._backup_id, number, items, int(effort)))
            return packer.receive_pack(one.helper.answers)
        except (EOFError, OSError) as error:
            raise OpsError(
                "a helper process of the backup ended unexpectedly",
                hint="Look for 'out of memory' in the system's log (dmesg), then start the backup again.",
            ) from error
        finally:
            self._idle.put(one)


def _step_back() -> None:
    """Lower the priority of this thread: what is read must not wait for what is compressed."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + _NICENESS)
