"""Pins: archives that a person wants to keep, with the reason, in `.pins/`.

The name of a pin's file is what counts. A pin with damaged content still keeps its archive, and says that it is
damaged.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from portal.ops.codec import decode, encode
from portal.ops.repository.records import ENVELOPE, RecordStore

if TYPE_CHECKING:
    from collections.abc import Mapping

    from portal.ops.repository.repository import Repository

DIRECTORY: Final = ".pins"

_UNKNOWN: Final = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, kw_only=True)
class Pin:
    """An archive that must not be removed.

    Arguments:
        backup_id: the archive's name without suffix.
        reason: the reason in the person's words; may be empty.
        who: the person.
        moment: when it was pinned.
    """

    backup_id: str
    reason: str
    who: str
    moment: datetime


class Pins:
    """The pins of a repository."""

    def __init__(self, repository: Repository) -> None:
        self._store = RecordStore(repository.path / DIRECTORY)

    def pin(self, backup_id: str, *, reason: str, who: str, moment: datetime) -> Pin:
        """Pin an archive; an existing pin gets the new reason.

        Raises:
            RepositoryError: it cannot be written.
        """
        pin = Pin(backup_id=backup_id, reason=reason, who=who, moment=moment)
        self._store.write(backup_id, encode(pin))
        return pin

    def unpin(self, backup_id: str) -> bool:
        """Unpin an archive; return whether it was pinned.

        Raises:
            RepositoryError: the pin cannot be removed.
        """
        return self._store.remove(backup_id)

    def names(self) -> frozenset[str]:
        """The names of pinned archives; faster than `all`.

        Raises:
            RepositoryError: the pins cannot be read.
        """
        return frozenset(self._store.names())

    def all(self) -> dict[str, Pin]:
        """All pins by archive name; a damaged pin is logged, and its reason says that it is damaged.

        Raises:
            RepositoryError: the pins cannot be read.
        """
        return {name: pin or _damaged(name) for name, pin in self._store.each(_decoded)}


def _decoded(facts: Mapping[str, Any]) -> Pin:
    return decode(Pin, facts, beside=ENVELOPE)


def _damaged(backup_id: str) -> Pin:
    return Pin(backup_id=backup_id, reason="(the record of this pin is damaged)", who="", moment=_UNKNOWN)
