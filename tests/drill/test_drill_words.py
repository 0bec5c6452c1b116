"""What a drill says, keeps and removes, without a server."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.drill import portal_checks
from portal.ops.drill.compare import Comparison
from portal.ops.drill.job import DrillJob
from portal.ops.drill.moments import BEHIND_BASE_TIME, FIRST_BASE_TIME, STALE, window_lacks
from portal.ops.drill.portal_checks import PortalCheckConfig, PortalChecks
from portal.ops.drill.report import DIRECTORY, DrillReport, DrillReports
from portal.ops.drill.scratch import Scratch, drills_locked, throw_remains_away
from portal.ops.errors import BusyError, DiskFullError, RestoreError
from portal.ops.manifest import Manifest
from portal.ops.model import Component
from portal.ops.pitr.look import PitrLook
from portal.ops.pitr.window import Base, Wal, Window
from portal.ops.repository.access_entry import AccessEntry
from portal.ops.repository.access_log import Action, Outcome
from portal.ops.repository.repository import Repository
from portal.ops.restore.config import RestoreConfig
from portal.ops.runtime.process import SystemRunner
from portal.ops.settings.database_url import DatabaseTarget, Secret
from portal.ops.settings.file_columns import FileColumns
from tests.support.events import Events

if TYPE_CHECKING:
    from pathlib import Path

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
DRILL = "drill_20260102_120000_abcdef"
LIVE = DatabaseTarget(host="127.0.0.1", port=1, name="dojo", user="app")
MIB = 1 << 20


def report(**changes: Any) -> DrillReport:
    facts: dict[str, Any] = {"drill_id": DRILL, "backup_id": "full_1", "started": NOON}
    return DrillReport(**(facts | changes))


class TestReport:
    """What a person and a program read."""

    def test_of_one_that_has_not_begun(self) -> None:
        """Nothing was counted, and nothing was found out."""
        found, compared = report(), Comparison()
        counts = (found.tables, found.rows, found.files, found.bytes, found.seconds, found.total_seconds)
        assert (*counts, found.database_seconds, found.files_seconds, found.exit_code) == (0,) * 9
        assert (compared.tables, compared.rows, compared.files, compared.bytes) == (0,) * 4
        assert (found.success, found.is_as_backed_up, found.command_exit_code, found.error) == (False, None, None, None)

    def test_of_a_success(self) -> None:
        """How long it took, and what was compared."""
        found = report(
            success=True, seconds=3.0, database_seconds=1.0, files_seconds=2.0, checks=("a", "b"), warnings=("w",)
        )
        assert found.lines() == [
            "warning: w",
            "full_1 was restored for a try in 3.0 s (database 1.0 s, files 2.0 s), and everything is as in the backup:",
            "  a",
            "  b",
            "What was restored has been removed again; the live data was not touched.",
        ]

    def test_of_damage(self) -> None:
        """Each once, although the error may say it too."""
        found = report(damages=("one", "two"), problems=("p",), error="it is one of them")
        assert found.lines() == [
            "damage: two",
            "problem: p",
            "full_1 was restored for a try, and is NOT as in the backup",
        ]
        assert report(damages=("one",), backup_id="").lines()[-1].startswith("the archive was restored")

    @pytest.mark.parametrize("count", [1, 20, 21, 40])
    def test_of_a_portal_that_is_not_complete(self, count: int) -> None:
        """With the end of what its own check wrote."""
        lines = [f"line {number}" for number in range(count)]
        found = report(problems=("p",), command_output="\n".join(lines)).lines()
        assert found[0] == "problem: p"
        assert found[1] == "the end of what the portal's own check wrote:"
        assert found[2:-1] == [f"  {line}" for line in lines[-20:]]
        assert found[-1] == "full_1 was restored as it was backed up, but the portal would NOT be complete"
        assert report(success=True, command_output="x").lines()[0].startswith("full_1 was restored")
        assert report(problems=("p",)).lines()[1].startswith("full_1 was restored")

    def test_of_nothing(self) -> None:
        """A drill that did not get so far has only its error."""
        assert report(error="no").lines() == []

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({"success": True}, True),
            ({"problems": ("p",), "exit_code": 1}, True),
            ({"damages": ("d",)}, False),
            ({"damages": ("d",), "success": True}, False),
            ({"exit_code": 4}, False),
            ({"exit_code": 1}, None),
            ({}, None),
        ],
    )
    def test_whether_it_is_as_backed_up(self, changes: dict[str, Any], expected: bool | None) -> None:
        """That is not known of a drill that was not finished."""
        assert report(**changes).is_as_backed_up is expected

    def test_as_json(self) -> None:
        """Times to the millisecond; other keys are passed over."""
        found = report(seconds=1.23456, tables=3, checks=("a",)).to_dict()
        assert (found["seconds"], found["tables"], found["checks"]) == (1.235, 3, ["a"])
        assert DrillReport.from_dict(found | {"more": 1}) == report(seconds=1.235, tables=3, checks=("a",))
        assert (report().success, report().exit_code, report().seconds, report().command_exit_code) == (
            False,
            0,
            0.0,
            None,
        )


class TestReports:
    """Those of a repository."""

    @pytest.fixture
    def reports(self, tmp_path: Path) -> DrillReports:
        """Of an empty one."""
        repository = Repository(tmp_path)
        repository.prepare()
        return DrillReports(repository)

    def entry(self, drill_id: str, seal: str, moment: datetime = NOON, action: Action = Action.DRILL) -> AccessEntry:
        """A line of the access log."""
        return AccessEntry(
            number=1,
            moment=moment,
            who="ada",
            host="h",
            action=action,
            subject="full_1",
            outcome=Outcome.DONE,
            previous="",
            details={"drill_id": drill_id, "report": seal},
        )

    def test_newest_first(self, reports: DrillReports) -> None:
        """Of one moment by their ids."""
        moments = {"drill_b": NOON, "drill_c": NOON - timedelta(1), "drill_a": NOON}
        for name, moment in moments.items():
            reports.save(report(drill_id=name, started=moment))
        assert [one.drill_id for one in reports.all()] == ["drill_b", "drill_a", "drill_c"]

    def test_old_ones_go(self, reports: DrillReports) -> None:
        """Except the newest, whatever their age, and the newest success; what is younger than a year stays anyhow."""
        ages = {"now": 0, "young": 365, "failed": 367, "proof": 400, "old": 401, "older": 900}
        for name, days in ages.items():
            reports.save(report(drill_id=name, started=NOON - timedelta(days), success=name in ("proof", "older")))
        assert reports.remove_old(NOON, newest=6) == 0
        assert reports.remove_old(NOON, newest=5) == 1
        assert [one.drill_id for one in reports.all()] == ["now", "young", "failed", "proof", "old"]
        assert reports.remove_old(NOON, newest=1) == 2
        assert [one.drill_id for one in reports.all()] == ["now", "young", "proof"]

    def test_what_was_altered(self, reports: DrillReports) -> None:
        """Not what is as it was logged, nor what is gone, nor what has no digest."""
        good, bad = (reports.save(report(drill_id=name)) for name in ("drill_1", "drill_2"))
        assert good != bad
        entries = [
            self.entry("drill_1", good),
            self.entry("drill_2", "0" * 64),
            self.entry("drill_3", "0" * 64),
            self.entry("drill_2", ""),
        ]
        assert reports.altered(entries) == ["drill_2"]
        assert reports.altered([self.entry("drill_2", "0" * 64, action=Action.RESTORE)]) == []

    def test_what_was_not_logged(self, reports: DrillReports) -> None:
        """Unless it is older than the log."""
        reports.save(report(drill_id="drill_1", started=NOON))
        reports.save(report(drill_id="drill_2", started=NOON))
        before, at, after = (NOON + timedelta(seconds=seconds) for seconds in (-1, 0, 1))
        assert reports.unlogged([]) == []
        for moment, expected in ((before, ["drill_2"]), (at, ["drill_2"]), (after, [])):
            assert reports.unlogged([self.entry("drill_1", "0", moment)]) == expected


class TestScratch:
    """What a drill makes is removed, and nothing else."""

    def scratch(self, tmp_path: Path, drill_id: str = DRILL) -> Scratch:
        """That of one drill."""
        return Scratch(drill_id=drill_id, directory=tmp_path / DIRECTORY / drill_id)

    def test_it_needs_room(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """And a little more, to the byte; it is for its owner alone, and made once."""
        disk = SimpleNamespace(f_bavail=70 * MIB, f_frsize=1)
        with monkeypatch.context() as patched:
            patched.setattr(os, "statvfs", lambda _: disk)
            with pytest.raises(DiskFullError, match=r"a drill needs about 73\.4 MB in"):
                self.scratch(tmp_path).make(6 * MIB + 1)
            self.scratch(tmp_path).make(6 * MIB)
        assert self.scratch(tmp_path).directory.stat().st_mode & 0o777 == 0o700
        with pytest.raises(FileExistsError):
            self.scratch(tmp_path).make(0)

    @pytest.mark.parametrize(
        ("live", "name"),
        [
            ("dojo", "dojo_drill_20260102_120000_abcdef"),
            ("x" * 63, "x" * 34 + "_drill_20260102_120000_abcdef"),
            ("ü" * 31, "ü" * 17 + "_drill_20260102_120000_abcdef"),
        ],
    )
    def test_its_database_has_a_name_of_its_own(self, tmp_path: Path, live: str, name: str) -> None:
        """Beside the live one, as long as a name can be."""
        found = self.scratch(tmp_path).database(replace(LIVE, name=live, options={"sslmode": "require"}))
        assert found == replace(LIVE, name=name, options={"sslmode": "require", "application_name": DRILL})
        for wrong in ("drill_x", "restore_20260102_120000_abcdef", f"{DRILL}x"):
            with pytest.raises(RestoreError, match="is not the id of a drill"):
                self.scratch(tmp_path, wrong).database(LIVE)

    def test_what_is_noted_must_be_its_own(self, tmp_path: Path) -> None:
        """A note that names another database is no reason to drop that; one that makes no sense neither."""
        made = self.scratch(tmp_path)
        made.make(0)
        note = made.directory / "database.json"
        note.write_text('{"database": "dojo", "live": "dojo", "host": "127.0.0.1", "port": 1}')
        with pytest.raises(RestoreError, match="names dojo, which is no database of that drill"):
            made.throw_away(LIVE)
        for text in ("{", "[]", "{}", "[" * 100_000):
            note.write_text(text)
            with pytest.raises(RestoreError, match=r"database\.json is invalid"):
                made.throw_away(LIVE)
        assert made.directory.exists()
        note.unlink()
        made.throw_away(LIVE)
        assert not made.directory.exists()
        made.throw_away(LIVE)  # it is gone already

    def test_remains_are_removed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of drills alone: no file, link or directory of another name; what cannot be removed is said."""
        events = Events(monkeypatch, "portal.ops.drill.scratch")
        repository = Repository(tmp_path)
        repository.prepare()
        place = tmp_path / DIRECTORY
        other = "drill_20260102_130000_abcdef"
        for name in (DRILL, other, "drill_else", "others"):
            (place / name).mkdir(parents=True)
        (place / f"{other}.json").touch()
        (place / "drill_20260102_140000_abcdef").symlink_to(place / "others")
        (place / "drill_20260102_150000_abcdef").touch()
        (place / other / "database.json").write_text("{")
        said = throw_remains_away(repository, LIVE)
        assert said == (
            f"{DRILL} had been interrupted; its restored data has been removed",
            f"{other} had been interrupted, and its remains cannot be removed now: "
            f"{place}/{other}/database.json is invalid",
        )
        assert [facts["detail"] for _, _, facts in events.all] == list(said)
        assert sorted(path.name for path in place.iterdir()) == sorted(
            [
                other,
                f"{other}.json",
                "drill_else",
                "others",
                "drill_20260102_140000_abcdef",
                "drill_20260102_150000_abcdef",
            ]
        )

    def test_drills_exclude_each_other(self, tmp_path: Path) -> None:
        """At once; a job that only clears up waits for none."""
        repository = Repository(tmp_path)
        job = DrillJob(RestoreConfig(local_path=tmp_path, db_port=1))
        assert job.recover() == ()
        with drills_locked(repository):
            assert job.recover() == ()
            with pytest.raises(BusyError, match="another drill is running"), drills_locked(repository):
                pass
        (tmp_path / DIRECTORY / DRILL).mkdir()
        with drills_locked(repository):
            assert job.recover() == ()
        assert len(job.recover()) == 1


