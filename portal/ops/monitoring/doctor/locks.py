"""Who holds a lock: the kernel lists every lock with its process and the file's device and inode."""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_LISTED: Final = re.compile(
    r"^\d+: FLOCK +\S+ +(READ|WRITE) +(\d+) ([0-9a-f]+):([0-9a-f]+):(\d+) ", re.MULTILINE | re.IGNORECASE
)
_COMMAND_LENGTH: Final = 60
_NOWHERE: Final = (0, 0)


def holders(paths: Iterable[Path], *, proc: Path = Path("/proc")) -> dict[Path, list[str]]:
    """The processes that hold a lock on each of these files, in words; files that nobody holds are left out.

    Arguments:
        proc: where the kernel tells of locks and processes.
    """
    try:
        listed = _LISTED.findall((proc / "locks").read_text())
    except OSError:
        return {}
    held: dict[tuple[int, int], list[str]] = {}
    for kind, pid, major, minor, inode in listed:
        place = (os.makedev(int(major, 16), int(minor, 16)), int(inode))
        held.setdefault(place, []).append(f"process {pid} ({_command(proc, pid)}){_KINDS[kind.upper()]}")
    found = {path: held.get(_place(path)) for path in paths}
    return {path: who for path, who in found.items() if who}


def is_held(path: Path) -> bool:
    """Whether somebody holds a file alone; also where the kernel does not say who."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


_KINDS: Final = {"READ": "", "WRITE": ", alone"}


def _place(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return _NOWHERE
    return found.st_dev, found.st_ino


def _command(proc: Path, pid: str) -> str:
    """The program and its first words: arguments hold no secret of ours, but other people's may."""
    try:
        words = (proc / pid / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return "of another user or container"
    text = " ".join(os.fsdecode(word) for word in words[:6] if word)
    return text[:_COMMAND_LENGTH].encode("ascii", "replace").decode()
