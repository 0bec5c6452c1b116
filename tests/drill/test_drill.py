"""A drill restores for real, sees every difference, leaves nothing behind, and never touches what is live."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.archive.open import open_archive
from portal.ops.drill.compare import Comparison
from portal.ops.drill.job import DrillJob
from portal.ops.drill.report import DIRECTORY, DrillReport, DrillReports
from portal.ops.drill.scratch import Scratch, drills_locked
from portal.ops.errors import RestoreError
from portal.ops.model import VerifyLevel
from portal.ops.postgres.server import find_database, maintenance
from portal.ops.repository.access_log import AccessLog, Action, Outcome
from portal.ops.repository.repository import Repository
from portal.ops.repository.verifications import Verifications
from tests.support import commands
from tests.support.histories import History
from tests.support.killing import killed_at
from tests.support.portal import Portal, execute, small_disk, succeeded
from tests.support.waiting import wait_until
from tests.support.world import World, config_of

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
STRIDE = 1 if os.environ.get("KEKKAI_LONG_TESTS") == "1" else 19


def drill(portal: Portal, archive: str | Path = "latest", **changes: Any) -> DrillReport:
    return DrillJob(config_of(portal, **changes), actor="ada").run(archive)


def repository_of(portal: Portal) -> Repository:
    return Repository(portal.archives)


def left_behind(world: World) -> list[str]:
    """Scratch databases and scratch directories."""
    directories = [path.name for path in (world.portal.archives / DIRECTORY).iterdir() if path.is_dir()]
    return [name for name in world.databases() if "_drill_" in name] + directories


class TestWhatItShows:
    def test_a_good_archive(self, world: World) -> None:
        """Everything is restored, timed and compared; the live data is as it was, and nothing is left."""
        databases = world.databases()
        report = drill(world.portal)
        assert (report.error, report.damages, report.success, report.exit_code) == (None, (), True, 0)
        assert (report.tables, report.files) == (len(world.before[0]), 5)
        assert report.rows == sum(rows for rows, _ in world.before[0].values())
        assert report.seconds == report.database_seconds + report.files_seconds > 0
        assert world.state() == world.after
        assert world.databases() == databases
        assert left_behind(world) == []

    def test_it_is_kept_and_sealed(self, world: World) -> None:
        """The report is in the repository, its digest in the access log, and the archive is verified at that level."""
        report = drill(world.portal)
        repository = repository_of(world.portal)
        (kept,) = DrillReports(repository).all()
        assert (kept.drill_id, kept.backup_id, kept.who) == (report.drill_id, report.backup_id, "ada")
        record = Verifications(repository).of(report.backup_id)
        assert record is not None
        assert (record.level, record.intact, record.checksum) == (VerifyLevel.DRILL, True, report.checksum)
        entry = list(AccessLog(repository).entries())[-1]
        path = repository.path / DIRECTORY / f"{report.drill_id}.json"
        assert (entry.outcome, entry.subject) == (Outcome.DONE, report.backup_id)
        assert entry.details["report"] == sha256(path.read_bytes()).hexdigest()

    def test_a_damaged_archive(self, world: World) -> None:
        """Damage is code 4, is recorded as a failed verification, and leaves nothing either."""
        data = bytearray(world.archive.read_bytes())
        data[len(data) // 2] ^= 1
        world.archive.write_bytes(data)
        report = drill(world.portal)
        assert (report.success, report.exit_code) == (False, 4)
        assert report.damages
        record = Verifications(repository_of(world.portal)).of(report.backup_id)
        assert record is not None
        assert not record.intact
        assert left_behind(world) == []
        assert world.state() == world.after

    def test_a_server_that_is_away_says_nothing_of_the_archive(self, world: World) -> None:
        """What is wrong with the place of a drill is no damage."""
        report = drill(world.portal, db_port=1)
        assert (report.success, report.exit_code, report.damages) == (False, 1, ())
        assert "hint" in (report.error or "")
        assert Verifications(repository_of(world.portal)).of(report.backup_id) is None
        assert len(DrillReports(repository_of(world.portal)).all()) == 1

    def test_constraints_that_were_never_validated(self, world: World) -> None:
        """The live database had them like that, so they are told, and no damage."""
        execute(
            world.portal.database,
            "ALTER TABLE finding ADD CONSTRAINT later CHECK (id > 0) NOT VALID",
        )
        succeeded(world.portal.job().backup_full())
        report = drill(world.portal)
        assert report.success
        assert "later of public.finding" in report.warnings[0]

    def test_indexes_that_were_not_finished_in_the_source(self, world: World) -> None:
        """One of a partitioned table is restored as it was, one of a table is in no dump: neither is damage."""
        execute(
            world.portal.database,
            "CREATE TABLE event (id integer, at date) PARTITION BY HASH (id)",
            "CREATE TABLE event_0 PARTITION OF event FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
            "CREATE INDEX event_at ON ONLY event (at)",
            "CREATE INDEX finding_cut_off ON finding (id)",
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'finding_cut_off'::regclass",
        )
        succeeded(world.portal.job().backup_full())
        report = drill(world.portal)
        assert (report.success, report.damages) == (True, ())
        (warning,) = report.warnings
        assert warning == "indexes that were not finished in the source, and are not here: public.event_at"

    def test_a_link_that_leads_out(self, world: World) -> None:
        """It is as in the backup, so the drill succeeds; what a restore will ask for is in its report."""
        (world.portal.uploads / "reports").symlink_to("/var/lib/reports")
        succeeded(world.portal.job().backup_full())
        report = drill(world.portal)
        assert (report.success, report.damages) == (True, ())
        (warning,) = report.warnings
        assert "media/reports leads out of the tree, to /var/lib/reports" in warning
        assert "--allow-outside-links" in warning
        assert f"warning: {warning}" in report.lines()


def test_a_report_that_was_changed_is_found(world: World) -> None:
    """The access log has its digest: `audit --verify` names it, and ends as it does with a log that is broken."""
    changed, gone = drill(world.portal), drill(world.portal)
    place = world.portal.archives / DIRECTORY
    (place / f"{gone.drill_id}.json").unlink()
    assert audit(world.portal).returncode == 0
    report = place / f"{changed.drill_id}.json"
    report.write_text(report.read_text().replace('"success": true', '"success": false'))
    ended = audit(world.portal)
    assert (ended.returncode, json.loads(ended.stdout)["altered_drills"]) == (4, [changed.drill_id])
    assert f"the report of {changed.drill_id} was changed after it was written" in ended.stderr


def test_a_report_that_was_put_in_is_found(world: World) -> None:
    """The access log knows its drill not, whatever it says inside; with nothing put in there is nothing to tell."""
    real = drill(world.portal)
    with drills_locked(repository_of(world.portal)):
        refused = drill(world.portal)
    assert json.loads(audit(world.portal).stdout)["unlogged_drills"] == []
    place = world.portal.archives / DIRECTORY
    forged = ["drill_20990101_000000_abcdef", refused.drill_id]
    for name in forged:
        (place / f"{name}.json").write_bytes((place / f"{real.drill_id}.json").read_bytes())
    ended = audit(world.portal)
    assert ended.returncode == 4
    assert set(json.loads(ended.stdout)["unlogged_drills"]) == set(forged)
    assert "the log has no drill for the report drill_20990101_000000_abcdef" in ended.stderr
    assert "hint: Move .drills/drill_20990101_000000_abcdef.json away" in ended.stderr


def test_a_log_that_was_begun_anew_tells_of_no_forgery(tmp_path: Path) -> None:
    """Reports from before its first line, and all of them where there is no log, may well be what drills wrote."""
    history = History(path=tmp_path)
    history.drill("full_20261120_020000_abcdef", timedelta(days=2))
    reports, log = DrillReports(history.repository), AccessLog(history.repository)
    assert reports.unlogged(log.entries()) == []
    history.entry(Action.PIN, "full_20261120_020000_abcdef", age=timedelta(days=1))
    assert reports.unlogged(log.entries()) == []
    history.drill("full_20261120_020000_abcdef", timedelta(hours=1))
    (forged,) = reports.unlogged(log.entries())
    assert forged == reports.all()[0].drill_id


def audit(portal: Portal) -> commands.Ended:
    return commands.run("audit", "--verify", environ=portal.environ())


class TestWhichOne:
    def test_the_newest_full_one(self, world: World) -> None:
        """Databases that are newer are not what a drill is for, unless they are named."""
        newer = succeeded(world.portal.job().backup_database())
        assert drill(world.portal).backup_id.startswith("full_")
        report = drill(world.portal, newer)
        assert (report.success, report.files) == (True, 0)

    def test_there_is_none(self, portal: Portal) -> None:
        """Without a full backup there is nothing to try."""
        portal.archives.mkdir()
        report = drill(portal)
        assert (report.exit_code, report.success) == (2, False)

    def test_one_that_was_refused_has_shown_nothing(self, world: World) -> None:
        """It does not count as a restore that failed: no report is kept, and the last one stays the last one."""
        good = drill(world.portal)
        with drills_locked(repository_of(world.portal)):
            assert drill(world.portal).exit_code == 5
        assert drill(world.portal, "nosuch").exit_code != 0
        succeeded(world.portal.job().backup_media(incremental=True))
        (world.portal.uploads / "more.sarif").write_text("more")
        assert drill(world.portal, succeeded(world.portal.job().backup_media(incremental=True))).exit_code == 2
        assert [report.drill_id for report in DrillReports(repository_of(world.portal)).all()] == [good.drill_id]

    def test_an_archive_without_a_sidecar(self, world: World) -> None:
        """It may be anything, and its SQL is not run."""
        world.archive.with_name(world.archive.name + ".sha256").unlink()
        assert drill(world.portal).exit_code == 4

    def test_an_incremental(self, world: World) -> None:
        """One archive of a chain is not a portal: it is refused."""
        succeeded(world.portal.job().backup_media(incremental=True))
        (world.portal.uploads / "more.sarif").write_text("more")
        tip = succeeded(world.portal.job().backup_media(incremental=True))
        report = drill(world.portal, tip)
        assert (report.exit_code, "incremental" in (report.error or ""), left_behind(world)) == (2, True, [])


class TestInTheWay:
    def test_another_drill(self, world: World) -> None:
        """Two at once would be in each other's way: the second one is refused."""
        with drills_locked(repository_of(world.portal)):
            assert drill(world.portal).exit_code == 5
            assert DrillJob(config_of(world.portal)).recover() == ()

    def test_a_database_of_that_name(self, world: World) -> None:
        """A database that this drill has not made is not touched."""
        scratch = Scratch(drill_id="drill_20260101_000000_abcdef", directory=world.portal.archives / "x")
        scratch.directory.mkdir()
        target = scratch.database(world.portal.database)
        with maintenance(target) as connection:
            connection.execute(f'CREATE DATABASE "{target.name}"')
            with pytest.raises(RestoreError, match="already"):
                scratch.create_database(world.portal.database)
            scratch.throw_away(world.portal.database)
            assert find_database(connection, target.name)
            connection.execute(f'DROP DATABASE "{target.name}"')

    def test_a_note_that_names_something_else(self, world: World) -> None:
        """Remains that would have the live database dropped are left to a person."""
        place = world.portal.archives / DIRECTORY / "drill_20260101_000000_abcdef"
        place.mkdir(parents=True)
        live = world.portal.database
        note = {"database": live.name, "live": live.name, "host": live.host, "port": live.port}
        (place / "database.json").write_text(json.dumps(note))
        (said,) = DrillJob(config_of(world.portal)).recover()
        assert "cannot be removed" in said
        assert world.state() == world.after

    def test_no_room(self, world: World, tmp_path: Path) -> None:
        """A drill that cannot fit is not begun."""
        with small_disk(tmp_path / "small", "20m"):
            for path in (world.archive, world.archive.with_name(world.archive.name + ".sha256")):
                (tmp_path / "small" / path.name).write_bytes(path.read_bytes())
            report = drill(world.portal, local_path=tmp_path / "small")
        assert "a drill needs about" in (report.error or "")
        assert report.exit_code == 1


