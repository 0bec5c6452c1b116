"""An output file that is written once from front to back, hashed, and synced to the disk."""

from __future__ import annotations

import os
import threading
from hashlib import sha256
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from portal.ops.archive.frame import Buffer

_WRITE_BEHIND_BYTES: Final = 32 << 20
_READ_BYTES: Final = 1 << 20


class OutputFile:
    """Appends data, fills in what was left out, and syncs.

    A thread writes finished parts to the disk while the next are being made, so the last sync has little to do.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._behind = threading.Thread(target=self._write_behind, name="write-behind", daemon=True)
        self._wake = threading.Semaphore(0)
        self._closing = False
        self._started = False
        self._synced = 0
        self._failure: OSError | None = None
        self._hash, self._hashed = sha256(), 0
        self.position = 0

    def write(self, data: Buffer) -> None:
        """Append data."""
        self._write_at(self.position, data)
        self.position += len(data)
        self._push()

    def _push(self) -> None:
        if self.position - self._synced >= _WRITE_BEHIND_BYTES:
            self._synced = self.position
            if not self._started:
                self._started = True
                self._behind.start()
            self._wake.release()

    def skip(self, length: int) -> None:
        """Leave `length` bytes out, for `patch` to fill in later."""
        self.position += length

    def patch(self, offset: int, data: Buffer) -> None:
        """Write data into room that `skip` left."""
        self._write_at(offset, data)

    def settle(self, end: int) -> None:
        """Hash the file up to `end`, which must not change any more, and push that part to the disk."""
        self._hash_to(end)
        self.position = max(self.position, end)
        self._push()

    def truncate(self, length: int) -> None:
        """Remove everything from `length` on."""
        os.ftruncate(self._descriptor, length)
        self.position = self._synced = length
        if length < self._hashed:
            self._hash, self._hashed = sha256(), 0

    def finish(self) -> str:
        """Wait until everything is on the disk; return its SHA-256 in hexadecimal."""
        self._stop_write_behind()
        sync = threading.Thread(target=self._sync, name="sync")
        sync.start()
        self._hash_to(None)
        sync.join()
        if self._failure:
            raise self._failure
        return self._hash.hexdigest()

    def close(self) -> None:
        """Close the file, finished or not."""
        self._stop_write_behind()
        os.close(self._descriptor)

    def _write_at(self, offset: int, data: Buffer) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._descriptor, view, offset)
            view, offset = view[written:], offset + written

    def _hash_to(self, end: int | None) -> None:
        """Continue the hash up to `end` or to the end of the file."""
        buffer = bytearray(_READ_BYTES)
        view = memoryview(buffer)
        while end is None or self._hashed < end:
            wanted = _READ_BYTES if end is None else min(_READ_BYTES, end - self._hashed)
            if not (count := os.preadv(self._descriptor, [view[:wanted]], self._hashed)):
                return
            self._hash.update(view[:count])
            self._hashed += count

    def _sync(self) -> None:
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            self._failure = error

    def _write_behind(self) -> None:
        while True:
            self._wake.acquire()
            if self._closing:
                return
            try:
                os.fdatasync(self._descriptor)
            except OSError as error:
                self._failure = error  # `finish` reports this error: a later fsync would not
                return

    def _stop_write_behind(self) -> None:
        if self._started:
            self._closing = True
            self._wake.release()
            self._behind.join()
            self._started = False