class TestKey:
    """The portal's key and its own command, without a database."""

    def checks(self, tmp_path: Path, **config: Any) -> PortalChecks:
        """After they were run."""
        manifest = Manifest(
            backup_id="full_1",
            type="full",
            timestamp="",
            components=(Component.MEDIA,),
            hostname="",
            db_name="",
        )
        made = PortalChecks(config=PortalCheckConfig(**config), manifest=manifest, uploads=tmp_path)
        made.run(SystemRunner(), {"FACT": "fact"})
        return made

    def test_nothing_is_asked_for(self, tmp_path: Path) -> None:
        """Without a database and a command there is nothing to check."""
        assert PortalCheckConfig() == PortalCheckConfig(
            command=(), timeout_seconds=600.0, file_columns=FileColumns(), credential_key=None
        )
        made = self.checks(tmp_path, credential_key=Secret("key"))
        assert (made.checks, made.problems, made.warnings, made.command) == ([], [], [], None)

    @pytest.mark.parametrize(
        ("is_the_one", "opened", "check", "problems"),
        [
            (True, 0, "it is the one of this backup; 0 of 2 stored credentials opened", 1),
            (None, 2, "the backup does not say which one it needs; 2 of 2 stored credentials opened", 0),
            (None, 0, "", 1),
            (False, 0, "", 2),
        ],
    )
    def test_the_key(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        is_the_one: bool | None,
        opened: int,
        check: str,
        problems: int,
    ) -> None:
        """One that is not known to fit, and opens nothing, is no check that was passed."""
        found = SimpleNamespace(tried=2, opened=opened, closed=() if opened else ("a.b",))
        monkeypatch.setattr(portal_checks, "is_key_of", lambda *_: is_the_one)
        monkeypatch.setattr(portal_checks, "try_credentials", lambda *_: found)
        made = self.checks(tmp_path, credential_key=Secret("key"))
        made._key(LIVE)
        assert made.checks == ([f"DD_CREDENTIAL_AES_256_KEY: {check}"] if check else [])
        assert len(made.problems) == problems

    def test_the_command_has_what_it_needs(self, tmp_path: Path) -> None:
        """The uploads, the key and the facts; no database where there is none."""
        script = (
            'echo "$PORTAL_UPLOAD_DIR $DD_MEDIA_ROOT $FACT ${DD_DATABASE_NAME:-none} ${#DD_CREDENTIAL_AES_256_KEY}"'
        )
        made = self.checks(tmp_path, command=("sh", "-c", script), credential_key=Secret("the key"))
        assert made.command is not None
        assert made.command.output == f"{tmp_path} {tmp_path} fact none 7\n"
        assert [check.rpartition(" after ")[0] for check in made.checks] == ["BACKUP_DRILL_COMMAND ended with 0"]

    def test_the_command_fails(self, tmp_path: Path) -> None:
        """Or cannot be started: a problem each."""
        assert self.checks(tmp_path, command=("sh", "-c", "exit 3")).problems == ["BACKUP_DRILL_COMMAND ended with 3"]
        (said,) = self.checks(tmp_path, command=("/no/such",)).problems
        assert said == "BACKUP_DRILL_COMMAND: there is no program /no/such"


