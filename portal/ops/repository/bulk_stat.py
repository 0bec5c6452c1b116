"""The `stat` results of archives and sidecars, which show changes quickly, even among very many files."""

from __future__ import annotations

import os
import threading
from itertools import islice
from struct import Struct
from typing import TYPE_CHECKING, Final, NoReturn

from portal.ops.model import SIDECAR_SUFFIX

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

State = tuple[int, int, int, bytes]
"""An archive's mode (0 if it is gone), size, mtime in ns, and the stamps of archive and sidecar."""

STAMP: Final = Struct("3Q")
"""Size, ctime and inode of a file or directory; while they stay the same, so does the content."""

ABSENT: Final = STAMP.pack(0, 0, 0)

_SIDECAR: Final = SIDECAR_SUFFIX.encode()
_RECORD: Final = Struct(f"3Q{2 * STAMP.size}s")
_AT_ONCE: Final = 500
_MANY: Final = 5_000
"""For fewer archives, a helper process takes longer to start than it saves."""


def stamp(directory: int, name: bytes) -> bytes:
    """The stamp of a file, or `ABSENT`.

    Arguments:
        directory: the descriptor of the directory in which the name is looked up.
    """
    try:
        status = os.stat(name, dir_fd=directory)
    except OSError:
        return ABSENT
    return STAMP.pack(status.st_size, status.st_ctime_ns, status.st_ino)


def states(directory: int, names: Sequence[bytes]) -> Iterator[State]:
    """The state of each archive, in the order of the names; for many archives a helper process does a part."""
    helped = len(names) >= _MANY and threading.active_count() == 1
    done = 0
    for state in _from_helper(directory, names) if helped else ():
        yield state
        done += 1
    for name in islice(names, done, None):  # also those that a killed helper did not send
        yield _state(directory, name)


def _state(directory: int, name: bytes) -> State:
    try:
        status = os.stat(name, dir_fd=directory)
    except OSError:
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except OSError:
            return 0, 0, 0, ABSENT + ABSENT
    own = STAMP.pack(status.st_size, status.st_ctime_ns, status.st_ino)
    return status.st_mode, status.st_size, status.st_mtime_ns, own + stamp(directory, name + _SIDECAR)


def _from_helper(directory: int, names: Sequence[bytes]) -> Iterator[State]:
    """The states that a helper process sent before it ended."""
    receiving, sending = os.pipe()
    try:
        helper = os.fork()
    except OSError:  # too many processes: do without
        os.close(receiving)
        os.close(sending)
        return
    if helper == 0:
        _send_states(directory, names, sending)
    os.close(sending)
    try:
        with open(receiving, "rb") as records:
            while block := records.read(_AT_ONCE * _RECORD.size):
                yield from _RECORD.iter_unpack(block[: len(block) // _RECORD.size * _RECORD.size])
    finally:
        os.waitpid(helper, 0)


def _send_states(directory: int, names: Sequence[bytes], sending: int) -> NoReturn:
    """The whole life of the helper: it must not run this process's exit handlers or flush its files."""
    try:
        with open(sending, "wb", buffering=_AT_ONCE * _RECORD.size) as records:
            for name in names:
                records.write(_RECORD.pack(*_state(directory, name)))
    finally:
        os._exit(0)
