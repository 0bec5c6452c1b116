"""Our own files below the uploads: the repository, wherever it is, and directories of restores."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from beat.watcher.debounce import parents
from portal.ops.archive.index import encode_name
from portal.ops.model import RESTORE_DIRECTORY

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_STAGE: Final = f"{RESTORE_DIRECTORY}/"


def is_staged(path: str) -> bool:
    """True if a path, relative to the uploads, is in a restore's own directory."""
    return path == RESTORE_DIRECTORY or path.startswith(_STAGE)


def without_repository(paths: Iterable[str], root: str, repository: Path) -> frozenset[str]:
    """The paths outside the repository, which is identified by device and inode, whatever its name there.

    Arguments:
        paths: paths relative to the uploads.
        root: the uploads.
    """
    try:
        found = repository.stat()
    except OSError:
        return frozenset(paths)
    seen: dict[str, bool] = {}

    def is_repository(directory: str) -> bool:
        if directory not in seen:
            try:
                here = os.lstat(os.path.join(os.fsencode(root), encode_name(directory)))
                seen[directory] = (here.st_dev, here.st_ino) == (found.st_dev, found.st_ino)
            except OSError:
                seen[directory] = False
        return seen[directory]

    return frozenset(path for path in paths if not any(map(is_repository, (*parents(path), path))))
