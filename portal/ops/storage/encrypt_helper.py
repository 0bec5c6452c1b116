"""A helper process: encrypts parts of a file with age, one after the other, into shared buffers.

`pyrage` holds Python's global lock while it encrypts, so it runs in a process of its own. The first message has the
recipients, which are public; each request names a part of the source and the buffer to fill.
"""

from __future__ import annotations

import os
import signal
import sys
from hashlib import sha256
from typing import Any, Final

from portal.ops.runtime.pipe_messages import receive, send

_READ_BYTES: Final = 1 << 20


class _Part:
    """A part of a file, read from front to back."""

    def __init__(self, descriptor: int, start: int, length: int) -> None:
        self._descriptor = descriptor
        self._at = start
        self._left = length
        self._piece = b""
        self._used = 0
        self.error = 0
        """The number of the operating system's error, where it could not be read."""

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes; `pyrage` asks for 8 KiB at a time."""
        if self._used == len(self._piece):
            try:
                self._piece = os.pread(self._descriptor, min(_READ_BYTES, self._left), self._at)
            except OSError as error:  # `pyrage` makes an error of its own of it
                self.error = error.errno or 0
                raise
            self._at += len(self._piece)
            self._left -= len(self._piece)
            self._used = 0
        end = len(self._piece) if size < 0 else self._used + size
        found = self._piece[self._used : end]
        self._used += len(found)
        return found

    @property
    def is_complete(self) -> bool:
        """True if the file had all of the part."""
        return self._left == 0


class _Buffer:
    """A shared buffer that is written to and hashed."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._digest = sha256()
        self.size = 0
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)

    def write(self, piece: bytes) -> int:
        """Append a piece."""
        os.write(self._descriptor, piece)  # memory: it takes all or raises
        self._digest.update(piece)
        self.size += len(piece)
        return len(piece)

    def flush(self) -> None:
        """Nothing is held back."""

    @property
    def digest(self) -> str:
        """The SHA-256 of all that was written."""
        return self._digest.hexdigest()


def main() -> None:
    """Answer requests until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # signals are left to the process that started this one
    import pyrage

    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    recipients: list[Any] | None = None
    source, buffers = -1, ()
    part: _Part | None = None
    while True:
        try:
            request = receive(requests)
        except EOFError:
            return
        try:
            if recipients is None:
                texts, source, buffers = request
                recipients = [pyrage.x25519.Recipient.from_str(text) for text in texts]
                continue
            start, length, number = request
            part, buffer = _Part(source, start, length), _Buffer(buffers[number])
            pyrage.encrypt_io(part, buffer, recipients)
            if not part.is_complete:
                raise EOFError("the file is shorter than it was")
            send(answers, (buffer.size, buffer.digest, ""))
        except Exception as error:  # any error must reach the waiting process
            unread = part.error if part else 0
            send(answers, (-unread, "", f"{type(error).__name__}: {error}"))
