"""Locks: what may run at the same time, how long to wait, and who holds a lock.

A lock is the kernel's, on an open file (`flock`): it ends with the process, however that ends. Everything that reads or
adds shares the lock on the repository. Each archive has a lock of its own that readers share: a prune locks only the
archives it is about to remove and skips those in use, so it need not wait for the longest backup.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from portal.ops.errors import ArchiveAbsentError, BusyError
from portal.ops.hints import Advice
from portal.ops.repository.durable import open_own
from portal.ops.repository.faults import explain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Found = TypeVar("Found")

_POLL_SECONDS: Final = 0.05
_WAIT: Final = "Wait for it to end, then try again."


def wait_for(attempt: Callable[[], Found | None], seconds: float, *, pause: float = _POLL_SECONDS) -> Found | None:
    """Call a function until it returns a result; return None if it does not in time.

    Arguments:
        attempt: called at once, and again after each pause.
        seconds: how long to try; may be infinity.
        pause: seconds between two attempts.
    """
    deadline = time.monotonic() + seconds
    while (found := attempt()) is None:
        if time.monotonic() >= deadline:
            return None
        time.sleep(pause)
    return found


def try_lock(descriptor: int, kind: int) -> bool:
    """Lock an open file without waiting; return whether that succeeded.

    Arguments:
        kind: `fcntl.LOCK_SH` or `fcntl.LOCK_EX`.
    """
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock_alone_by_name(descriptor: int, path: Path) -> bool:
    """Lock an open file exclusively without waiting; return whether that succeeded and the name still leads to it.

    Between opening and locking, the file may be removed or renamed, or its name given to another.
    """
    try:
        return try_lock(descriptor, fcntl.LOCK_EX) and os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def lock_within(descriptor: int, kind: int, seconds: float) -> bool:
    """Lock an open file when it is free; return whether that was in time."""
    return wait_for(lambda: try_lock(descriptor, kind) or None, seconds) is not None


@contextmanager
def locked_file(path: Path, kind: int, seconds: float, *, what: str, hint: str = _WAIT) -> Iterator[None]:
    """Hold the lock on a file while the context lasts.

    Arguments:
        path: the file, created if necessary.
        kind: `fcntl.LOCK_SH` or `fcntl.LOCK_EX`.
        seconds: how long to wait for others.
        what: what the lock protects, for the error.
        hint: the hint if the lock stays taken.

    Raises:
        BusyError: the lock stayed taken.
        RepositoryError: the file cannot be opened.
    """
    try:
        descriptor = open_own(path)
    except OSError as error:
        raise explain(error, "cannot open", path) from error
    try:
        if not lock_within(descriptor, kind, seconds):
            raise BusyError(f"{what} is locked by {holder(descriptor)}", hint=hint)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def locked_alone(directory: Path, busy: str) -> Iterator[None]:
    """Lock a directory exclusively, without waiting and without writing.

    Arguments:
        busy: the message if another process holds the lock.

    Raises:
        BusyError: another process holds the lock.
        OSError: the directory does not exist or cannot be read.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not try_lock(descriptor, fcntl.LOCK_EX):
            raise BusyError(f"{busy}: {holder(descriptor)}", hint=_WAIT)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def archive_lock(archive: Path, timeout: float) -> Iterator[None]:
    """Keep an archive from being pruned; needs no more than permission to read it.

    Arguments:
        timeout: seconds to wait for a prune that is examining it.

    Raises:
        ArchiveAbsentError: it has just been removed.
        BusyError: the lock stayed taken.
        RepositoryError: it cannot be opened.
    """
    descriptor = _open_archive(archive)
    try:
        if not lock_within(descriptor, fcntl.LOCK_SH, timeout):
            raise BusyError(f"{archive.name} is locked by {holder(descriptor)}", hint=_WAIT)
        if not _is_still(descriptor, archive):
            raise _absent(archive)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def claim(archive: Path) -> Iterator[bool]:
    """Lock an archive exclusively, to remove it; return whether it exists and is not in use.

    Raises:
        RepositoryError: it cannot be opened.
    """
    try:
        descriptor = _open_archive(archive)
    except ArchiveAbsentError:
        yield False
        return
    try:
        yield try_lock(descriptor, fcntl.LOCK_EX) and _is_still(descriptor, archive)
    finally:
        os.close(descriptor)


def _open_archive(archive: Path) -> int:
    try:
        return os.open(archive, os.O_RDONLY)
    except FileNotFoundError as error:
        raise _absent(archive) from error
    except OSError as error:
        raise explain(error, "cannot read", archive) from error


def _is_still(descriptor: int, archive: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(archive))
    except FileNotFoundError:
        return False


def _absent(archive: Path) -> ArchiveAbsentError:
    return ArchiveAbsentError(f"{archive.name} has just been removed", hint=f"{Advice.LIST_ARCHIVES} lists the others.")


# -- who has a lock --------------------------------------------------------------------------------------------------

_LISTED: Final = re.compile(
    r"^\d+: FLOCK +\S+ +(READ|WRITE) +(\d+) ([0-9a-f]+):([0-9a-f]+):(\d+) ", re.MULTILINE | re.IGNORECASE
)
_KINDS: Final = {"READ": "", "WRITE": ", alone"}
_COMMAND_LENGTH: Final = 60
_SOMEBODY: Final = "another process"


def holders(paths: Iterable[Path], *, proc: Path = Path("/proc")) -> dict[Path, list[str]]:
    """Describe the processes that hold locks on files; files without a lock are left out.

    Arguments:
        proc: the directory in which the kernel lists locks and processes.
    """
    listed = _listed(proc)
    found = {}
    for path in paths:
        with suppress(OSError):
            seen = path.stat()
            found[path] = listed.get((seen.st_dev, seen.st_ino), [])
    return {path: who for path, who in found.items() if who}


def holder(descriptor: int) -> str:
    """Describe the process that holds a lock on an open file, as far as the kernel says."""
    seen = os.fstat(descriptor)
    who = _listed(Path("/proc")).get((seen.st_dev, seen.st_ino), [])
    return who[0].removesuffix(_KINDS["WRITE"]) if who else _SOMEBODY


def is_locked_alone(path: Path) -> bool:
    """True if a file is locked exclusively, even if the kernel does not say by whom."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return not try_lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _listed(proc: Path) -> dict[tuple[int, int], list[str]]:
    """The holders of locks, by device and inode."""
    try:
        text = (proc / "locks").read_text()
    except OSError:
        return {}
    found: dict[tuple[int, int], list[str]] = {}
    for kind, pid, major, minor, inode in _LISTED.findall(text):
        place = (os.makedev(int(major, 16), int(minor, 16)), int(inode))
        found.setdefault(place, []).append(f"process {pid} ({_command(proc, pid)}){_KINDS[kind.upper()]}")
    return found


def _command(proc: Path, pid: str) -> str:
    """The program and its first arguments: ours hold no secrets, but those of other programs may."""
    try:
        words = (proc / pid / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return "of another user or container"
    text = " ".join(os.fsdecode(word) for word in words[:6] if word)[:_COMMAND_LENGTH]
    return "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in text)
