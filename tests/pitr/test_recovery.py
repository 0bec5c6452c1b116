"""A cluster is recovered to moments, by a server that disappears."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from portal.ops.pitr.plan import OutsideWindowError, plan_recovery
from portal.ops.pitr.recovery import recovered
from portal.ops.pitr.scratch import DIRECTORY, sweep_scratch
from portal.ops.runtime.process import SystemRunner
from tests.support.sessions import session
from tests.support.waiting import wait_until
from tests.support.wal_servers import WalPortal, a_moment, wal_portal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from portal.ops.postgres.connection import Connection


ROOT: Final = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def portal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WalPortal]:
    """A server with a base backup whose WAL is received."""
    with wal_portal(tmp_path_factory.mktemp("pitr")) as made:
        with made.postgres.connect() as connection:
            connection.execute("CREATE TABLE stamped (number int)")
        with made.receiving():
            assert made.job().backup_base().success
            yield made


def numbers_at(portal: WalPortal, moment: datetime | None) -> list[int] | None:
    """What the table held at a moment; nothing where it was not there."""

    def ask(connection: Connection) -> list[int] | None:
        if connection.execute("SELECT to_regclass('stamped') IS NULL").fetchone() == (True,):
            return None
        return [number for (number,) in connection.execute("SELECT number FROM stamped ORDER BY 1")]

    plan = plan_recovery(portal.repository, moment)
    recovering = recovered(
        portal.repository, plan, runner=SystemRunner(), bin_dir=portal.bin_dir, jobs=2, lock_timeout=5
    )
    with recovering as server, session(server.target("postgres")) as connection:
        return ask(connection)


def test_each_moment_has_what_was_committed_by_then(portal: WalPortal) -> None:
    """Before and after TRUNCATE and DROP, in the middle of a transaction, over the end of a segment, and at last."""
    portal.write("TRUNCATE stamped")
    one = portal.write("INSERT INTO stamped VALUES (1)")
    with portal.postgres.connect() as connection, connection.transaction():
        connection.execute("INSERT INTO stamped VALUES (2)")
        midst = a_moment()
    two = portal.write("SELECT pg_switch_wal()")
    empty = portal.write("TRUNCATE stamped")
    gone = portal.write("INSERT INTO stamped VALUES (3)", "DROP TABLE stamped")
    portal.write("CREATE TABLE stamped (number int)", "INSERT INTO stamped VALUES (4)")
    portal.wait_until_covered()
    found = [numbers_at(portal, moment) for moment in (one, midst, two, empty, gone, None)]
    assert found == [[1], [1], [1, 2], [], None, [4]]


def test_moment_after_the_last_transaction(portal: WalPortal) -> None:
    """Where nothing was committed since, a moment has what was there last; what comes later is not in it."""
    portal.write("TRUNCATE stamped", "INSERT INTO stamped VALUES (5)")
    quiet = portal.wait_until_covered()
    plan = plan_recovery(portal.repository, quiet)
    recovering = recovered(
        portal.repository, plan, runner=SystemRunner(), bin_dir=portal.bin_dir, jobs=2, lock_timeout=5
    )
    with recovering as server, session(server.target("postgres")) as connection:
        assert connection.execute("SELECT number FROM stamped").fetchall() == [(5,)]
    portal.write("INSERT INTO stamped VALUES (6)")
    assert numbers_at(portal, quiet) == [5]
    assert list((portal.repository.path / DIRECTORY).iterdir()) == []  # nothing is left of a scratch server


def test_outside_the_window_is_refused(portal: WalPortal) -> None:
    """The error names the window, and it is a wrong usage."""
    portal.wait_until_covered()
    for moment in (datetime.now(UTC) + timedelta(hours=1), datetime(2020, 1, 1, tzinfo=UTC)):
        with pytest.raises(OutsideWindowError, match="outside the recovery window, which is 20") as caught:
            plan_recovery(portal.repository, moment)
        assert caught.value.exit_code == 2


def test_killed_recovery_is_cleaned_up_by_the_next_command(portal: WalPortal) -> None:
    """Whenever it is killed, the server ends with it, and the next backup removes what it left."""
    portal.wait_until_covered()
    records = portal.repository.path / DIRECTORY
    for seconds in (0.0, 0.7):
        code = (
            "import sys, time; from pathlib import Path\n"
            "from portal.ops.pitr.plan import plan_recovery; from portal.ops.pitr.recovery import recovered\n"
            "from portal.ops.repository.repository import Repository\n"
            "from portal.ops.runtime.process import SystemRunner\n"
            "repository = Repository(Path(sys.argv[1])); plan = plan_recovery(repository, None)\n"
            "programs = Path(sys.argv[2])\n"
            "with recovered(repository, plan, runner=SystemRunner(), bin_dir=programs, jobs=2, lock_timeout=5):\n"
            "    time.sleep(60)\n"
        )
        before = scratch_directories(records)
        process = subprocess.Popen([sys.executable, "-c", code, portal.repository.path, portal.bin_dir], cwd=ROOT)
        wait_until(lambda before=before: scratch_directories(records) - before)  # type: ignore[misc]
        time.sleep(seconds)
        process.kill()
        process.wait()
    left = scratch_directories(records)
    assert sweep_scratch(portal.repository)
    assert list(records.iterdir()) == []
    assert not [path for path in left if path.exists()]
    wait_until(lambda: not any(str(path).encode() in command for path in left for command in commands_of_processes()))


def scratch_directories(records: Path) -> set[Path]:
    """What the records name; one that is just being made is empty."""
    found = set()
    for path in records.glob("*.lock"):
        with suppress(FileNotFoundError):
            found.add(path.read_text())
    return {Path(text) for text in found if text}


def commands_of_processes() -> list[bytes]:
    """The command lines of all processes."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            found.append((entry / "cmdline").read_bytes())
    return found
