"""The paths that a task may use: the repository, the uploads, and the directories in BACKUP_ALLOWED_PATHS."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from portal.ops.archive.index import encode_name
from worker.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable

_PLACE_HINT: Final = "Add the directory that it is in to the worker's BACKUP_ALLOWED_PATHS, or use --local."
_ARCHIVE_HINT: Final = (
    "Copy it into the repository, add its directory to the worker's BACKUP_ALLOWED_PATHS, or use --local."
)


def check_archive(archive: str, repository: Path, allowed: Iterable[Path]) -> None:
    """Refuse a path to a file that no task may read.

    Raises:
        RefusedError: the path is not allowed.
    """
    if "/" in archive:
        check_place(archive, (repository, *allowed), hint=_ARCHIVE_HINT)


def check_place(path: str, allowed: Iterable[Path], *, hint: str = _PLACE_HINT) -> None:
    """Refuse a path outside the directories that tasks may use.

    Arguments:
        hint: the hint for the error.

    Raises:
        RefusedError: the path is not allowed.
    """
    try:
        encode_name(path)
        real = Path(path).resolve()
        inside = path.startswith("/") and any(real.is_relative_to(place.resolve()) for place in allowed)
    except (OSError, ValueError, RuntimeError):
        inside = False
    if not inside:
        raise RefusedError(f"a worker may not use {path}", hint=hint)
