"""Recovering the cluster to a moment: a plan, then a scratch server that has replayed everything up to it.

plan      the newest base backup before the moment, and the WAL from there; refused outside the recovery window
unpack    the base backup, into a directory that always disappears
replay    the WAL up to the moment, by a server of the same version
open      for questions and dumps; the live server is never touched
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from portal.ops.errors import ConfigurationError
from portal.ops.model import SUFFIX
from portal.ops.pitr.look import base_of, look
from portal.ops.pitr.scratch import scratch_directory, server_owner, sweep_scratch
from portal.ops.pitr.scratch_server import ScratchServer, Target
from portal.ops.pitr.unpack import unpack_cluster
from portal.ops.pitr.wal_feed import WalFeed
from portal.ops.pitr.window import choose_span
from portal.ops.repository.locks import archive_lock
from portal.ops.runtime.logs import engine_log

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from portal.ops.pitr.wal_archive import WalArchive
    from portal.ops.pitr.window import Span, Window
    from portal.ops.repository.repository import Repository
    from portal.ops.runtime.process import ProcessRunner
    from portal.ops.runtime.progress import Advance

log = engine_log("portal.ops.pitr.recovery")

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


@contextmanager
def recovered(
    repository: Repository,
    plan: RecoveryPlan,
    *,
    runner: ProcessRunner,
    bin_dir: Path | None,
    jobs: int,
    lock_timeout: float,
    advance: Advance = lambda _: None,
) -> Iterator[ScratchServer]:
    """A scratch server that has everything up to the moment, open for questions and dumps.

    Arguments:
        advance: told of every number of bytes of the base backup that was unpacked.

    Raises:
        RestoreError: the server did not get there.
        OpsError: it cannot be made.
    """
    owner = server_owner()
    sweep_scratch(repository)
    with (
        repository.shared(),
        archive_lock(plan.path, lock_timeout),
        scratch_directory(repository, owner, plan.needed_bytes) as directory,
    ):
        data = directory / "data"
        server = scratch_server(plan, directory, data, runner=runner, bin_dir=bin_dir)
        server.find_program()  # before the work, not after it
        started = time.monotonic()
        unpack_cluster(plan.path, data, owner=owner, jobs=jobs, advance=advance)
        _neutralise(data)
        unpacked = time.monotonic()
        try:
            with WalFeed(plan.archive, directory, owner) as feed:
                server.recover(feed, Target(moment=plan.moment, timeline=plan.span.timeline))
                log.info(
                    "scratch_server_ready",
                    base=plan.span.base.name,
                    moment=plan.reached.isoformat(),
                    unpack_seconds=round(unpacked - started, 3),
                    replay_seconds=round(time.monotonic() - unpacked, 3),
                )
                yield server
        finally:
            server.stop()


def scratch_server(
    plan: RecoveryPlan,
    directory: Path,
    data: Path,
    *,
    runner: ProcessRunner,
    bin_dir: Path | None,
    is_durable: bool = False,
) -> ScratchServer:
    """The server of a recovery, not started yet."""
    limits = dict(plan.facts.get("limits", {}))
    for name, value in plan.archive.cluster.limits.items():
        limits[name] = max(int(value), int(limits.get(name, 0)))
    return ScratchServer(
        directory=directory,
        data=data,
        owner=server_owner(),
        major=plan.major,
        superuser=str(plan.facts.get("superuser", "postgres")),
        limits=limits,
        runner=runner,
        bin_dir=bin_dir,
        is_durable=is_durable,
    )


def _neutralise(data: Path) -> None:
    """Take away what the live server's administrators have set by ALTER SYSTEM."""
    (data / "postgresql.auto.conf").write_text("")


def _wal_bytes(span: Span, moment: datetime | None, archive: WalArchive) -> int:
    """How much WAL lies between the base backup and the moment, at the most."""
    first = span.base.start_lsn // archive.cluster.segment_bytes
    count = 0
    for name, file in archive.files().items():
        segment = archive.segment(name)
        if segment and segment.number >= first and (moment is None or not file.covered or file.covered <= moment):
            count += 1
    return min(count + 1, span.segments) * archive.cluster.segment_bytes
