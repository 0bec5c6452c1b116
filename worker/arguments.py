"""The arguments of tasks, checked before anything is done with them.

Each task has a class here; its fields are the task's keyword arguments, as types of JSON.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import UTC, datetime
from types import UnionType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, get_args, get_origin, get_type_hints

from portal.ops.errors import ConfigurationError
from portal.ops.model import VerifyLevel
from worker.command_lines import BACKUP, RESTORE
from worker.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from enum import StrEnum

Word = TypeVar("Word", bound="StrEnum")

_MOST_CHARACTERS: Final = 4096
_MOST_PATHS: Final = 100_000
_HINT: Final = f"Tasks are made by {BACKUP}, {RESTORE}, beat and the watcher; this one was not."


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The arguments of all tasks.

    Arguments:
        actor: the person who started the command, for the access log.
    """

    actor: str | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """The arguments in a message.

        Raises:
            RefusedError: an argument is unknown, missing, or of the wrong type.
        """
        hints = get_type_hints(cls)
        names = {field.name for field in fields(cls)}
        for name, value in given.items():
            if name not in names or not _fits(value, hints[name]):
                raise RefusedError(f"the task has an argument {name!r} that is invalid", hint=_HINT)
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in given.items()
        }
        try:
            return cls(**values)
        except TypeError as error:
            raise RefusedError("the task lacks an argument", hint=_HINT) from error

    def to_dict(self) -> dict[str, Any]:
        """The arguments as types of JSON, without those that have their default value."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            field.name: list(given[field.name]) if isinstance(given[field.name], tuple) else given[field.name]
            for field in fields(self)
            if given[field.name] != field.default
        }


@dataclass(frozen=True, kw_only=True)
class RequestArguments(Arguments):
    """The arguments of requests whose id contains their moment.

    Arguments:
        moment: the slot, or the time of the request, in ISO 8601.
    """

    moment: str

    def when(self) -> datetime:
        """The moment.

        Raises:
            RefusedError: it is invalid.
        """
        try:
            return datetime.fromisoformat(self.moment).astimezone(UTC)
        except (ValueError, OverflowError) as error:
            raise RefusedError(f"{self.moment!r} is no moment", hint=_HINT) from error


@dataclass(frozen=True, kw_only=True)
class BackupArguments(RequestArguments):
    """The arguments of a backup.

    Arguments:
        confirm_loss: the losses that a person has confirmed, or True for all: that a source has lost nearly everything,
            or that the repository is a different one.
    """

    confirm_loss: bool | tuple[str, ...] = False


@dataclass(frozen=True, kw_only=True)
class FullArguments(BackupArguments):
    """The arguments of a full backup.

    Arguments:
        complete: take all uploads, even if full backups take only changes.
    """

    complete: bool = False


@dataclass(frozen=True, kw_only=True)
class MediaArguments(BackupArguments):
    """The arguments of a backup of the uploads.

    Arguments:
        incremental: take only changes.
        changed: the changed paths, relative to the uploads, if known; otherwise the whole tree is examined.
    """

    incremental: bool = False
    changed: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class VerifyArguments(Arguments):
    """The arguments of a verification."""

    archive: str
    level: str = VerifyLevel.CONTENTS.value


@dataclass(frozen=True, kw_only=True)
class RestoreArguments(RequestArguments):
    """The arguments of a restore: the options of `restore.sh`.

    Arguments:
        archive: the archive; empty together with `at`.
        at: the moment to restore to, in ISO 8601 or as a person writes it.
        verify: verify the whole archive first; restored data is checked during staging in any case.
    """

    archive: str = ""
    at: str | None = None
    scope: str = "full"
    dry_run: bool = False
    mode: str = "auto"
    exact: bool = False
    patterns: tuple[str, ...] = ()
    target_database: str | None = None
    create_database: bool = False
    owner: str | None = None
    media_dir: str | None = None
    jobs: int | None = None
    allow_unverified: bool = False
    allow_outside_links: bool = False
    verify: bool = True


@dataclass(frozen=True, kw_only=True)
class RollbackArguments(Arguments):
    """The arguments of a rollback."""

    restore_id: str


@dataclass(frozen=True, kw_only=True)
class PruneArguments(Arguments):
    """The arguments of a prune."""

    dry_run: bool = False


@dataclass(frozen=True, kw_only=True)
class DrillArguments(Arguments):
    """The arguments of a drill: the archive; ``latest`` is the newest full one."""

    archive: str = "latest"


@dataclass(frozen=True, kw_only=True)
class OffsiteCopyArguments(Arguments):
    """The arguments of an off-site copy.

    Arguments:
        archive: the archive; by default everything missing.
        again: make another copy for the present recipients.
    """

    archive: str | None = None
    again: bool = False


@dataclass(frozen=True, kw_only=True)
class OffsiteVerifyArguments(Arguments):
    """The arguments of a verification of off-site copies.

    Arguments:
        archive: the archive; by default those that are due.
    """

    archive: str | None = None
    level: str = VerifyLevel.CHECKSUM.value


def word(kind: type[Word], text: str) -> Word:
    """The member of an enumeration with the value of an argument.

    Raises:
        ConfigurationError: there is no such value.
    """
    try:
        return kind(text)
    except ValueError:
        raise ConfigurationError(
            f"{text!r} is none of {', '.join(kind)}", hint="Correct the task's argument."
        ) from None


def _fits(value: object, hint: Any) -> bool:
    """True if a JSON value has the type of a field."""
    wanted = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if isinstance(value, list):
        is_list = any(get_origin(one) is tuple for one in wanted)
        return is_list and len(value) <= _MOST_PATHS and all(_is_text(one) for one in value)
    return type(value) in wanted and (_is_text(value) or not isinstance(value, str))


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _MOST_CHARACTERS and "\0" not in value
