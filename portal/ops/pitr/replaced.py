"""Clusters whose WAL is in the repository and is not received any more: another one took their place.

A server that was set up anew, or moved by a dump, has a new system identifier. The WAL of the one before is worth
something for as long as a base backup of that cluster is there. Without one nothing can be recovered from it. Values
in, values out.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

YOUNG: Final = timedelta(days=7)
"""The base backup of younger WAL may be still to come: it is fetched from off-site after the WAL, or is being made."""


@dataclass(frozen=True, kw_only=True)
class ReplacedCluster:
    """The WAL of a cluster that is not received any more.

    Arguments:
        newest: when the last of its WAL was written.
        has_base: whether a base backup of it is there, or may be: one that cannot be read may be of any cluster.
    """

    system_identifier: str
    bytes: int
    newest: datetime
    has_base: bool

    @property
    def removable_from(self) -> datetime | None:
        """From when on a prune removes it; nothing while a base backup needs it."""
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
            stays = "it stays as long as its base backups"
        else:
            stays = f"no base backup needs it, and a prune removes it from {removable:%Y-%m-%d} on"
        return (
            f"WAL of the replaced cluster {self.system_identifier}, until {self.newest:%Y-%m-%d %H:%M} UTC, "
            f"{self.bytes >> 20} MB: {stays}"
        )


def removable(clusters: Iterable[ReplacedCluster], current: str | None, now: datetime) -> frozenset[str]:
    """The clusters whose WAL leads nowhere; a pure function.

    Where it is unknown which cluster is received, all are kept.

    Arguments:
        current: the system identifier of the cluster that is received.
    """
    if current is None:
        return frozenset()
    return frozenset(
        one.system_identifier
        for one in clusters
        if one.system_identifier != current and (since := one.removable_from) is not None and since < now
    )
