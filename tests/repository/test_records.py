"""What is recorded of archives is kept for ever, says nothing of other files, and stops nothing where it is damaged."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest

from portal.ops.drill.report import DrillReport, DrillReports
from portal.ops.errors import ArchiveAbsentError, BusyError, ConfigurationError, RepositoryError
from portal.ops.model import BackupType, VerifyLevel
from portal.ops.repository.access_log import AccessLog, Action
from portal.ops.repository.catalogue import Catalogue
from portal.ops.repository.locks import claim
from portal.ops.repository.pins import Pins
from portal.ops.repository.records import RecordStore
from portal.ops.repository.repository import Repository
from portal.ops.repository.verifications import Verifications
from portal.ops.retention.pin import pin, unpin
from portal.ops.retention.policy import RetentionPolicy
from portal.ops.retention.prune import PruneJob
from tests.support.ages import age
from tests.support.events import Events
from tests.support.kept import finding, put_archive
from tests.support.unprivileged import NOBODY, done_by_nobody

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
GARBAGE = [b"", b"{", b"[]", b"null", b"{}", b'{"version": 9}', b'{"version": 1}', b"\xff", b"[" * 100_000]
LEVELS = list(VerifyLevel)


@pytest.fixture
def name(tmp_path: Path) -> str:
    """An archive in the repository."""
    return put_archive(tmp_path, BackupType.FULL, NOW)


class TestVerifications:
    def test_a_finding_comes_back(self, tmp_path: Path, name: str) -> None:
        """What was recorded is read again, from a file of its owner's alone."""
        found = finding(tmp_path, name, VerifyLevel.CONTENTS)
        record = Verifications(Repository(tmp_path)).record(found, NOW)
        assert Verifications(Repository(tmp_path)).of(name) == record
        assert Verifications(Repository(tmp_path)).all() == {name: record}
        assert (tmp_path / ".verifications" / f"{name}.json").stat().st_mode & 0o777 == 0o600
        assert (record.level, record.intact, record.moment) == (VerifyLevel.CONTENTS, True, NOW)

    @pytest.mark.parametrize("first", LEVELS)
    @pytest.mark.parametrize("second", LEVELS)
    def test_the_closest_look_stays(self, tmp_path: Path, name: str, first: VerifyLevel, second: VerifyLevel) -> None:
        """A later look replaces an earlier one that was not closer."""
        known = Verifications(Repository(tmp_path))
        known.record(finding(tmp_path, name, first), NOW)
        kept = known.record(finding(tmp_path, name, second), NOW + timedelta(1))
        assert kept.level == max(first, second, key=LEVELS.index)
        assert (kept.moment > NOW) == second.covers(first)

    def test_a_failure_always_counts(self, tmp_path: Path, name: str) -> None:
        """A damage that the least close look finds replaces the closest one before."""
        known = Verifications(Repository(tmp_path))
        known.record(finding(tmp_path, name, VerifyLevel.DRILL), NOW)
        known.record(finding(tmp_path, name, VerifyLevel.CHECKSUM, damage="gone bad"), NOW)
        kept = known.of(name)
        assert kept is not None
        assert not kept.intact

    def test_a_failure_stays_until_as_close_a_look(self, tmp_path: Path, name: str) -> None:
        """A less close look does not see what a closer one has found."""
        known = Verifications(Repository(tmp_path))
        known.record(finding(tmp_path, name, VerifyLevel.DUMP, damage="no dump"), NOW)
        assert not known.record(finding(tmp_path, name, VerifyLevel.CHECKSUM), NOW).intact
        assert known.record(finding(tmp_path, name, VerifyLevel.DUMP), NOW).intact

    def test_another_archive_of_that_name_is_unknown(self, tmp_path: Path, name: str) -> None:
        """A finding is one of bytes: an archive with another checksum was not verified."""
        known = Verifications(Repository(tmp_path))
        known.record(finding(tmp_path, name, VerifyLevel.DUMP, checksum="0" * 64), NOW)
        assert known.of(name) is None
        assert known.all() == {}

    def test_an_archive_outside_is_not_recorded(self, tmp_path: Path, name: str) -> None:
        """What lies elsewhere leaves nothing in the repository."""
        Verifications(Repository(tmp_path / "other")).note(finding(tmp_path, name, VerifyLevel.DUMP), NOW)
        assert not (tmp_path / "other").exists()

    def test_what_cannot_be_recorded_breaks_nothing(self, tmp_path: Path, name: str) -> None:
        """Where the directory of records is none, a verification goes on."""
        (tmp_path / ".verifications").write_text("in the way")
        Verifications(Repository(tmp_path)).note(finding(tmp_path, name, VerifyLevel.DUMP), NOW)
        assert (tmp_path / ".verifications").read_text() == "in the way"

    @pytest.mark.parametrize("garbage", GARBAGE)
    def test_a_damaged_record_is_named(self, tmp_path: Path, name: str, garbage: bytes) -> None:
        """It is an error with a hint to ask for it, counts as absent among all, and is replaced by the next one."""
        known = Verifications(Repository(tmp_path))
        known.record(finding(tmp_path, name, VerifyLevel.DUMP), NOW)
        (tmp_path / ".verifications" / f"{name}.json").write_bytes(garbage)
        with pytest.raises(RepositoryError, match=name) as caught:
            known.of(name)
        assert caught.value.hint
        assert known.all() == {}
        assert known.record(finding(tmp_path, name, VerifyLevel.CHECKSUM), NOW) == known.of(name)

    def test_a_checksum_that_cannot_be_read_takes_no_result_away(self, tmp_path: Path, name: str) -> None:
        """One that says nothing any more confirms none; one that cannot be read may be right."""
        known = Verifications(Repository(tmp_path))
        record = known.record(finding(tmp_path, name, VerifyLevel.DUMP), NOW)
        sidecar = tmp_path / f"{name}.tar.gz.sha256"
        sidecar.write_text("no checksum")
        assert (known.of(name), known.all()) == (None, {})
        sidecar.unlink()
        sidecar.mkdir()
        assert (known.of(name), known.all()) == (record, {name: record})

    @pytest.mark.parametrize("version", [0, 2])
    def test_a_record_of_another_version_is_not_read(self, tmp_path: Path, name: str, version: int) -> None:
        """What its fields mean then, nobody knows, however familiar they look."""
        known = Verifications(Repository(tmp_path))
        known.record(finding(tmp_path, name, VerifyLevel.DUMP), NOW)
        path = tmp_path / ".verifications" / f"{name}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "version": version}))
        with pytest.raises(RepositoryError, match=name):
            known.of(name)
        assert known.all() == {}

    def test_what_is_told_of_a_damaged_one(self, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Among all, it is logged with its path; no unfinished write is taken for a record."""
        events = Events(monkeypatch, "portal.ops.repository.records")
        (tmp_path / ".verifications").mkdir()
        path = tmp_path / ".verifications" / f"{name}.json"
        path.write_text("{")
        for other in (".x.json", "x.json.7.tmp", "notes.txt"):
            path.with_name(other).write_text("{")
        known = Verifications(Repository(tmp_path))
        assert (known.all(), known.names()) == ({}, [name])
        with pytest.raises(RepositoryError, match=f"the record {path} is invalid") as caught:
            known.of(name)
        assert f"{name}.json in {path.parent}" in caught.value.hint
        assert events.all == [("warning", "record_unreadable", {"path": str(path), "error": str(caught.value)})]

    def test_what_the_system_refuses_is_told(self, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Reading, writing, removing and hashing name the record; only a verification goes on."""
        events = Events(monkeypatch, "portal.ops.repository.verifications")
        store = RecordStore(tmp_path / ".verifications")
        digest = store.write("one", {"a": 1})
        assert store.digest("one") == digest == sha256((tmp_path / ".verifications/one.json").read_bytes()).hexdigest()
        assert (store.digest("two"), store.read("two"), store.decoded("two", dict), store.remove("two")) == (
            None,
            None,
            None,
            False,
        )
        assert store.read("one") == {"version": 1, "a": 1}
        path = tmp_path / ".verifications" / f"{name}.json"
        path.mkdir()
        for refused, said in (
            (store.digest, "cannot read"),
            (store.read, "cannot read"),
            (store.remove, "cannot remove"),
            (lambda one: store.write(one, {}), "cannot write"),
        ):
            with pytest.raises(RepositoryError, match=f"{said} {path}: is a directory"):
                refused(name)
        assert store.remove("one")
        assert store.names() == [name]
        path.rmdir()
        path.symlink_to(path)
        found = finding(tmp_path, name, VerifyLevel.DUMP)
        Verifications(Repository(tmp_path)).note(found, NOW)
        assert [(level, event, facts["path"]) for level, event, facts in events.all] == [
            ("warning", "verification_unrecorded", str(found.path))
        ]

    def test_by_another_way_to_the_repository_it_is_the_same(self, tmp_path: Path, name: str) -> None:
        """A verification of an archive behind a link is recorded."""
        (tmp_path / "link").symlink_to(tmp_path)
        found = finding(tmp_path / "link", name, VerifyLevel.DUMP)
        Verifications(Repository(tmp_path)).note(found, NOW)
        assert Verifications(Repository(tmp_path)).names() == [name]

    def test_records_that_cannot_be_listed_are_an_error(self, tmp_path: Path, name: str) -> None:
        """It names their directory, and is not taken for a repository in which nothing was verified."""
        (tmp_path / ".verifications").write_text("in the way")
        with pytest.raises(RepositoryError, match=r"cannot read .*\.verifications"):
            Verifications(Repository(tmp_path)).all()

    def test_the_format_is_frozen(self, tmp_path: Path, name: str) -> None:
        """A record as the first release writes it."""
        (tmp_path / ".verifications").mkdir()
        (tmp_path / ".verifications" / f"{name}.json").write_text(
            json.dumps(
                {
                    "version": 1,
                    "backup_id": name,
                    "level": "drill",
                    "moment": "2026-01-02T03:04:05+00:00",
                    "intact": False,
                    "checksum": "ab",
                    "message": "not intact",
                }
            )
        )
        record = Verifications(Repository(tmp_path)).of(name)
        assert record is not None
        assert (record.level, record.moment, record.intact) == (VerifyLevel.DRILL, NOW, False)


class TestPins:
    def test_a_pin_says_who_and_why(self, tmp_path: Path, name: str) -> None:
        """What a person has said is kept."""
        pinned = pin(Repository(tmp_path), "latest", reason="audit 2026", actor="ada", clock=lambda: NOW)
        assert Pins(Repository(tmp_path)).all() == {name: pinned}
        assert (pinned.who, pinned.reason, pinned.moment) == ("ada", "audit 2026", NOW)

    def test_unpinning(self, tmp_path: Path, name: str) -> None:
        """An archive that is let go is pinned no more, and a second time changes nothing."""
        repository = Repository(tmp_path)
        pin(repository, name)
        assert unpin(repository, name) == (name, True)
        assert unpin(repository, name) == (name, False)
        assert Pins(repository).names() == frozenset()

    def test_both_are_logged(self, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """In the log and in the access log, by the archive's whole name, with the reason and who wanted it."""
        events = Events(monkeypatch, "portal.ops.retention.pin")
        repository = Repository(tmp_path)
        pin(repository, "latest", reason="audit", actor="ada", clock=lambda: NOW)
        unpin(repository, "latest", actor="bob", clock=lambda: NOW)
        assert events.all == [
            ("info", "archive_pinned", {"backup_id": name}),
            ("info", "archive_unpinned", {"backup_id": name}),
        ]
        first, second = AccessLog(repository).entries()
        assert (first.action, first.subject, first.who, first.moment) == (Action.PIN, name, "ada", NOW)
        assert first.details["reason"] == "audit"
        assert (second.action, second.subject, second.who, second.moment) == (Action.UNPIN, name, "bob", NOW)

    def test_only_an_archive_of_the_repository_is_pinned(self, tmp_path: Path, name: str) -> None:
        """One beside it, which no prune here would remove, is refused; by another way to the directory it is ours."""
        (tmp_path / "other").mkdir()
        (tmp_path / "link").symlink_to(tmp_path)
        elsewhere = put_archive(tmp_path / "other", BackupType.MEDIA, NOW)
        with pytest.raises(ConfigurationError, match="is not in the repository"):
            pin(Repository(tmp_path), tmp_path / "other" / f"{elsewhere}.tar.gz")
        assert Pins(Repository(tmp_path)).names() == frozenset()
        pin(Repository(tmp_path), tmp_path / "link" / f"{name}.tar.gz")
        assert Pins(Repository(tmp_path)).names() == {name}

    def test_an_archive_that_is_claimed_is_not_pinned(
        self, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A prune that is about to remove it is waited for, for a while."""
        monkeypatch.setattr("portal.ops.retention.pin._HOLD_SECONDS", 0.05)
        with claim(tmp_path / f"{name}.tar.gz"), pytest.raises(BusyError):
            pin(Repository(tmp_path), name)
        assert Pins(Repository(tmp_path)).names() == frozenset()

    def test_a_pin_of_an_archive_that_is_gone_can_be_taken_back(self, tmp_path: Path, name: str) -> None:
        """A pin does not need its archive."""
        repository = Repository(tmp_path)
        pin(repository, name)
        (tmp_path / f"{name}.tar.gz").unlink()
        assert unpin(repository, name) == (name, True)
        with pytest.raises(ArchiveAbsentError):
            unpin(repository, name)

    @pytest.mark.parametrize("garbage", GARBAGE)
    def test_a_damaged_pin_pins(self, tmp_path: Path, name: str, garbage: bytes) -> None:
        """A record that cannot be read is no reason to let an archive go."""
        repository = Repository(tmp_path)
        pin(repository, name)
        (tmp_path / ".pins" / f"{name}.json").write_bytes(garbage)
        assert Pins(repository).names() == {name}
        pinned = Pins(repository).all()[name]
        assert (pinned.backup_id, pinned.who, pinned.moment.timestamp()) == (name, "", 0)
        assert pinned.reason == "(the record of this pin is damaged)"


class TestDrillReports:
    def test_reports_come_back_newest_first(self, tmp_path: Path) -> None:
        """What was kept is read again."""
        reports = DrillReports(Repository(tmp_path))
        made = [
            DrillReport(
                drill_id=f"drill_2026010{day}_000000_abcdef",
                backup_id="full",
                started=NOW + timedelta(day),
                success=True,
                seconds=1.5,
                damages=("a", "b"),
            )
            for day in (1, 2)
        ]
        for report in made:
            reports.save(report)
        assert reports.all() == made[::-1]

    @pytest.mark.parametrize("garbage", GARBAGE)
    def test_a_damaged_report_stops_nothing(self, tmp_path: Path, garbage: bytes) -> None:
        """The others are still there."""
        reports = DrillReports(Repository(tmp_path))
        reports.save(DrillReport(drill_id="drill_20260101_000000_abcdef", backup_id="full", started=NOW))
        (tmp_path / ".drills" / "drill_x.json").write_bytes(garbage)
        assert len(reports.all()) == 1


def test_what_root_records_is_the_owners(tmp_path: Path, name: str) -> None:
    """Who verifies, pins, lists and prunes as root leaves nothing that the owner of the repository cannot use."""
    repository = Repository(tmp_path)

    def look() -> None:
        assert Verifications(Repository(Path())).of(name)
        assert Catalogue(Repository(Path())).entries()[0].fault == ""
        PruneJob(Repository(Path()), RetentionPolicy()).run().raise_error()

    if os.geteuid() == 0:
        for path in (tmp_path, *tmp_path.iterdir()):
            os.chown(path, NOBODY, NOBODY)
    Verifications(repository).record(finding(tmp_path, name, VerifyLevel.CONTENTS), NOW)
    pin(repository, name)
    age(tmp_path)
    PruneJob(repository, RetentionPolicy()).run().raise_error()
    found = list(tmp_path.rglob("*"))
    assert {".access.jsonl", ".lock", ".pins", "catalogue.sqlite"} <= {path.name for path in found}
    assert {path.stat().st_uid for path in found} == {tmp_path.stat().st_uid}
    done_by_nobody(tmp_path, look)


def test_a_file_of_several_names_is_not_given_away(tmp_path: Path) -> None:
    """It may be one of root's, put there by another user."""
    place = tmp_path / "repository"
    place.mkdir()
    (tmp_path / "secret").touch(mode=0o600)
    (place / ".lock").hardlink_to(tmp_path / "secret")
    if os.geteuid() == 0:
        os.chown(place, NOBODY, NOBODY)
    with Repository(place).exclusive():
        assert (tmp_path / "secret").stat().st_uid == os.geteuid()
