"""Compression on all cores: threads for large blocks, helper processes for small files.

Deflating and hashing a large block release Python's global lock, so threads run them in parallel. Small files need too
much Python for that: see `packer.py`.
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
_FEW_WAITING: Final = 5
_NICENESS: Final = 5
"""The nice value added to compressing threads, so that the main thread, pg_dump and the server run first."""


class _PackingHelper(NamedTuple):
    """A helper process, the socket through which it receives trees, and the numbers of the trees that it has."""

    helper: Helper
    control: socket.socket
    trees: set[int]


class CompressorPool:
    """A pool of threads for large blocks and of helper processes for small files.

    Arguments:
        backup_id: the archive's top directory, which every member's name starts with.
        jobs: the number of threads, and the most helper processes.
        helpers: whether to use helper processes; for a few files, starting one takes longer than it saves.
        compression: the effort; with ``auto`` it falls as more blocks wait (ADR 150).
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
        """Compress a block into one frame."""
        return self._submit(lambda effort: frame.compress(data, effort))

    def number(self) -> int:
        """A new number for a tree, by which `pack` and the helpers know it."""
        return next(self._numbers)

    def pack(self, number: int, tree: Tree, items: Sequence[packer.Item]) -> Future[packer.Pack]:
        """Read and compress small files of a tree into one frame.

        Arguments:
            number: the number that `number` returned for this tree.
        """
        self.start_helpers()
        return self._submit(lambda effort: self._pack(number, tree, items, effort))

    def _submit(self, work: Callable[[Effort], T]) -> Future[T]:
        with self._counting:
            self._waiting += 1
        return self._threads.submit(lambda: work(self._effort()))

    def _effort(self) -> Effort:
        """The effort for the next frame: the fewer blocks wait, the higher."""
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
        """Start the helper processes that are not running yet, so that they are ready for the first files."""
        for _ in range(self._wanted - len(self._helpers)):
            ours, theirs = socket.socketpair()
            with theirs:
                helper = start_helper(_PACKER, str(theirs.fileno()), descriptors=[theirs.fileno()])
            one = _PackingHelper(helper, ours, set())
            self._helpers.append(one)
            self._idle.put(one)

    def forgo_helpers(self) -> None:
        """Stop using helper processes, since there is little to pack; running ones stay idle."""
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
    """Lower the priority of this thread: reading must not wait for compression."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + _NICENESS)
