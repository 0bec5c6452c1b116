"""Writes the larger files of a stage in threads, bypassing the page cache.

A stage is not read again soon, so its files should not displace the running portal's data from memory; and data that is
on the disk already needs no sync at the end. A block is written directly (`O_DIRECT`) if the file system supports it,
otherwise through the page cache. Several threads write, since each waits for its block.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import threading
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from types import TracebackType

    from portal.ops.filesystem.attributes import Attributes

    _Job = tuple["WrittenFile", memoryview, int, int]

ALIGNMENT: Final = 1 << 12
"""Direct writes must be aligned to this in memory and in the file, and have a multiple of this length."""

BLOCK_BYTES: Final = 1 << 20
_THREADS: Final = 4
_BLOCKS: Final = 2 * _THREADS


class Writers:
    """Threads that write, started with the first file, and their buffers; they end with the context.

    Open files with `open_flags`, which contains `O_DIRECT` once a file has shown that the file system supports it.
    """

    def __init__(self) -> None:
        self.open_flags = 0
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._blocks: SimpleQueue[memoryview] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._open: set[WrittenFile] = set()
        self._failure: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for _thread in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        for file in self._open:
            file.give_up()
        if kind is None:
            self._check()

    def file(self, descriptor: int, attributes: Attributes, born: Attributes | None = None) -> WrittenFile:
        """Write to a new, empty file; its descriptor is closed when everything is written.

        Arguments:
            attributes: the final attributes of the file.
            born: the attributes that it was created with.
        """
        if not self._threads:
            self._start()
        if not self.open_flags:
            with suppress(OSError):  # not every file system supports it
                fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_DIRECT)
                self.open_flags = os.O_DIRECT
        file = WrittenFile(self, descriptor, attributes, born)
        self._open.add(file)
        return file

    def block(self) -> memoryview:
        """A buffer to write from; waits until one is free.

        Raises:
            OSError: an earlier write failed.
        """
        self._check()
        return self._blocks.get()

    def submit(self, job: _Job) -> None:
        """Have a block written; it then becomes free again."""
        self._jobs.put(job)

    def _start(self) -> None:
        for _ in range(_BLOCKS):
            self._blocks.put(memoryview(mmap.mmap(-1, BLOCK_BYTES)))
        for number in range(_THREADS):
            thread = threading.Thread(target=self._work, name=f"stage-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            file, block, length, offset = job
            try:
                if not self._failure:
                    file.put(block[:length], offset)
                    if file.release():
                        self._open.discard(file)
                        file.end()
            except BaseException as error:  # `_check` raises it
                self._failure = error
            self._blocks.put(block)

    def _check(self) -> None:
        if self._failure:
            raise self._failure


class WrittenFile:
    """One file that is being written; made by `Writers.file`. Skipped parts become holes."""

    def __init__(
        self, writers: Writers, descriptor: int, attributes: Attributes, born: Attributes | None = None
    ) -> None:
        self._writers = writers
        self._descriptor = descriptor
        self._attributes = attributes
        self._born = born
        self._block: memoryview | None = None
        self._filled = 0
        self._offset = 0
        self._has_holes = False
        self._is_whole = False
        self._on_the_way = 0
        self._counting = threading.Lock()
        self._takes_direct = writers.open_flags == os.O_DIRECT

    def write(self, data: memoryview) -> None:
        """Append data.

        Raises:
            OSError: a write failed, to this file or another.
        """
        while data:
            if self._block is None:
                self._block = self._writers.block()
            piece = data[: BLOCK_BYTES - self._filled]
            self._block[self._filled : self._filled + len(piece)] = piece
            self._filled += len(piece)
            data = data[len(piece) :]
            if self._filled == BLOCK_BYTES:
                self._submit()

    def skip(self, count: int) -> None:
        """Skip zeros, from one multiple of `ALIGNMENT` to another."""
        if self._filled:
            self._submit()
        self._offset += count
        self._has_holes = True

    def finish(self) -> None:
        """Have the rest written; the file then gets its attributes and is closed."""
        self._submit(is_last=True)

    def _submit(self, *, is_last: bool = False) -> None:
        block, length, offset = self._block or self._writers.block(), self._filled, self._offset
        self._block, self._filled, self._offset = None, 0, offset + length
        with self._counting:
            self._on_the_way += 1
            self._is_whole = is_last
        self._writers.submit((self, block, length, offset))

    # -- for the threads --------------------------------------------------------------------------------------------

    def put(self, data: memoryview, offset: int) -> None:
        """Write a block, directly as far as length and file system allow."""
        while data:
            aligned = len(data) - len(data) % ALIGNMENT
            if aligned and self._takes_direct:
                try:
                    count = os.pwrite(self._descriptor, data[:aligned], offset)
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
                    self._takes_direct = False
                    continue
            else:  # other threads may still be writing: from here on through the page cache
                fcntl.fcntl(self._descriptor, fcntl.F_SETFL, 0)
                count = os.pwrite(self._descriptor, data, offset)
            data, offset = data[count:], offset + count

    def release(self) -> bool:
        """Count a block as written; return True if it was the file's last."""
        with self._counting:
            self._on_the_way -= 1
            return self._is_whole and not self._on_the_way

    def end(self) -> None:
        """Set the file's length and attributes, and close it."""
        try:
            if self._has_holes:
                os.ftruncate(self._descriptor, self._offset)  # it may end in a hole
            self._attributes.give_to(self._descriptor, self._born)
        finally:
            os.close(self._descriptor)

    def give_up(self) -> None:
        """Close the file as it is."""
        os.close(self._descriptor)
