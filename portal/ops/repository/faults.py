"""Turns errors of the operating system into errors with the path and a hint."""

from __future__ import annotations

import errno
import os
import shlex
from typing import TYPE_CHECKING, Final

from portal.ops.errors import DiskFullError, OpsError, RepositoryError
from portal.ops.limits import limit_hint
from portal.ops.units import system_reason

if TYPE_CHECKING:
    from pathlib import Path

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_DENIED: Final = frozenset({errno.EACCES, errno.EPERM})
_OWNER: Final = (
    "Run this as the user that the backups belong to, or give them to the user that runs it: "
    "chown -R kekkai:kekkai {path}"
)
_MAKE: Final = "Make it once, as root: install -d -m 700 -o kekkai -g kekkai {path}"
_DISK: Final = "Look at the disk and its mount; BACKUP_LOCAL_PATH names it."
_LOOK: Final = "Look at the disk and the permissions there."
_WHOSE: Final = "Run this as root, or as the user whose it is: 'ls -ld' shows that."
_ROOM: Final = "Free space on its file system; nothing of what was being written there is left."


def is_full(error: OSError) -> bool:
    """True if a disk or a quota is full."""
    return error.errno in _FULL


def explain(error: OSError, doing: str, path: Path, *, denied: str = "", hint: str = "") -> RepositoryError:
    """The error for a refused access to a file of a repository.

    Arguments:
        doing: what was tried, such as ``cannot read``.
        path: the file.
        denied: the hint if the user lacks permission; by default it says to give the directory to that user.
        hint: the hint for any other reason than a full disk, a missing permission or a limit.
    """
    if is_full(error):
        return DiskFullError(f"{doing} {path}: {_reason(error)}", hint=_ROOM)
    if error.errno in _DENIED:
        return RepositoryError(f"{doing} {path}: {_reason(error)}", hint=denied or owner_hint(path))
    return RepositoryError(f"{doing} {path}: {_reason(error)}", hint=limit_hint(error) or hint or _DISK)


def explain_any(error: OSError, then: str = "", *, kind: type[OpsError] = RepositoryError) -> OpsError:
    """The error for a refused access somewhere in an operation; the operating system may name the path.

    Arguments:
        then: the end of the hint, after what to do about the disk, the permissions or the limit.
        kind: the class of the error, unless the disk is full.
    """
    what = f"cannot use {os.fsdecode(error.filename)}" if error.filename else "the operating system refused"
    said = f"{what}: {_reason(error)}"
    if is_full(error):
        return DiskFullError(said, hint=f"Free space on its file system. {then}".rstrip())
    first = _WHOSE if error.errno in _DENIED else limit_hint(error) or _LOOK
    return kind(said, hint=f"{first} {then}".rstrip())


def owner_hint(path: Path) -> str:
    """The hint for a repository file that belongs to another user."""
    return _OWNER.format(path=shlex.quote(str(path)))


def make_hint(path: Path) -> str:
    """The hint for a repository that cannot be created."""
    return _MAKE.format(path=shlex.quote(str(path)))


def disk_full(path: Path) -> DiskFullError:
    """The error for a repository without room for an archive."""
    return DiskFullError(
        f"no space left for the archive in {path}",
        hint="Remove old archives, or move BACKUP_LOCAL_PATH to a larger disk; the unfinished one is removed.",
    )


def _reason(error: OSError) -> str:
    """The reason; an OSError made from a number alone has no text."""
    if error.errno and not error.strerror:
        return system_reason(OSError(error.errno, os.strerror(error.errno)))
    return system_reason(error)
