"""Plans a recovery to a moment: the newest base backup before it, and the WAL from there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, tzinfo
from typing import TYPE_CHECKING, Any, Final

from portal.ops.chains.lineage import line_of
from portal.ops.errors import ConfigurationError, OpsError
from portal.ops.model import SUFFIX
from portal.ops.pitr.base_chain import cluster_size, facts_of
from portal.ops.pitr.look import base_of, look
from portal.ops.pitr.moment import shown
from portal.ops.pitr.wal_reader import last_commit
from portal.ops.pitr.window import choose_span, segments_to
from portal.ops.runtime.logs import engine_log
from portal.ops.units import duration

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from portal.ops.chains.lineage import Ancestor
    from portal.ops.pitr.look import PitrLook
    from portal.ops.pitr.lsn import Segment
    from portal.ops.pitr.wal_archive import WalArchive
    from portal.ops.pitr.window import Span, Window
    from portal.ops.repository.repository import Repository
    from portal.ops.runtime.process import ProcessRunner

log = engine_log("portal.ops.pitr.plan")

_WAL_KEPT_BYTES: Final = 3 << 30
"""About the most WAL that a replaying server keeps before it recycles it."""

_SPARE_BYTES: Final = 64 << 20

_START_SECONDS: Final = 3.0
_UNPACKED_BYTES: Final = 50_000_000
_REPLAYED_BYTES: Final = 30_000_000
_DUMPED_BYTES: Final = 35_000_000
"""Measured bytes per second on a server with two cores: unpacking, replaying, and dump with restore."""


class OutsideWindowError(ConfigurationError):
    """Raised if a moment cannot be recovered to."""


@dataclass(frozen=True, kw_only=True)
class RecoveryPlan:
    """The plan of a recovery to a moment.

    Arguments:
        moment: the moment; None for the latest possible one.
        path: the base backup's archive.
        line: the archive with its parents, the full base backup first.
        facts: the archive's facts about the cluster.
        wal_bytes: the most bytes of WAL to replay.
        segments: the segments to replay.
        last_transaction: when the last transaction before the moment was committed; None if it was not looked up.
        zone: the time zone for showing moments.
        combined_bytes: the bytes in base backups that have to be combined; 0 for a full one alone.
    """

    moment: datetime | None
    window: Window
    span: Span
    path: Path
    line: tuple[Path, ...]
    facts: Mapping[str, Any]
    wal_bytes: int
    archive: WalArchive
    combined_bytes: int = 0
    segments: tuple[Segment, ...] = ()
    last_transaction: datetime | None = None
    zone: tzinfo = UTC

    @property
    def major(self) -> int:
        """The server's major version."""
        return self.archive.cluster.major

    @property
    def reached(self) -> datetime:
        """The moment, or the latest possible one."""
        return self.moment or self.span.end

    @property
    def cluster_bytes(self) -> int:
        """About how many bytes the data directory has."""
        return cluster_size(self.facts)

    @property
    def needed_bytes(self) -> int:
        """About how many bytes a scratch server takes, including base backups next to the combined one."""
        return self.cluster_bytes + self.combined_bytes + min(self.wal_bytes, _WAL_KEPT_BYTES) + _SPARE_BYTES

    def seconds(self, *, with_dump: bool) -> float:
        """About how many seconds the recovery takes on a small server.

        Arguments:
            with_dump: whether the database is then dumped into another server.
        """
        unpacking = (self.cluster_bytes + self.combined_bytes) / _UNPACKED_BYTES
        replaying = self.wal_bytes / _REPLAYED_BYTES
        return _START_SECONDS + unpacking + replaying + (self.cluster_bytes / _DUMPED_BYTES if with_dump else 0)

    def lines(self, *, with_dump: bool = False) -> list[str]:
        """The plan in plain words.

        Arguments:
            with_dump: whether the database is then dumped into another server.
        """
        latest = "" if self.moment else ", the latest moment there is"
        last = (
            "none in the last segments of WAL" if self.last_transaction is None else self._shown(self.last_transaction)
        )
        combined = f", with {len(self.line) - 1} more that it follows" if len(self.line) > 1 else ""
        return [
            f"The database as of {shown(self.reached, self.zone)}{latest}",
            f"Last transaction before: {last}",
            f"Base backup {self.span.base.name}, complete at {self._shown(self.span.base.ended)}{combined}",
            f"Then up to {self.wal_bytes >> 20} MB of WAL on timeline {self.span.timeline}",
            f"Recovery window: {self.window}",
            f"Room for a scratch server: about {self.needed_bytes >> 20} MB; it is removed afterwards",
            f"Time: about {duration(self.seconds(with_dump=with_dump))}",
        ]

    def _shown(self, moment: datetime) -> str:
        return shown(moment, self.zone)


