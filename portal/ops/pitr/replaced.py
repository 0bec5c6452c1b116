"""Clusters whose WAL is in the repository, and which another cluster has replaced.

A server that was set up again, or moved by a dump, has a new system identifier. Its old WAL is useful only with a base
backup of the old cluster. Pure: reads no clock and no disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from portal.ops.units import human_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

YOUNG: Final = timedelta(days=7)
"""Younger WAL may still get its base backup: one that is fetched from off-site after the WAL, or is being made."""


@dataclass(frozen=True, kw_only=True)
class ReplacedCluster:
    """The WAL of a replaced cluster.

    Arguments:
        newest: when the last of its WAL was written.
        has_base: whether the repository has, or may have, a base backup of it: an unreadable one may be of any cluster.
    """

    system_identifier: str
    bytes: int
    newest: datetime
    has_base: bool

    @property
    def removable_from(self) -> datetime | None:
        """The time from which a prune removes it; None while a base backup needs it."""
        return None if self.has_base else self.newest + YOUNG

    def to_dict(self) -> dict[str, Any]:
        """The facts in the types of JSON."""
        removable = self.removable_from
        return {
            "system_identifier": self.system_identifier,
            "wal_bytes": self.bytes,
            "newest": self.newest.isoformat(timespec="seconds"),
            "removable_from": removable.isoformat(timespec="seconds") if removable else None,
        }

    def __str__(self) -> str:
        if (removable := self.removable_from) is None:
            stays = "kept as long as its base backups"
        else:
            stays = f"no base backup needs it; a prune removes it after {removable:%Y-%m-%d}"
        return (
            f"WAL of the replaced cluster {self.system_identifier}, until {self.newest:%Y-%m-%d %H:%M} UTC, "
            f"{human_bytes(self.bytes)}: {stays}"
        )


def removable(clusters: Iterable[ReplacedCluster], current: str | None, now: datetime) -> frozenset[str]:
    """The clusters whose WAL no base backup needs; none if the current cluster is unknown.

    Arguments:
        current: the system identifier of the cluster whose WAL is received.
    """
    if current is None:
        return frozenset()
    return frozenset(
        one.system_identifier
        for one in clusters
        if one.system_identifier != current and (since := one.removable_from) is not None and since < now
    )
