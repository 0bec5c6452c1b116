"""The recovered cluster is delivered for a new server, and its WAL goes on upon a new timeline."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from portal.ops.pitr.data_dir import deliver, plan_delivery
from portal.ops.pitr.plan import plan_recovery
from portal.ops.pitr.recovery import recovered
from portal.ops.runtime.process import SystemRunner
from tests.support.sessions import session
from tests.support.wal_servers import WalPortal, a_moment, wal_portal


def numbers(portal: WalPortal) -> list[int]:
    with portal.postgres.connect() as connection:
        return [number for (number,) in connection.execute("SELECT number FROM stamped ORDER BY 1")]


def test_recovered_cluster_becomes_the_new_server(tmp_path: Path) -> None:
    """It starts, has the rows of the moment, and moments before and after the change can be recovered to.

    Its base backup is an incremental one: what is delivered is combined from a chain, and nothing else is left.
    """
    with (
        wal_portal(tmp_path, summarize_wal="on") as portal,
        tempfile.TemporaryDirectory(prefix="kekkai-new-", dir="/tmp") as reachable,
    ):
        os.chmod(reachable, 0o755)  # noqa: S103  (the user of the scratch server passes through it)
        with portal.postgres.connect() as connection:
            connection.execute("CREATE TABLE stamped (number int)")
        with portal.receiving():
            assert portal.job().backup_base().success
            assert portal.job().backup_base().parent
            with portal.postgres.connect() as connection:
                connection.execute("INSERT INTO stamped VALUES (1)")
                moment = a_moment()
                connection.execute("INSERT INTO stamped VALUES (2)")
            lost = portal.wait_until_covered()
        place = Path(reachable) / "data"
        plan = plan_delivery(portal.repository, moment, place)
        assert len(plan.line) == 2
        delivered = deliver(
            portal.repository, plan, place, runner=SystemRunner(), bin_dir=portal.bin_dir, jobs=2, lock_timeout=5
        )
        assert any("pg_ctl" in command for command in delivered.commands)
        assert delivered.directory == place
        assert not list(place.rglob("INCREMENTAL.*"))
        assert [path.name for path in Path(reachable).iterdir()] == ["data"]
        portal.postgres.restart(data=place)
        assert numbers(portal) == [1]
        with portal.receiving():
            with portal.postgres.connect() as connection:
                connection.execute("INSERT INTO stamped VALUES (3)")
            portal.wait_until_covered()
        assert portal.look().window is not None
        assert {span.timeline for span in portal.look().spans} == {1, 2}
        found = []
        for wanted in (lost, None):
            again = plan_recovery(portal.repository, wanted)
            recovering = recovered(
                portal.repository, again, runner=SystemRunner(), bin_dir=portal.bin_dir, jobs=2, lock_timeout=5
            )
            with recovering as server, session(server.target("postgres")) as connection:
                found.append([number for (number,) in connection.execute("SELECT number FROM stamped ORDER BY 1")])
        assert found == [[1, 2], [1, 3]]
