"""Entries in the table of settings: fields of groups, which are frozen dataclasses."""

from __future__ import annotations

from dataclasses import field, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, TypeVar

from portal.ops.settings.parsers import Setting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

SETTING: Final = "setting"
GROUP: Final = "group"
"""Keys in a field's metadata, from which an entry is read."""

RULED_TYPES: Final = ("full", "database", "media", "audit_logs")
COPIED_TYPES: Final = (*RULED_TYPES, "base")
RULE_WORDS: Final = ("days", "count", "hourly", "daily", "weekly", "monthly", "yearly")


class Place(StrEnum):
    """Where archives go besides the repository, in the words of the portal's own configuration."""

    LOCAL = "local"
    S3 = "s3"


class WatchMode(StrEnum):
    """The ways to notice changes of the uploads."""

    AUTO = "auto"
    EVENTS = "events"
    POLLING = "polling"


def setting(
    name: str,
    meaning: str,
    parse: Callable[[str], T],
    default: str = "",
    *,
    without: str = "(optional)",
    secret: bool = False,
    empty_counts: bool = False,
) -> T:
    """An entry of the table, as the value of a dataclass field; for the arguments see `Setting`."""
    entry = Setting(
        name=name,
        meaning=meaning,
        parse=parse,
        default=default,
        without=without,
        secret=secret,
        empty_counts=empty_counts,
    )
    return field(default_factory=lambda: parse(default), metadata={SETTING: entry})


def group(kind: type[Any]) -> Any:
    """A field that is a group of settings.

    Arguments:
        kind: the dataclass with the entries as fields.
    """
    return field(default_factory=kind, metadata={GROUP: kind})


class Group:
    """The base of all groups; creating these methods for each dataclass would slow every command down."""

    def _values(self) -> tuple[object, ...]:
        return tuple(getattr(self, each.name) for each in fields(self))  # type: ignore[arg-type]

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and isinstance(other, Group) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        shown = ", ".join(f"{each.name}={getattr(self, each.name)!r}" for each in fields(self))  # type: ignore[arg-type]
        return f"{type(self).__name__}({shown})"


def entries(kind: type[Any]) -> Iterator[Setting[object]]:
    """All entries of a group and its subgroups, in the order of the table."""
    for each in fields(kind):
        if SETTING in each.metadata:
            yield each.metadata[SETTING]
        elif GROUP in each.metadata:
            yield from entries(each.metadata[GROUP])
