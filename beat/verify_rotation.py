"""Selects the archives for a verification slot, so that each is verified thoroughly within a week.

    new        never verified at the level of its contents
    its turn   a seventh of all others: each archive has its day of the week, by its name
    overdue    not verified for six days, such as where the machine was off on its day

The selection depends only on the slot and on results of verifications: archives verified since the slot drop out, and
no others are added, however often it is computed.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from portal.ops.model import VerifyLevel

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_DAYS: Final = 7
_OVERDUE: Final = timedelta(days=_DAYS - 1)
_RECENT: Final = timedelta(days=1)


class Verified(Protocol):
    """A result of a verification."""

    @property
    def level(self) -> VerifyLevel:
        """The level of the verification."""

    @property
    def moment(self) -> datetime:
        """When it was verified."""


class Named(Protocol):
    """An archive with its name and time."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def moment(self) -> datetime:
        """When it was made."""


Archive = TypeVar("Archive", bound=Named)


def to_verify(
    slot: datetime, archives: Iterable[Archive], verified: Mapping[str, Verified], now: datetime
) -> list[Archive]:
    """The archives to verify for a slot: new ones first, then those verified longest ago.

    Arguments:
        archives: all archives; those made after the slot wait for the next one.
        verified: the newest result for each archive that has one.
    """
    there = [archive for archive in archives if not slot < archive.moment <= now]
    new = [archive for archive in there if archive.name not in verified]
    known = [archive for archive in there if archive.name in verified and _is_due(archive, verified, slot, now)]
    return new + sorted(known, key=lambda archive: (verified[archive.name].moment, archive.name))


def day_of(name: str) -> int:
    """The day of the week on which an archive is verified."""
    return int.from_bytes(sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "big") % _DAYS


def _is_due(archive: Named, verified: Mapping[str, Verified], slot: datetime, now: datetime) -> bool:
    found = verified[archive.name]
    if slot <= found.moment <= now:
        return False
    if not found.level.covers(VerifyLevel.CONTENTS) or found.moment > now:
        return True
    age = slot - found.moment
    return age >= _OVERDUE or (day_of(archive.name) == slot.toordinal() % _DAYS and age >= _RECENT)
