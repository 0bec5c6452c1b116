"""Messages between a process and its helpers, over pipes.

A message is its length (8 bytes) and a value in Python's `marshal` format: both ends are the same interpreter.
"""

from __future__ import annotations

import marshal
from struct import Struct
from typing import Any, BinaryIO, Final

_LENGTH: Final = Struct("<Q")


def encode(value: Any) -> bytes:
    """One message."""
    data = marshal.dumps(value)
    return _LENGTH.pack(len(data)) + data


def send(stream: BinaryIO, value: Any) -> None:
    """Write one message."""
    stream.write(encode(value))
    stream.flush()


def receive(stream: BinaryIO) -> Any:
    """Read one message; EOFError if there is none, or it is incomplete."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(head)
    return marshal.loads(stream.read(length))  # noqa: S302  (from the process that started this one)
