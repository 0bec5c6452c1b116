"""Base backups, WAL, recoveries and the timeline work with servers of several major versions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from portal.ops.errors import ClientToolError
from portal.ops.model import VerifyLevel
from portal.ops.pitr.plan import plan_recovery
from portal.ops.pitr.recovery import recovered
from portal.ops.pitr.relations import by_number, read_relations
from portal.ops.pitr.timeline import MANY_ROWS, read_timeline
from portal.ops.pitr.wal_archive import Cluster, WalArchive
from portal.ops.pitr.wal_reader import commits
from portal.ops.repository.repository import Repository
from portal.ops.runtime.process import SystemRunner
from tests.support.fake_runner import FakeRunner, Script
from tests.support.majors import majors
from tests.support.sessions import session
from tests.support.wal_servers import a_moment, wal_portal

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.wal_servers import WalPortal


@pytest.mark.parametrize("major", [major for major in majors() if major != 17])
def test_moment_before_an_accident(major: int, tmp_path: Path) -> None:
    """The timeline tells of the rows that were removed, and the moment before has them."""
    with wal_portal(
        tmp_path, major=major, segment_mb=None, **({"summarize_wal": "on"} if major >= 17 else {})
    ) as portal:
        with portal.postgres.connect() as connection:
            connection.execute("CREATE TABLE finding (number int)")
            connection.execute("INSERT INTO finding SELECT generate_series(1, 500)")
        with portal.receiving():
            base = portal.job().backup_base()
            assert base.success, base.error
            found = portal.job().verify(base.destination_path, VerifyLevel.CONTENTS)
            assert found.intact, found.message
            second = portal.job().backup_base()
            assert (second.parent is not None) == (major >= 17), second.error
            before = a_moment()
            with portal.postgres.connect() as connection:
                connection.execute("DELETE FROM finding WHERE number > 100")
                connection.execute("DELETE FROM finding WHERE number = 7")
            portal.wait_until_covered()
        assert removals(portal, MANY_ROWS) == [("public.finding", 400)]
        assert removals(portal, 1) == [("public.finding", 400), ("public.finding", 1)]
        plan = plan_recovery(portal.repository, before)
        recovering = recovered(
            portal.repository, plan, runner=SystemRunner(), bin_dir=portal.bin_dir, jobs=2, lock_timeout=5
        )
        with recovering as server, session(server.target("postgres")) as connection:
            assert connection.execute("SELECT count(*) FROM finding").fetchone() == (500,)


def test_wal_is_read_by_the_program_of_its_version_only(tmp_path: Path) -> None:
    """A newer one finds nothing in it, and a timeline without removals would look like a quiet day."""
    repository = Repository(tmp_path)
    repository.prepare()
    archive = WalArchive.prepare(repository, Cluster(system_identifier="1", segment_bytes=16 << 20, major=16))
    runner = FakeRunner({"pg_waldump": Script(stdout=b"pg_waldump (PostgreSQL) 17.2")})
    with pytest.raises(ClientToolError, match=r"WAL is read by a pg_waldump of version 16, .* only 17.2") as caught:
        next(commits(archive, [], runner=runner, bin_dir=tmp_path))
    assert "apt-get install postgresql-16" in caught.value.hint


def removals(portal: WalPortal, least_rows: int) -> list[tuple[str, int | None]]:
    """The tables and numbers of rows that the timeline shows."""
    timeline = read_timeline(
        portal.repository,
        start=None,
        end=None,
        live_names=by_number(read_relations(portal.target)),
        least_rows=least_rows,
        runner=SystemRunner(),
        bin_dir=portal.bin_dir,
    )
    return [(removal.table, removal.rows) for removal in timeline.removals]