def plan_recovery(repository: Repository, moment: datetime | None, zone: tzinfo = UTC) -> RecoveryPlan:
    """Plan the recovery to a moment; changes nothing.

    Arguments:
        moment: the moment, by the server's clock; None for the latest possible one.
        zone: the time zone for showing moments.

    Raises:
        OutsideWindowError: the moment is not in the recovery window.
        RepositoryError: the repository cannot be read.
    """
    found = look(repository)
    if found.archive is None or found.window is None:
        raise OutsideWindowError(
            "there is nothing to recover to a moment from: it takes a base backup and the WAL that follows it",
            hint="Set BACKUP_WAL=on, start the WAL service, and make a base backup; archives can be restored as ever.",
        )
    span, line, facts = _way_to(repository, found, found.window, moment, zone)
    segments = segments_to(span, found.wal, moment)
    return RecoveryPlan(
        moment=moment,
        window=found.window,
        span=span,
        path=line[-1].path,
        line=tuple(ancestor.path for ancestor in line),
        combined_bytes=sum(int(facts_of(ancestor).get("bytes", 0)) for ancestor in line) if len(line) > 1 else 0,
        facts=facts,
        wal_bytes=len(segments) * found.archive.cluster.segment_bytes,
        segments=segments,
        archive=found.archive,
        zone=zone,
    )


def _way_to(
    repository: Repository, found: PitrLook, window: Window, moment: datetime | None, zone: tzinfo
) -> tuple[Span, tuple[Ancestor, ...], Mapping[str, Any]]:
    """The newest base backup from which the moment can be reached, with its parents and its facts.

    A base backup with an incomplete chain is skipped: an older one takes more WAL, but reaches the moment too.

    Raises:
        OutsideWindowError: no base backup and WAL reach the moment.
        NotIntactError: all that would reach it have incomplete chains.
    """
    spans, fault = list(found.spans), None
    while (span := choose_span(spans, moment)) is not None:
        path = repository.path / f"{span.base.name}{SUFFIX}"
        try:
            line, described = line_of(path), base_of(path)
            if described is not None:
                return span, line, described[1]
        except OpsError as error:
            log.warning("base_passed_over", base=span.base.name, error=error.message)
            fault = fault or error
        spans = [one for one in spans if one.base.name != path.name.removesuffix(SUFFIX)]
    raise fault or OutsideWindowError(
        f"{shown(moment or window.end, zone)} lies outside the recovery window, which is {window}",
        hint="Name a moment inside it, or restore an archive.",
    )


def with_last_transaction(plan: RecoveryPlan, *, runner: ProcessRunner, bin_dir: Path | None) -> RecoveryPlan:
    """The plan with the last transaction before the moment, which is read from the WAL.

    If the WAL cannot be read here, or there is no room to unpack it, the plan is returned unchanged; the replay itself
    will report the problem.
    """
    try:
        last = last_commit(plan.archive, plan.segments, plan.moment, runner=runner, bin_dir=bin_dir)
    except (OpsError, OSError) as error:
        log.warning("last_transaction_unknown", error=error.message if isinstance(error, OpsError) else str(error))
        return plan
    return replace(plan, last_transaction=last)


def clock_offset(archive: WalArchive | None) -> timedelta:
    """How far the server's clock is ahead of ours, as the WAL service last measured it."""
    state = archive.state() if archive else {}
    if not state.get("server_clock") or state.get("problem"):
        return timedelta(0)
    return datetime.fromisoformat(state["server_clock"]) - datetime.fromisoformat(state["updated"])
