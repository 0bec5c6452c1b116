"""The arguments of the tasks: what comes from a queue is checked before anything is done with it.

Each task has a class of its own here; its fields are the keyword arguments that the task takes, in the types of JSON.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Final, Self, get_args, get_origin, get_type_hints

from portal.ops.archive.index import encode_name
from portal.ops.model import VerifyLevel
from portal.ops.restore.config import RestoreScope
from worker.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_MOST_CHARACTERS: Final = 4096
_MOST_PATHS: Final = 100_000
_PLACE_HINT: Final = "Add the directory that it is in to the worker's BACKUP_ALLOWED_PATHS, or use --local."
_ARCHIVE_HINT: Final = (
    "Copy it into the repository, add its directory to the worker's BACKUP_ALLOWED_PATHS, or use --local."
)
_HINT: Final = "Tasks are made by ./tools/backup.sh, ./tools/restore.sh, beat and the watcher; this one was not."


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What every task can be told.

    Arguments:
        actor: the person at the command, for the access log.
    """

    actor: str | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """The arguments that a message has.

        Raises:
            RefusedError: it has one that the task does not take, or of another type, or lacks one.
        """
        hints = get_type_hints(cls)
        names = {field.name for field in fields(cls)}
        for name, value in given.items():
            if name not in names or not _fits(value, hints[name]):
                raise RefusedError(f"the task has an argument {name!r} that makes no sense", hint=_HINT)
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in given.items()
        }
        try:
            return cls(**values)
        except TypeError as error:
            raise RefusedError("the task lacks an argument", hint=_HINT) from error


@dataclass(frozen=True, kw_only=True)
class RequestArguments(Arguments):
    """What a request is told whose id has the moment in it.

    Arguments:
        moment: the slot, or when somebody asked for it, in ISO 8601.
    """

    moment: str

    def when(self) -> datetime:
        """The moment.

        Raises:
            RefusedError: it is none.
        """
        try:
            return datetime.fromisoformat(self.moment).astimezone(UTC)
        except (ValueError, OverflowError) as error:
            raise RefusedError(f"{self.moment!r} is no moment", hint=_HINT) from error


@dataclass(frozen=True, kw_only=True)
class BackupArguments(RequestArguments):
    """What a backup is told.

    Arguments:
        incremental: only what has changed; for the media.
        changed: what has, relative to the uploads, where somebody knows; the whole tree is looked at otherwise.
    """

    incremental: bool = False
    changed: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class VerifyArguments(Arguments):
    """What a verification is told."""

    archive: str
    level: str = VerifyLevel.CONTENTS.value


@dataclass(frozen=True, kw_only=True)
class RestoreArguments(RequestArguments):
    """What a restore is told: the options of `restore.sh`.

    Arguments:
        verify: look at the whole archive first; what is restored is checked while it is staged anyway.
    """

    archive: str
    scope: str = RestoreScope.FULL.value
    dry_run: bool = False
    mode: str = "auto"
    exact: bool = False
    patterns: tuple[str, ...] = ()
    target_database: str | None = None
    create_database: bool = False
    media_dir: str | None = None
    jobs: int | None = None
    allow_unverified: bool = False
    allow_outside_links: bool = False
    verify: bool = True


@dataclass(frozen=True, kw_only=True)
class RollbackArguments(Arguments):
    """Which restore is taken back."""

    restore_id: str


@dataclass(frozen=True, kw_only=True)
class PruneArguments(Arguments):
    """What a prune is told."""

    dry_run: bool = False


@dataclass(frozen=True, kw_only=True)
class DrillArguments(Arguments):
    """What a drill is told: which archive; ``latest`` is the newest full one."""

    archive: str = "latest"


def check_archive(archive: str, repository: Path, allowed: Iterable[Path]) -> None:
    """Refuse a path that leads to a file which no task may read.

    Raises:
        RefusedError: it does.
    """
    if "/" in archive:
        check_place(archive, (repository, *allowed), hint=_ARCHIVE_HINT)


def check_place(path: str, allowed: Iterable[Path], *, hint: str = _PLACE_HINT) -> None:
    """Refuse a path outside the directories that a task may use.

    Arguments:
        hint: what to do about that.

    Raises:
        RefusedError: it leads elsewhere.
    """
    try:
        encode_name(path)
        real = Path(path).resolve()
        inside = path.startswith("/") and any(real.is_relative_to(place.resolve()) for place in allowed)
    except (OSError, ValueError, RuntimeError):
        inside = False
    if not inside:
        raise RefusedError(f"a worker may not use {path}", hint=hint)


def _fits(value: object, hint: Any) -> bool:
    """Whether a value of JSON has the type of a field."""
    wanted = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if isinstance(value, list):
        is_list = any(get_origin(one) is tuple for one in wanted)
        return is_list and len(value) <= _MOST_PATHS and all(_is_text(one) for one in value)
    return type(value) in wanted and (_is_text(value) or not isinstance(value, str))


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _MOST_CHARACTERS and "\0" not in value
