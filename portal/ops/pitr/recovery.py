"""Recovers the cluster to a moment on a scratch server.

plan      choose the newest base backup before the moment and the WAL after it; refuse moments outside the window
unpack    unpack the base backup into a directory that is always removed
replay    replay the WAL up to the moment on a server of the same version
open      open the server for queries and dumps; the live server is not involved
"""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from portal.ops.pitr.combine import unpack_bases
from portal.ops.pitr.scratch import scratch_directory, server_owner, sweep_scratch
from portal.ops.pitr.scratch_server import ScratchServer, Target
from portal.ops.pitr.wal_feed import WalFeed
from portal.ops.repository.locks import archive_lock
from portal.ops.runtime.logs import engine_log

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from portal.ops.pitr.plan import RecoveryPlan
    from portal.ops.repository.repository import Repository
    from portal.ops.runtime.process import ProcessRunner
    from portal.ops.runtime.progress import Advance

log = engine_log("portal.ops.pitr.recovery")


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
    """A scratch server that has replayed everything up to the moment, open for queries and dumps.

    Arguments:
        advance: called with the number of bytes after each piece of the base backup is unpacked.

    Raises:
        RestoreError: the server did not reach the moment.
        OpsError: the scratch server cannot be set up.
    """
    owner = server_owner()
    sweep_scratch(repository)
    with (
        repository.shared(),
        lines_locked(plan, lock_timeout),
        scratch_directory(repository, owner, plan.needed_bytes) as directory,
    ):
        data = directory / "data"
        server = scratch_server(plan, directory, data, runner=runner, bin_dir=bin_dir)
        started = time.monotonic()
        unpacked(server, plan, jobs, advance)
        _neutralise(data)
        replaying = time.monotonic()
        try:
            with WalFeed(plan.archive, directory, owner) as feed:
                server.recover(feed, Target(moment=plan.moment, timeline=plan.span.timeline))
                _log_ready(plan, replaying - started, time.monotonic() - replaying)
                yield server
        finally:
            server.stop()


def _log_ready(plan: RecoveryPlan, unpack_seconds: float, replay_seconds: float) -> None:
    log.info(
        "scratch_server_ready",
        base=plan.span.base.name,
        moment=plan.reached.isoformat(),
        unpack_seconds=round(unpack_seconds, 3),
        replay_seconds=round(replay_seconds, 3),
    )


def lines_locked(plan: RecoveryPlan, lock_timeout: float) -> ExitStack:
    """Keep the base backup and its parents from being pruned while the context lasts.

    Arguments:
        lock_timeout: seconds to wait for a prune that is running.
    """
    with ExitStack() as held:
        for path in plan.line:
            held.enter_context(archive_lock(path, lock_timeout))
        return held.pop_all()


def scratch_server(
    plan: RecoveryPlan,
    directory: Path,
    data: Path,
    *,
    runner: ProcessRunner,
    bin_dir: Path | None,
    is_durable: bool = False,
) -> ScratchServer:
    """The scratch server of a recovery, not started yet."""
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


def unpacked(server: ScratchServer, plan: RecoveryPlan, jobs: int, advance: Advance) -> Path:
    """Unpack the base backup into the server's data directory; return the server's program, which is found first."""
    program = server.find_program()
    unpack_bases(
        plan.line,
        server.data,
        major=plan.major,
        owner=server.owner,
        runner=server.runner,
        bin_dir=server.bin_dir,
        jobs=jobs,
        advance=advance,
    )
    return program


def _neutralise(data: Path) -> None:
    """Remove settings by ALTER SYSTEM, which the live server's administrators made."""
    (data / "postgresql.auto.conf").write_text("")
