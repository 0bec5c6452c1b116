"""What the operating system refuses in a repository, as errors that say what to do."""

from __future__ import annotations

import errno
import os
import shlex
from typing import TYPE_CHECKING, Final

from portal.ops.errors import DiskFullError, RepositoryError

if TYPE_CHECKING:
    from pathlib import Path


_OWNER_HINT: Final = (
    "Run this as the user that the backups belong to, or give them to the user that runs it: "
    "chown -R kekkai:kekkai {path}"
)

_MAKE_HINT: Final = "Make it once, as root: install -d -m 700 -o kekkai -g kekkai {path}"


def _trouble(error: OSError, doing: str, path: Path, *, denied: str = "") -> RepositoryError:
    reason = os.strerror(error.errno or 0).lower()
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(path)
    if error.errno in (errno.EACCES, errno.EPERM):
        return RepositoryError(f"{doing} {path}: {reason}", hint=denied or _hint(_OWNER_HINT, path))
    return RepositoryError(
        f"{doing} {path}: {reason}", hint="Look at the disk and its mount; BACKUP_LOCAL_PATH names it."
    )


def _hint(text: str, path: Path) -> str:
    return text.format(path=shlex.quote(str(path)))


def disk_full(path: Path) -> DiskFullError:
    """The error for a repository that has no room left."""
    return DiskFullError(
        f"no space left for the archive in {path}",
        hint="Remove old archives, or move BACKUP_LOCAL_PATH to a larger disk; what was written of this one is gone.",
    )
