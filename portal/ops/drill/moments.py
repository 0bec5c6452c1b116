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
from typing import TYPE_CHECKING, NamedTuple

from portal.ops.errors import OpsError
from portal.ops.pitr.look import look
from portal.ops.pitr.plan import plan_recovery
from portal.ops.postgres.client_tools import find_client
from portal.ops.postgres.dump_format import start_decoding
from portal.ops.restore.scratch_dump import RowCounts, ScratchDump
from portal.ops.runtime.progress import available_cores
from portal.ops.units import exact_duration

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from portal.ops.pitr.scratch_server import ScratchServer
    from portal.ops.repository.repository import Repository
    from portal.ops.restore.config import RestoreConfig
    from portal.ops.runtime.process import ProcessRunner


_HINT = "Look at the log of the scratch server, and make a new base backup."


class Shown(NamedTuple):
    """What the drills have proven.

    Arguments:
        checks: the successful recoveries, in words.
        problems: the failed ones.
    """

    checks: list[str]
    problems: list[str]


def drill_moments(
    repository: Repository,
    config: RestoreConfig,
    *,
    runner: ProcessRunner,
    chance: Callable[[], float] = random.random,
) -> Shown:
    """Recover to the latest moment and to a random one; without a recovery window, do nothing.

    Arguments:
        chance: returns a number from 0 to 1, by which a moment in the window is chosen.
    """
    shown = Shown([], [])
    window = look(repository).window
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
            with scratch.dump(Path("unused"), lambda _: None).open() as pieces:
                for piece in pieces:
                    process.stdin.write(piece)
            process.stdin.close()
            if process.wait() != 0:
                raise OpsError(f"pg_restore cannot decode its dump: {process.stderr_tail().strip()[-200:]}", hint=_HINT)
        finally:
            with suppress(OSError):
                process.stdin.close()
            process.kill()
