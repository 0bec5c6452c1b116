"""The plan of a recovery to a moment: the newest base backup before it, and the WAL from there."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from portal.ops.errors import ConfigurationError
from portal.ops.model import SUFFIX
from portal.ops.pitr.look import base_of, look
from portal.ops.pitr.window import choose_span

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from portal.ops.pitr.wal_archive import WalArchive
    from portal.ops.pitr.window import Span, Window
    from portal.ops.repository.repository import Repository

_WAL_KEPT_BYTES: Final = 3 << 30
"""A replaying server recycles its WAL from about here on."""

_SPARE_BYTES: Final = 64 << 20


class OutsideWindowError(ConfigurationError):
    """The moment cannot be recovered to."""


@dataclass(frozen=True, kw_only=True)
class RecoveryPlan:
    """How a moment will be recovered to.

    Arguments:
        moment: nothing means as late as possible.
        path: the base backup's archive.
        facts: what its manifest says of the cluster.
        wal_bytes: how much WAL there is to replay at the most.
    """

    moment: datetime | None
    window: Window
    span: Span
    path: Path
    facts: Mapping[str, Any]
    wal_bytes: int
    archive: WalArchive

    @property
    def major(self) -> int:
        """The server's major version."""
        return self.archive.cluster.major

    @property
    def reached(self) -> datetime:
        """The moment, or the latest one that there is."""
        return self.moment or self.span.end

    @property
    def needed_bytes(self) -> int:
        """The room that a scratch server takes, about."""
        return int(self.facts["bytes"]) + min(self.wal_bytes, _WAL_KEPT_BYTES) + _SPARE_BYTES

    def lines(self) -> list[str]:
        """The plan in plain words."""
        when = f"{self.reached:%Y-%m-%d %H:%M:%S}{'' if self.moment else ', the latest moment there is'}"
        return [
            f"The database as of {when} (UTC)",
            f"Base backup {self.span.base.name}, complete at {self.span.base.ended:%Y-%m-%d %H:%M:%S}",
            f"Then up to {self.wal_bytes >> 20} MB of WAL on timeline {self.span.timeline}",
            f"Recovery window: {self.window}",
            f"Room for a scratch server: about {self.needed_bytes >> 20} MB; it is removed afterwards",
        ]


def plan_recovery(repository: Repository, moment: datetime | None) -> RecoveryPlan:
    """Find what leads to a moment; touches nothing.

    Arguments:
        moment: by the server's clock; nothing means as late as possible.

    Raises:
        OutsideWindowError: nothing leads there.
        RepositoryError: the repository cannot be read.
    """
    found = look(repository)
    if found.archive is None or found.window is None:
        raise OutsideWindowError(
            "there is nothing to recover to a moment from: it takes a base backup and the WAL that follows it",
            hint="Set BACKUP_WAL=on, start the WAL service, and make a base backup; archives can be restored as ever.",
        )
    span = choose_span(found.spans, moment)
    if span is None:
        raise OutsideWindowError(
            f"{moment:%Y-%m-%d %H:%M:%S%z} lies outside the recovery window, which is {found.window}",
            hint="Name a moment inside it, or restore an archive.",
        )
    path = repository.path / f"{span.base.name}{SUFFIX}"
    described = base_of(path)
    assert described is not None
    return RecoveryPlan(
        moment=moment,
        window=found.window,
        span=span,
        path=path,
        facts=described[1],
        wal_bytes=_wal_bytes(span, moment, found.archive),
        archive=found.archive,
    )


def clock_offset(archive: WalArchive | None) -> timedelta:
    """How far the server's clock is ahead of ours, by the last look of the WAL service."""
    state = archive.state() if archive else {}
    if not state.get("server_clock") or state.get("problem"):
        return timedelta(0)
    return datetime.fromisoformat(state["server_clock"]) - datetime.fromisoformat(state["updated"])


def _wal_bytes(span: Span, moment: datetime | None, archive: WalArchive) -> int:
    """How much WAL lies between the base backup and the moment, at the most."""
    first = span.base.start_lsn // archive.cluster.segment_bytes
    count = 0
    for name, file in archive.files().items():
        segment = archive.segment(name)
        if segment and segment.number >= first and (moment is None or not file.covered or file.covered <= moment):
            count += 1
    return min(count + 1, span.segments) * archive.cluster.segment_bytes
