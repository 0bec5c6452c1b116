"""Writes the frames of an archive to its file: compressed on all cores, written in order."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final

from portal.ops.archive import index
from portal.ops.archive.blocks import Block

if TYPE_CHECKING:
    from collections.abc import Callable

    from portal.ops.archive.compressor_pool import CompressorPool
    from portal.ops.archive.output_file import OutputFile

_DONE: Final[Future[None]] = Future()
_DONE.set_result(None)
_AHEAD: Final = 14
"""The most blocks that wait to be compressed; the effort of compression depends on how many wait."""


class FrameOutput:
    """Writes frames in the order in which they were submitted.

    Arguments:
        file: the archive, still empty.
        pool: compresses the frames.
    """

    def __init__(self, file: OutputFile, pool: CompressorPool) -> None:
        self.file = file
        self.frames = index.FrameTable()
        self.blocks: SimpleQueue[Block] = SimpleQueue()
        self._pool = pool
        self._pending: deque[tuple[Future[Any], Callable[[Any], None]]] = deque()
        for _ in range(pool.jobs + _AHEAD + 2):
            self.blocks.put(Block())

    def leave_room(self, length: int, tar_length: int) -> None:
        """Leave room for a frame of known size that is written last."""
        self.frames.append(length, tar_length)
        self.file.skip(length)

    def take_back(self, number: int) -> None:
        """Remove a frame and all after it. Nothing may be pending."""
        self.frames.truncate(number)
        self.file.truncate(self.frames.end)

    def submit_block(self, block: Block, length: int, numbers: list[int] | None = None) -> None:
        """Submit the start of a block for compression; append the frame's number to `numbers` if that is empty."""
        if not length:
            self.blocks.put(block)
            return

        def take(done: bytes) -> None:
            self.blocks.put(block)
            number = self.write_frame(done, length)
            if numbers is not None and not numbers:
                numbers.append(number)

        self.submit(self._pool.compress(block.data[:length]), take)

    def submit(self, future: Future[Any], take: Callable[[Any], None]) -> None:
        """Pass a result to `take` after all results submitted earlier."""
        self._pending.append((future, take))
        self._drain_to(self._pool.jobs + _AHEAD)

    def then(self, done: Callable[[], None]) -> None:
        """Call a function after everything submitted earlier has been written."""
        self.submit(_DONE, lambda _: done())

    def drain(self) -> None:
        """Wait until everything submitted is written."""
        self._drain_to(0)

    def _drain_to(self, left: int) -> None:
        while len(self._pending) > left:
            future, take = self._pending.popleft()
            take(future.result())

    def write_frame(self, data: bytes, tar_length: int) -> int:
        """Append a frame; return its number."""
        self.file.write(data)
        return self.frames.append(len(data), tar_length)
