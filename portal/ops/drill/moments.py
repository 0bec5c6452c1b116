"""Drills of point-in-time recovery: to the latest moment, and to a random one.

Each recovers the cluster on a scratch server, counts every row of every table, and dumps the database and decodes the
dump to its end, which reads every row once more.
"""

from __future__ import annotations

import random
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from portal.ops.errors import OpsError
from portal.ops.pitr.look import look
from portal.ops.pitr.plan import clock_offset, plan_recovery
from portal.ops.pitr.wal_archive import WalArchive
from portal.ops.postgres.client_tools import find_client
from portal.ops.postgres.dump_format import start_decoding
from portal.ops.postgres.pg_restore import explain_failure
from portal.ops.restore.scratch_dump import RowCounts, ScratchDump
from portal.ops.runtime.progress import Clock, available_cores, utc_now
from portal.ops.units import exact_duration, span

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from portal.ops.pitr.look import PitrLook
    from portal.ops.pitr.scratch_server import ScratchServer
    from portal.ops.repository.repository import Repository
    from portal.ops.restore.config import RestoreConfig
    from portal.ops.runtime.process import ProcessRunner


FIRST_BASE_TIME: Final = timedelta(days=1)
"""So long the first base backup of a cluster may take, with the wait for it."""

BEHIND_BASE_TIME: Final = timedelta(hours=1)
"""So long after a base backup there is a recovery window, if the WAL after it arrives."""

STALE: Final = timedelta(hours=1)
"""A latest moment that is older shows nothing of the WAL since."""


class Shown(NamedTuple):
    """What the drills have proven.

    Arguments:
        checks: the successful recoveries, in words.
        problems: the failed ones, and a recovery window that should be there.
        gaps: what could not be tried yet.
    """

    checks: list[str]
    problems: list[str]
    gaps: list[str]


def window_lacks(found: PitrLook, received_since: datetime | None, now: datetime) -> tuple[str, bool]:
    """Why there is no recovery window, or none that reaches until now, and whether that is a fault; a pure function.

    Right after WAL was first received there is no base backup yet: that is no fault for a day.

    Arguments:
        received_since: when WAL of this cluster was first received; None for never.
        now: by the server's clock.

    Returns:
        An empty text where nothing is lacking.
    """
    if found.window is not None:
        late = now - found.window.end
        return (f"the latest moment is {span(late)} old: no WAL is being received" if late > STALE else ""), False
    if received_since is None:
        return "there is no recovery window, and no WAL was ever received: start the WAL service", True
    newest = max((base.ended for base in found.bases), default=None)
    if newest is not None and now - newest > BEHIND_BASE_TIME:
        return (
            f"there is no recovery window: the WAL after the base backup of {span(now - newest)} ago is missing",
            True,
        )
    age = now - received_since
    if newest is None and age > FIRST_BASE_TIME:
        return f"there is no recovery window: WAL has been received for {span(age)} without a base backup", True
    return "there is no recovery window yet: the first base backup, or the WAL after it, has yet to come", False


def drill_moments(
    repository: Repository,
    config: RestoreConfig,
    *,
    runner: ProcessRunner,
    chance: Callable[[], float] = random.random,
    clock: Clock = utc_now,
) -> Shown:
    """Recover to the latest moment and to a random one.

    If WAL is received, a missing recovery window is a problem, or a gap while it cannot exist yet. Otherwise nothing is
    done without a window.

    Arguments:
        chance: returns a number from 0 to 1, by which a moment in the window is chosen.
    """
    shown = Shown([], [], [])
    found = look(repository)
    if config.wal:
        now = clock() + clock_offset(found.archive)
        what, is_fault = window_lacks(found, WalArchive.current_since(repository), now)
        if what:
            (shown.problems if is_fault else shown.gaps).append(f"recovery to a moment was not tested: {what}")
    window = found.window
    if window is None:
        return shown
    somewhere = window.start + timedelta(seconds=(window.end - window.start).total_seconds() * chance())
    in_gap = any(start < somewhere < end for start, end in window.gaps)
    for moment in (None, window.start if in_gap else somewhere):
        named = "the latest moment" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S} UTC"
        try:
            shown.checks.append(_recover(repository, config, moment, named, runner))
        except OpsError as error:
            shown.problems.append(f"the database could not be recovered to {named}: {error.message}")
    return shown


def _recover(
    repository: Repository, config: RestoreConfig, moment: datetime | None, named: str, runner: ProcessRunner
) -> str:
    from portal.ops.pitr.recovery import recovered  # imported late: it loads the database driver

    started = time.monotonic()
    plan = plan_recovery(repository, moment)
    bin_dir = Path(config.pg_bin_dir) if config.pg_bin_dir else None
    recovering = recovered(
        repository,
        plan,
        runner=runner,
        bin_dir=bin_dir,
        jobs=config.jobs or available_cores(),
        lock_timeout=config.lock_timeout,
    )
    with recovering as server:
        seconds = time.monotonic() - started
        rows = RowCounts(server.target(config.db_name))
        _decode(server, config.db_name, plan.major, runner, bin_dir)
        return (
            f"recovered to {named}: {sum(rows.values()):,} rows in {len(rows):,} tables, in {exact_duration(seconds)}"
        )


def _decode(server: ScratchServer, database: str, major: int, runner: ProcessRunner, bin_dir: Path | None) -> None:
    """Dump the recovered database, and decode the dump to its end.

    Raises:
        OpsError: dumping or decoding failed.
    """
    tool = find_client("pg_restore", major, runner=runner, bin_dir=bin_dir)
    with ScratchDump(server.target(database), major, runner=runner, bin_dir=bin_dir) as scratch:
        process = start_decoding(tool, runner=runner)
        try:
            with suppress(BrokenPipeError), scratch.dump(Path("unused"), lambda _: None).open() as pieces:
                for piece in pieces:
                    process.stdin.write(piece)
                process.stdin.close()
            if code := process.wait():
                raise explain_failure(code, process.stderr_tail())
        finally:
            with suppress(OSError):
                process.stdin.close()
            process.kill()
