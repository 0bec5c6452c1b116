"""Pins: archives that a person has said are to be kept, with the reason, in `.pins/`.

The name of a pin's file is what pins. One whose content is damaged pins all the same, and says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from portal.ops.repository.records import RecordStore

if TYPE_CHECKING:
    from collections.abc import Mapping

    from portal.ops.repository.repository import Repository

DIRECTORY: Final = ".pins"

_UNKNOWN: Final = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, kw_only=True)
class Pin:
    """An archive that is not to be removed.

    Arguments:
        backup_id: the archive's name without its suffix.
        reason: why, in the words of who pinned it; may be empty.
        who: who did.
        moment: when.
    """

    backup_id: str
    reason: str
    who: str
    moment: datetime

    def to_dict(self) -> dict[str, Any]:
        """The pin in the types of JSON."""
        return {
            "backup_id": self.backup_id,
            "reason": self.reason,
            "who": self.who,
            "moment": self.moment.isoformat(),
        }

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Pin:
        """The pin that `to_dict` made; ValueError, KeyError or TypeError where it makes no sense."""
        moment = datetime.fromisoformat(facts["moment"])
        if moment.tzinfo is None:
            raise ValueError("no moment in a time zone")
        return cls(backup_id=str(facts["backup_id"]), reason=str(facts["reason"]), who=str(facts["who"]), moment=moment)


class Pins:
    """The pins of a repository."""

    def __init__(self, repository: Repository) -> None:
        self._store = RecordStore(repository.path / DIRECTORY)

    def pin(self, backup_id: str, *, reason: str, who: str, moment: datetime) -> Pin:
        """Pin an archive; one that is pinned gets the new reason.

        Raises:
            RepositoryError: it cannot be written.
        """
        pin = Pin(backup_id=backup_id, reason=reason, who=who, moment=moment)
        self._store.write(backup_id, pin.to_dict())
        return pin

    def unpin(self, backup_id: str) -> bool:
        """Let an archive go; whether it was pinned.

        Raises:
            RepositoryError: the pin cannot be removed.
        """
        return self._store.remove(backup_id)

    def names(self) -> frozenset[str]:
        """The archives that are pinned; quicker than `all`.

        Raises:
            RepositoryError: the pins cannot be read.
        """
        return frozenset(self._store.names())

    def all(self) -> dict[str, Pin]:
        """Every pin, by the archive's name; one that is damaged is logged, and has an explanation as its reason.

        Raises:
            RepositoryError: the pins cannot be read.
        """
        return {name: pin or _damaged(name) for name, pin in self._store.each(Pin.from_dict)}


def _damaged(backup_id: str) -> Pin:
    return Pin(backup_id=backup_id, reason="(the record of this pin is damaged)", who="", moment=_UNKNOWN)