class TestCutOff:
    def test_killed_at_any_step(self, world: World) -> None:
        """Wherever it is killed, whoever starts next throws the remains away, and the live data is as it was."""
        step = 1
        while killed_at(step, lambda: drill(world.portal)):
            DrillJob(config_of(world.portal)).recover()
            assert not (world.portal.archives / DIRECTORY).exists() or left_behind(world) == []
            step += STRIDE
        assert step > 30
        assert world.state() == world.after
        assert drill(world.portal).success

    def test_a_signal_takes_everything_back(self, world: World) -> None:
        """A drill that is asked to end drops its database and its directory before it does."""
        execute(
            world.portal.database,
            "CREATE TABLE big AS SELECT n, repeat('x', 500) AS x FROM generate_series(1, 60000) n",
        )
        succeeded(world.portal.job().backup_full())
        running = subprocess.Popen(
            [sys.executable, "-I", "-m", "tools.backup", "drill"],
            env=world.portal.environ(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        wait_until(lambda: running.poll() is not None or [one for one in world.databases() if "_drill_" in one])
        running.send_signal(signal.SIGTERM)
        running.communicate(timeout=60)
        assert running.returncode in (0, 128 + signal.SIGTERM)
        assert left_behind(world) == []

    def test_the_command(self, world: World) -> None:
        """One JSON object on standard output, the report in words beside it."""
        ended = subprocess.run(
            [sys.executable, "-I", "-m", "tools.backup", "verify", "latest", "--level", "drill"],
            env=world.portal.environ(),
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(ended.stdout)["success"]
        assert "everything is as in the backup" in ended.stderr


class TestComparing:
    """Every way in which something restored can differ is seen."""

    @pytest.mark.parametrize(
        ("spoil", "what"),
        [
            (lambda path: path.write_text("x"), "bytes"),
            (lambda path: path.write_bytes(bytes(path.stat().st_size)), "time of change"),
            (lambda path: _keep_time(path, lambda: path.write_bytes(bytes(path.stat().st_size))), "SHA-256"),
            (lambda path: path.chmod(0o640), "mode is 640"),
            (lambda path: os.utime(path, ns=(0, 1)), "time of change"),
            (lambda path: path.unlink(), "not restored"),
            (lambda path: (path.unlink(), path.mkdir()), "something else"),
            (lambda path: path.with_name("more").write_text(""), "not in the backup"),
        ],
    )
    def test_files(self, portal: Portal, spoil: Callable[[Path], object], what: str) -> None:
        """Content, size, mode, time, absence and presence."""
        archive = open_archive(succeeded(portal.job().backup_media()))
        same, other = Comparison(), Comparison()
        same.files_of(archive, "media", portal.uploads)
        spoil(next(path for path in sorted(portal.uploads.rglob("*")) if path.is_file()))
        other.files_of(archive, "media", portal.uploads)
        archive.close()
        assert same.damages == []
        assert what in str(other.damages[0])

    def test_rows(self) -> None:
        """A table that is missing, new, or has other rows."""
        found = Comparison()
        found.rows_of_tables({"a": 1, "b": 2, "new": 0}, {"a": 1, "b": 3, "gone": 0})
        assert [str(damage).split()[1] for damage in found.damages] == ["b", "gone", "new"]

    def test_a_database_without_a_table(self) -> None:
        """It has no rows to compare, and that is no lack of the manifest."""
        found, unknown = Comparison(), Comparison()
        found.rows_of_tables({}, {})
        unknown.rows_of_tables({"a": 1}, {})
        assert (found.warnings, len(unknown.warnings)) == ([], 1)


def _keep_time(path: Path, change: Callable[[], object]) -> None:
    before = path.stat().st_mtime_ns
    change()
    os.utime(path, ns=(before, before))
