"""`restore.sh --at TIME --data-dir DIR`: delivers the recovered cluster for a new server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tools.terminal.output import print_result, say

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from datetime import datetime

    from portal.ops.runtime.progress import Step
    from portal.ops.settings.load import Settings


def deliver_cluster(
    settings: Settings, show: Callable[[Step], None], arguments: argparse.Namespace, asked: datetime
) -> int:
    """Recover the cluster into a new directory; no server and no live data is changed.

    Arguments:
        asked: the time from which ``… ago`` counts.
    """
    from portal.ops.pitr.data_dir import deliver, plan_delivery
    from portal.ops.pitr.moment import parse_moment, shown
    from portal.ops.pitr.plan import clock_offset, with_last_transaction
    from portal.ops.pitr.wal_archive import WalArchive
    from portal.ops.repository.repository import Repository
    from portal.ops.runtime.process import SystemRunner
    from portal.ops.runtime.progress import Meter, available_cores

    repository = Repository(settings.local_path, lock_timeout=settings.lock_timeout)
    ahead = clock_offset(WalArchive.current(repository))
    zone = settings.schedules.time_zone
    moment = parse_moment(arguments.at, asked + ahead, zone)
    directory = Path(arguments.data_dir).absolute()
    plan = plan_delivery(repository, moment, directory, zone)
    plan = with_last_transaction(plan, runner=SystemRunner(), bin_dir=settings.pg_bin_dir)
    for line in plan.lines():
        say(line)
    if arguments.dry_run:
        say("\nDry run: nothing was changed.")
        print_result({"success": True, "dry_run": True, "at": plan.reached.isoformat(), "plan": plan.lines()})
        return 0
    meter = Meter(show)
    meter.phase = "cluster"
    meter.expect = lambda: plan.combined_bytes or plan.cluster_bytes
    delivered = deliver(
        repository,
        plan,
        directory,
        runner=SystemRunner(),
        bin_dir=settings.pg_bin_dir,
        jobs=arguments.jobs or settings.jobs or available_cores(),
        lock_timeout=settings.lock_timeout,
        advance=meter.advance,
    )
    say(f"\nthe cluster is in {delivered.directory}, as of {shown(delivered.moment, zone)}")
    for note in delivered.notes:
        say(f"  {note}")
    say("to start it:")
    for command in delivered.commands:
        say(f"  {command}")
    print_result(delivered.to_dict())
    return 0
