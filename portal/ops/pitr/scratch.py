"""The directory of a scratch server, which is always removed, at the latest by the next command.

    .scratch/<name>   in the repository: a file that its process holds locked, with the path of the directory in it

A killed process holds no lock. So any process that finds such a file unlocked removes the directory.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import secrets
import shutil
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from portal.ops.errors import DiskFullError, RepositoryError
from portal.ops.filesystem.temporary import temporary_name
from portal.ops.repository.durable import make_hidden, sync_directory
from portal.ops.repository.locks import try_lock
from portal.ops.runtime.logs import engine_log
from portal.ops.units import human_bytes, system_reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from portal.ops.repository.repository import Repository

log = engine_log("portal.ops.pitr.scratch")

DIRECTORY: Final = ".scratch"

_PREFIX: Final = "kekkai-scratch-"
_LONGEST_PATH: Final = 60
"""The longest path of a directory that still leaves room for a socket's path, which has at most 107 bytes."""

_PLAIN: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+,:@")
_SERVER_USERS: Final = ("postgres", "nobody")
_LOOKS: Final = 50
_PAUSE_SECONDS: Final = 0.1


class Owner(NamedTuple):
    """The user that a scratch server runs as, if not the user of this process."""

    uid: int
    gid: int
    name: str


def server_owner() -> Owner | None:
    """The user for a scratch server, since PostgreSQL refuses to run as root; None for the user of this process.

    Raises:
        RepositoryError: this process runs as root, and there is no other user.
    """
    if os.geteuid() != 0:
        return None
    for name in _SERVER_USERS:
        with suppress(KeyError):
            found = pwd.getpwnam(name)
            return Owner(found.pw_uid, found.pw_gid, name)
    raise RepositoryError(
        "a scratch server cannot run as root, and there is neither a user postgres nor nobody",
        hint="Run the restore as the user that the backups belong to, or create a user postgres.",
    )


def scratch_parent(repository: Path, owner: Owner | None) -> Path:
    """The directory in which to create scratch directories: accessible to the user, with a short path."""
    places = [repository / DIRECTORY, Path(tempfile.gettempdir()).resolve(), Path("/var/tmp")]  # noqa: S108
    for place in places:
        if _suits(place, owner):
            return place
    return Path("/tmp")  # noqa: S108  (a directory of our own is made in it)


@contextmanager
def scratch_directory(
    repository: Repository, owner: Owner | None, needed_bytes: int, *, parent: Path | None = None
) -> Iterator[Path]:
    """A directory for one scratch server, removed at the end of the context.

    Arguments:
        needed_bytes: about how many bytes it will take.
        parent: the directory to create it in; by default a suitable one is chosen.

    Raises:
        DiskFullError: there is no room for it.
        RepositoryError: it cannot be created.
    """
    records = repository.path / DIRECTORY
    parent = parent or scratch_parent(repository.path, owner)
    try:
        make_hidden(records)
        check_room(parent, needed_bytes)
        name = _PREFIX + secrets.token_hex(6)
        directory = parent / name
        record = records / f"{name}.lock"
        unlocked = records / temporary_name(record.name)
        descriptor = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise RepositoryError(
            f"cannot make a directory for a scratch server in {parent}: {system_reason(error)}",
            hint="Look at the disk and at its rights; TMPDIR names another place.",
        ) from error
    try:
        try_lock(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, os.fsencode(directory))
        os.fsync(descriptor)
        unlocked.rename(record)  # nobody finds it under its name before it is locked
        sync_directory(records)
        directory.mkdir(mode=0o700)
        if owner:
            os.chown(directory, owner.uid, owner.gid)
        yield directory
    finally:
        _remove(directory)
        for path in (record, unlocked):
            path.unlink(missing_ok=True)
        os.close(descriptor)


def check_room(place: Path, needed_bytes: int) -> None:
    """Make sure that there is room for a scratch server.

    Raises:
        DiskFullError: there is not enough.
    """
    there = next(path for path in (place, *place.parents) if path.is_dir())
    disk = os.statvfs(there)
    free = disk.f_bavail * disk.f_frsize
    if free < needed_bytes:
        raise DiskFullError(
            f"a scratch server needs about {human_bytes(needed_bytes)} in {there}, and {human_bytes(free)} are free",
            hint="Make room, or set TMPDIR to a directory on a larger disk.",
        )


def sweep_scratch(repository: Repository) -> list[str]:
    """Remove the scratch directories of killed processes; return their paths."""
    records = repository.path / DIRECTORY
    swept = []
    for record in sorted(records.glob(f"{_PREFIX}*.lock")) if records.is_dir() else ():
        with suppress(FileNotFoundError, PermissionError):
            descriptor = os.open(record, os.O_RDWR)
            try:
                if not try_lock(descriptor, fcntl.LOCK_EX):
                    continue
                directory = Path(os.fsdecode(os.read(descriptor, 4096)))
                if directory.name == record.name.removesuffix(".lock"):
                    _remove(directory)
                record.unlink(missing_ok=True)
                swept.append(str(directory))
                log.warning("scratch_removed", path=str(directory))
            finally:
                os.close(descriptor)
    return swept


def _remove(directory: Path) -> None:
    """Remove a tree to which a server that is just ending may still write."""
    for _ in range(_LOOKS):
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return
        time.sleep(_PAUSE_SECONDS)
    log.warning("scratch_not_removed", path=str(directory))


def _suits(place: Path, owner: Owner | None) -> bool:
    if len(str(place)) > _LONGEST_PATH or not set(str(place)) <= _PLAIN:
        return False
    there = place if place.is_dir() else place.parent
    if owner is None:
        return os.access(there, os.W_OK | os.X_OK)
    if there != place and there.stat().st_uid != owner.uid:
        return False  # it is going to be accessible to the repository's owner only
    return all(reachable(path, owner) for path in (there, *there.parents))


def reachable(path: Path, owner: Owner) -> bool:
    """True if a user may pass through a directory or run a program."""
    found = path.stat()
    if found.st_uid == owner.uid:
        return bool(found.st_mode & 0o100)
    return bool(found.st_mode & (0o010 if found.st_gid == owner.gid else 0o001))