class TestWindow:
    """A recovery window that should be there."""

    def look(self, *, base: timedelta | None = None, window: timedelta | None = None) -> PitrLook:
        """What there is at noon, with a base backup and a window that ended so long ago."""
        made = Base(name="base", timeline=1, start_lsn=0, end_lsn=1, ended=NOON - (base or timedelta()))
        return PitrLook(
            archive=None,
            bases=() if base is None else (made,),
            wal=Wal(segment_bytes=16 * MIB, pieces=()),
            spans=(),
            window=None if window is None else Window(start=NOON - timedelta(days=3), end=NOON - window),
            state={},
        )

    @pytest.mark.parametrize("seconds", [0, 1])
    def test_to_the_second(self, seconds: int) -> None:
        """A window that is stale, a base backup without WAL behind it, WAL without a base backup."""
        more = timedelta(seconds=seconds)
        what, is_fault = window_lacks(self.look(base=timedelta(1), window=STALE + more), NOON, NOON)
        assert (bool(what), is_fault) == (bool(seconds), False)
        what, is_fault = window_lacks(self.look(base=BEHIND_BASE_TIME + more), NOON, NOON)
        assert ("the WAL after the base backup" in what and "is missing" in what, is_fault) == (
            bool(seconds),
            bool(seconds),
        )
        what, is_fault = window_lacks(self.look(), NOON - FIRST_BASE_TIME - more, NOON)
        assert ("without a base backup" in what, is_fault) == (bool(seconds), bool(seconds))
        what, is_fault = window_lacks(self.look(base=timedelta(minutes=5)), NOON - timedelta(9), NOON)
        assert ("yet to come" in what, is_fault) == (True, False)
