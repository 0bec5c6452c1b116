"""A restore from recover to report: what is live afterwards, what is said, and every way in which nothing changes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from psycopg.sql import SQL

from demo.compare import tree_contents
from portal.ops.errors import ConfigurationError
from portal.ops.repository.access_log import AccessLog
from portal.ops.repository.sidecar import sidecar_of
from portal.ops.restore.background_checksum import Checksum
from portal.ops.restore.components import FilesPart
from portal.ops.restore.job import RestoreConfig, RestoreJob, RestorePlan, RestoreResult
from tests.support.portal import succeeded
from tests.support.restoring import ask, execute, remove
from tests.support.world import World, config_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from portal.ops.runtime.progress import Step


def done(result: RestoreResult) -> RestoreResult:
    assert result.error is None
    assert result.success
    return result


def refused(result: RestoreResult, code: int, *words: str) -> RestoreResult:
    assert not result.success
    assert result.exit_code == code
    for word in words:
        assert word in (result.error or "")
    return result


class TestWhatComesBack:
    """A restore makes everything as it was when the backup was made; a rollback as it was before the restore."""

    def test_everything_comes_back_and_goes_again(self, world: World) -> None:
        """A full restore gives database and uploads as they were backed up, its rollback as they were before it."""
        result = done(world.job().restore_full("latest"))
        assert result.components_restored == ("database", "media", "audit_logs")
        assert result.facts["database"]["mode"] == "swap"
        assert world.state() == world.before
        back = done(world.job().rollback())
        assert back.restore_id == result.restore_id
        assert world.state() == world.after

    def test_in_place_comes_back_and_goes_again(self, world: World) -> None:
        """In place, newer tables stay, all else is as it was; the safety dump is kept, and takes it back."""
        result = done(world.job(mode="in-place").restore_full(world.archive))
        tables, files = world.state()
        assert tables.pop("public.newer") == world.after[0]["public.newer"]
        assert (tables, files) == world.before
        directory = world.portal.archives / ".restores" / result.restore_id
        assert {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()} == {
            "before.dump": 0o600,
            "before.dump.tables.json": 0o600,
        }
        done(world.job().rollback())
        assert world.state() == world.after

    def test_after_a_swap_the_dump_is_gone(self, world: World) -> None:
        """What was staged in the repository is removed; the record is for its owner alone."""
        result = done(world.job().restore_database("latest"))
        directory = world.portal.archives / ".restores"
        assert {path.name for path in directory.iterdir()} == {".lock", f"{result.restore_id}.json"}
        assert directory.stat().st_mode & 0o777 == 0o700
        assert (directory / f"{result.restore_id}.json").stat().st_mode & 0o777 == 0o600

    def test_the_audit_log_is_put_beside_the_live_one(self, world: World) -> None:
        """A restored audit log never takes the place of the live one, and the report tells of its chain."""
        log = world.portal.audit / "audit.jsonl"
        live = log.read_bytes()
        facts = done(world.job().restore_audit_logs("latest")).facts["audit_logs"]
        assert log.read_bytes() == live
        assert (Path(facts["path"]) / "audit.jsonl").read_bytes() == live
        assert facts["chains"]

    @pytest.mark.parametrize("component", ["database", "media"])
    def test_one_component_alone(self, world: World, component: str) -> None:
        """What was not asked for stays as it is."""
        job = world.job()
        done({"database": job.restore_database, "media": job.restore_media}[component]("latest"))
        database, media = (world.before, world.after) if component == "database" else (world.after, world.before)
        assert world.state() == (database[0], media[1])

    def test_newer_files_stay(self, world: World) -> None:
        """Unless an exact restore is asked for, files that the backup does not have stay."""
        done(world.job(exact=False).restore_media("latest"))
        assert world.state()[1]["newer.sarif"] == world.after[1]["newer.sarif"]

    def test_beside_what_is_live(self, world: World, tmp_path: Path) -> None:
        """Another database and another directory can be the target, and what is live is not touched."""
        name = f"{world.portal.database.name}_try"
        try:
            job = world.job(target_database=name, create_database=True, media_path=tmp_path / "try")
            done(job.restore_full("latest"))
            assert world.state() == world.after
            assert world.state(name)[0] == world.before[0]
            assert tree_contents(tmp_path / "try") == world.before[1]
        finally:
            remove(replace(world.portal.database, name=name))
            world.server.drop_database(name)

    def test_single_files(self, world: World) -> None:
        """With a pattern only the uploads that it fits are restored."""
        missing = next(name for name in sorted(world.before[1]) if name not in world.after[1])
        done(world.job(patterns=(missing,)).restore_full("latest"))
        tables, files = world.state()
        assert tables == world.after[0]
        assert files[missing] == world.before[1][missing]
        kept = {name: found for name, found in files.items() if name != missing and found[2]}
        assert kept == {name: found for name, found in world.after[1].items() if found[2]}


class TestLatest:
    """What ``latest`` means."""

    def test_the_newest_that_holds_everything(self, world: World) -> None:
        """A newer archive of the database alone is not what a full restore takes, but it is told of."""
        newer = Path(world.portal.job().backup_database(moment=datetime(2099, 1, 1, tzinfo=UTC)).destination_path)
        result = done(world.job(dry_run=True).restore_full("latest"))
        assert result.backup_file == str(world.archive)
        assert any(newer.name.removesuffix(".tar.gz") in warning for warning in result.warnings)

    def test_the_newest_that_holds_the_database(self, world: World) -> None:
        """A restore of the database alone takes the newer archive."""
        newer = world.portal.job().backup_database(moment=datetime(2099, 1, 1, tzinfo=UTC))
        assert done(world.job(dry_run=True).restore_database("latest")).backup_id == newer.backup_id


class TestNothingChanges:
    """Whatever is wrong, what is live stays as it is, and nothing is left."""

    @pytest.fixture(autouse=True)
    def untouched(self, world: World) -> Iterator[None]:
        """Look at everything before and after."""
        databases = world.databases()
        yield
        assert world.state() == world.after
        assert world.databases() == databases
        assert world.stages() == []
        assert not list((world.portal.archives / ".restores").glob("restore_*"))

    def test_a_dry_run(self, world: World) -> None:
        """A dry run looks at everything, tells the plan, and leaves no trace on disk or server."""
        before = snapshot(world.portal.directory)
        result = done(world.job(dry_run=True).restore_full("latest"))
        assert snapshot(world.portal.directory) == before
        assert result.components_restored == ()
        text = "\n".join(result.plan)
        for words in ("Mode swap", "In the backup: 10 tables", "would be new", "Now: 11 tables"):
            assert words in text

    def test_a_dry_run_finds_damage(self, world: World) -> None:
        """A dry run reads all of the archive: a single wrong byte is found."""
        flip(world.archive)
        refused(world.job(dry_run=True).restore_full(world.archive), 4, "is not intact")

    def test_a_wrong_checksum_is_found_while_staging(self, world: World) -> None:
        """Without the look beforehand the checksum is made meanwhile, and counts before anything is put in place."""
        sidecar = sidecar_of(world.archive)
        sidecar.write_text(f"{'0' * 64}  {world.archive.name}\n")
        refused(world.job(verify_before_restore=False).restore_full(world.archive), 4, "and should be 0000")

    def test_an_archive_without_a_sidecar(self, world: World) -> None:
        """It may be anything, so it is refused."""
        sidecar_of(world.archive).unlink()
        refused(world.job().restore_full(world.archive), 4, "no .sha256 file", "--allow-unverified")

    def test_nobody_says_yes(self, world: World) -> None:
        """A plan that is not agreed to is not carried out, with exit code 3; it stands in the result."""
        result = refused(world.job(confirm=lambda _: False).restore_full("latest"), 3, "nobody said yes")
        assert result.plan[0].startswith("Restore database, media, audit_logs from full_")

    def test_everything_in_the_way_is_told(self, world: World) -> None:
        """All that makes a restore impossible is in the plan, and nobody is asked."""
        world.server.create_role("meek", password="secret")
        asked: list[RestorePlan] = []

        def agree(plan: RestorePlan) -> bool:
            asked.append(plan)
            return True

        try:
            job = world.job(db_user="meek", db_password="secret", db_name="absent", confirm=agree)
            result = refused(job.restore_database("latest"), 1, "has no database absent")
        finally:
            world.server._execute(SQL("DROP ROLE meek"))
        blockers = [line for line in result.plan if line.startswith("In the way: ")]
        assert len(blockers) == 2
        assert "may not create database" in blockers[1]
        assert asked == []

    def test_no_room_for_the_dump(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """In place, the dump lies in the repository for a while, which is looked at beforehand; a swap needs none."""
        monkeypatch.setattr("portal.ops.restore.components.room", lambda _: 100)
        done(world.job(dry_run=True).restore_database("latest"))
        result = refused(world.job(dry_run=True, mode="in-place").restore_full("latest"), 1, "are free there")
        assert any(line.startswith("In the way: ") for line in result.plan)

    @pytest.mark.parametrize("exact", [True, False])
    @pytest.mark.parametrize("place", ["tenant-001", "of-its-own"])
    @pytest.mark.parametrize("kind", ["tmpfs", "bind"])
    def test_a_mount_in_the_uploads(self, world: World, kind: str, place: str, exact: bool, tmp_path: Path) -> None:
        """Renames do not reach onto a mount in the uploads, so it is in the way before the database is touched."""
        mountpoint = world.portal.uploads / place
        (tmp_path / "other").mkdir()
        is_new = not mountpoint.exists()
        mountpoint.mkdir(exist_ok=True)
        try:
            with mounted(mountpoint, bind=tmp_path / "other" if kind == "bind" else None):
                (mountpoint / "newer").write_text("newer")
                for dry_run in (True, False):
                    if exact or place == "tenant-001":
                        job = world.job(exact=exact, dry_run=dry_run)
                        result = refused(job.restore_full("latest"), 1, f"is mounted on {place};", "--media-dir")
                        assert any("In the way: " in line and place in line for line in result.plan)
                    else:
                        done(world.job(exact=False, dry_run=True).restore_full("latest"))
                assert (mountpoint / "newer").read_text() == "newer"
        finally:
            if is_new:
                mountpoint.rmdir()

    def test_uploads_in_the_repository(self, world: World) -> None:
        """Where the backups are nothing is restored, which is said before the database is touched."""
        for dry_run in (True, False):
            job = world.job(media_path=world.portal.archives / "uploads", dry_run=dry_run)
            refused(job.restore_full("latest"), 1, "which must not be changed", "Restore the files to another")
        assert not (world.portal.archives / "uploads").exists()

    def test_the_repository_in_the_place_of_a_file(self, world: World, tmp_path: Path) -> None:
        """A directory of backups that a file of the archive would take the place of is in the way."""
        directory = tmp_path / "copy"
        shutil.copytree(world.portal.uploads, directory)
        repository = directory / next(
            path.relative_to(world.portal.uploads) for path in world.portal.uploads.glob("tenant-*/*/*")
        )
        repository.unlink()
        shutil.copytree(world.portal.archives, repository)
        before = tree_contents(directory)
        job = world.job(media_path=directory, local_path=repository, dry_run=True)
        refused(job.restore_full(world.archive), 1, "must not be moved: the backups are there")
        assert tree_contents(directory) == before

    @pytest.mark.parametrize("name", ["note", "note/uploads"])
    def test_uploads_that_are_a_file(self, world: World, tmp_path: Path, name: str) -> None:
        """A file where the uploads should go is in the way of everything."""
        (tmp_path / "note").write_text("not to be lost")
        for dry_run in (True, False):
            job = world.job(media_path=tmp_path / name, dry_run=dry_run)
            refused(job.restore_full("latest"), 1, f"{tmp_path}/note is no directory", "--media-dir")
        assert (tmp_path / "note").read_text() == "not to be lost"

    def test_a_link_that_leads_out(self, world: World) -> None:
        """The backup, the dry run and the restore say the same of it, before the database is touched."""
        link = world.portal.uploads / "reports"
        link.symlink_to("/var/lib/reports")
        try:
            made = world.portal.job().backup_full()
        finally:
            link.unlink()
        assert made.warnings == (
            "the link media/reports leads out of the tree, to /var/lib/reports: a restore will ask for "
            "--allow-outside-links",
        )
        for dry_run in (True, False):
            refused(world.job(dry_run=dry_run).restore_full("latest"), 4, "leads out of", "--allow-outside-links")
        allowed = done(world.job(dry_run=True, allow_outside_links=True).restore_full("latest"))
        assert any("media/reports leads out of the tree" in warning for warning in allowed.warnings)

    def test_a_component_without_a_place(self, world: World) -> None:
        """Where nothing that is asked for has a place, that is an error of the configuration."""
        refused(world.job(media_path=None).restore_media("latest"), 2, "no place configured for media")

    def test_a_pattern_for_the_database(self, world: World) -> None:
        """A part of a database cannot be restored by a pattern."""
        refused(world.job(patterns=("*",)).restore_database("latest"), 2, "--path")

    def test_a_component_that_the_archive_lacks(self, world: World) -> None:
        """What the archive does not hold cannot be restored."""
        archive = Path(world.portal.job().backup_media().destination_path)
        refused(world.job().restore_database(archive), 2, "holds media, and no database")

    def test_a_manifest_that_lists_too_much(self, world: World, tmp_path: Path) -> None:
        """What a manifest lists and the archive does not hold is found without the look beforehand."""
        archive = plain(tmp_path, {"components": ["database", "media"]}, dump=dump_of(world))
        job = world.job(verify_before_restore=False, allow_unverified=True)
        refused(job.restore_full(archive), 4, "the manifest lists media, but the archive holds none")

    def test_row_counts_that_make_no_sense(self, world: World, tmp_path: Path) -> None:
        """A manifest can say anything; it is no reason for a traceback."""
        details = {"database": {"rows": ["many"]}}
        archive = plain(tmp_path, {"components": ["database"], "details": details}, dump=dump_of(world))
        job = world.job(verify_before_restore=False, allow_unverified=True)
        refused(job.restore_full(archive), 4, "numbers of rows make no sense")

    def test_a_failing_stage_leaves_nothing(self, world: World, tmp_path: Path) -> None:
        """Row counts that are not met undo the stage of everything."""
        details = {"database": {"rows": {"public.mark": 7}}}
        archive = plain(tmp_path, {"components": ["database"], "details": details}, dump=dump_of(world))
        job = world.job(verify_before_restore=False, allow_unverified=True)
        refused(job.restore_full(archive), 4, "what was restored is not what was backed up")

    @pytest.mark.parametrize("mode", ["swap", "in-place"])
    def test_a_dump_that_is_cut_short_inside_of_an_archive_that_is_not(
        self, world: World, tmp_path: Path, mode: str
    ) -> None:
        """Without the look beforehand, a dump that does not decode to its end is found before anything is touched."""
        archive = plain(tmp_path, {"components": ["database"]}, dump=dump_of(world)[:-5000])
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        sidecar_of(archive).write_text(f"{digest}  {archive.name}\n")
        result = refused(
            world.job(verify_before_restore=False, mode=mode).restore_full(archive), 4, "pg_restore failed"
        )
        assert not result.components_restored

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a bug"), OSError(28, "No space left")])
    def test_cut_off_between_two_parts(
        self, world: World, monkeypatch: pytest.MonkeyPatch, error: BaseException
    ) -> None:
        """Whatever happens after the database was exchanged and before the files are, the database goes back."""

        def fail(_: FilesPart) -> dict[str, Any]:
            assert ask(world.portal.database, "SELECT value FROM mark") == "before"
            raise error

        with monkeypatch.context() as patched, suppress(KeyboardInterrupt, RuntimeError):
            patched.setattr(FilesPart, "apply", fail)
            refused(world.job().restore_full("latest"), 1, "No space left")
        (listed,) = world.job().list_restores()
        assert listed["state"] == "rolled_back"
        done(world.job().forget(listed["restore_id"]))

    def test_another_restore_is_running(self, world: World) -> None:
        """Only one restore of a repository runs at a time; the other one ends at once with 5."""
        results = []

        def confirm(_: RestorePlan) -> bool:
            results.append(world.job().restore_full("latest"))
            return False

        world.job(confirm=confirm).restore_full("latest")
        refused(results[0], 5, "another restore is running")


class TestWhatArchivesHold:
    """Archives that hold less than everything, or say less of themselves."""

    def test_a_full_restore_of_uploads_alone(self, world: World) -> None:
        """An archive of the uploads is restored as far as it goes."""
        change_back = Path(world.portal.job().backup_media().destination_path)
        assert done(world.job().restore_full(change_back)).components_restored == ("media",)

    def test_what_has_no_place_is_left_out(self, world: World) -> None:
        """A component without a place is left out of a full restore, and the result says so."""
        result = done(world.job(audit_log_path=None).restore_full("latest"))
        assert result.components_restored == ("database", "media")
        assert any("audit_logs, which is left out" in warning for warning in result.warnings)

    @pytest.mark.parametrize("with_manifest", [True, False])
    def test_an_archive_of_tar_and_gzip(self, world: World, tmp_path: Path, with_manifest: bool) -> None:
        """An archive without row counts, or without a manifest, is restored; the plan says what is unknown."""
        manifest = {"components": ["media", "database"]} if with_manifest else None
        archive = plain(tmp_path, manifest, dump=dump_of(world), media=world.portal.uploads)
        result = done(world.job(allow_unverified=True).restore_full(archive))
        assert result.components_restored == ("database", "media")
        assert any("the manifest does not say how many rows there were" in warning for warning in result.warnings)

    def test_validation_tells_the_manifest(self, world: World) -> None:
        """`validate_backup` says whether an archive is intact, and what the manifest says."""
        valid, found = world.job().validate_backup(world.archive)
        assert valid
        assert found["db_name"] == world.portal.database.name
        assert found["components"] == ["database", "media", "audit_logs"]

    def test_validation_tells_the_damage(self, world: World) -> None:
        """A damaged archive, or none, is not valid, and the error says why."""
        flip(world.archive)
        valid, found = world.job().validate_backup(world.archive)
        assert not valid
        assert "is not intact" in found["error"]
        assert world.job().validate_backup("absent")[0] is False


class TestGoingBack:
    """Which restore is taken back, and in which order."""

    def test_only_the_uppermost(self, world: World) -> None:
        """A restore that another one lies on is not taken back before that one; then it is."""
        first = done(world.job(clock=noon).restore_full("latest")).restore_id
        execute(world.portal.database, "UPDATE mark SET value = 'between'")
        between = world.state()
        second = done(world.job(clock=noon).restore_full("latest")).restore_id
        assert [one["restore_id"] for one in world.job().list_restores()] == [second, first]
        refused(world.job().rollback(first), 1, f"{second} was restored over {first}", f"--rollback {second}")
        assert world.state() == world.before
        done(world.job().rollback())
        assert world.state() == between
        done(world.job().rollback())
        assert world.state() == world.after

    def test_one_that_is_not_in_the_way(self, world: World) -> None:
        """Restores of different things can be taken back in any order."""
        first = done(world.job().restore_database("latest")).restore_id
        done(world.job().restore_media("latest"))
        done(world.job().rollback(first))
        assert world.state()[0] == world.after[0]

    def test_nobody_says_yes(self, world: World) -> None:
        """A rollback is asked for too."""
        done(world.job().restore_full("latest"))
        refused(world.job(confirm=lambda _: False).rollback(), 3)
        assert world.state() == world.before

    def test_what_it_needs_is_gone(self, world: World) -> None:
        """Where the old database was dropped by hand, nothing is taken back, not even the files."""
        result = done(world.job().restore_full("latest"))
        world.server.drop_database(result.facts["database"]["kept_database"])
        refused(world.job().rollback(), 1, "cannot be taken back any more", f"--forget {result.restore_id}")
        assert world.state() == world.before

    def test_twice(self, world: World) -> None:
        """What was taken back is not taken back again, and its result offers no rollback."""
        result = done(world.job().restore_full("latest"))
        assert result.to_dict()["rollback"] == f"./tools/restore.sh --rollback {result.restore_id}"
        assert done(world.job().rollback()).to_dict()["rollback"] is None
        refused(world.job().rollback(result.restore_id), 1, "was taken back already")
        refused(world.job().rollback(), 1, "there is no restore that could be taken back")


class TestForgetting:
    """What takes a restore back is kept for a while."""

    def test_by_name(self, world: World) -> None:
        """What was forgotten leaves neither database nor files nor record, and what is live stays."""
        restore_id = done(world.job().restore_full("latest")).restore_id
        assert len(world.databases()) == 2
        (listed,) = world.job().list_restores()
        assert any("_before_" in kept for kept in listed["kept"])
        done(world.job().forget(restore_id))
        assert world.databases() == {world.portal.database.name}
        assert world.stages() == []
        assert world.job().list_restores() == []
        assert world.state() == world.before

    def test_in_place(self, world: World) -> None:
        """The safety dump of a restore in place goes too."""
        restore_id = done(world.job(mode="in-place").restore_database("latest")).restore_id
        done(world.job().forget(restore_id))
        assert not (world.portal.archives / ".restores" / restore_id).exists()

    def test_asks(self, world: World) -> None:
        """Nothing is forgotten that nobody agreed to."""
        restore_id = done(world.job().restore_media("latest")).restore_id
        refused(world.job(confirm=lambda _: False).forget(restore_id), 3)
        done(world.job().rollback(restore_id))

    def test_of_itself(self, world: World) -> None:
        """After so many days what an older restore keeps is removed when a later one has succeeded."""
        old = done(world.job(clock=noon).restore_full("latest")).restore_id
        younger = done(world.job(clock=lambda: noon() + timedelta(days=6)).restore_media("latest")).restore_id
        later = world.job(clock=lambda: noon() + timedelta(days=8))
        newest = done(later.restore_media("latest")).restore_id
        assert [one["restore_id"] for one in later.list_restores()] == [newest, younger]
        logged = AccessLog(later.repository).entries()
        assert [entry.subject for entry in logged if entry.action == "forget"] == [old]
        assert world.databases() == {world.portal.database.name}
        assert not any(old in name for name in world.stages())

    def test_never_the_newest(self, world: World) -> None:
        """However short the time is, the last restore can be taken back."""
        done(world.job(rollback_days=0).restore_full("latest"))
        done(world.job().rollback())
        assert world.state() == world.after

    def test_not_by_a_restore_that_fails(self, world: World) -> None:
        """A restore that was refused removes nothing."""
        done(world.job(clock=noon).restore_media("latest"))
        refused(world.job(confirm=lambda _: False).restore_media("latest"), 3)
        assert len(world.job().list_restores()) == 1


class TestCutOff:
    """A restore that was cut off is found by the next one."""

    def test_a_dry_run_only_tells(self, world: World) -> None:
        """A dry run says that something is to be finished, and leaves it alone."""
        restore_id = cut_off(world)
        before = snapshot(world.portal.directory)
        result = done(world.job(dry_run=True).restore_full("latest"))
        assert any(restore_id in warning and "its remains will be removed" in warning for warning in result.warnings)
        assert snapshot(world.portal.directory) == before

    def test_it_is_listed(self, world: World) -> None:
        """The list of restores has it too."""
        restore_id = cut_off(world)
        (listed,) = world.job().list_restores()
        assert (listed["restore_id"], listed["state"], listed["can_be_taken_back"]) == (restore_id, "staging", False)

    def test_the_next_one_removes_its_remains(self, world: World) -> None:
        """Even a restore of an archive that does not exist first removes what the last one has left."""
        restore_id = cut_off(world)
        result = refused(world.job().restore_full("absent"), 2, "there is no archive")
        assert any(restore_id in warning and "its remains are removed" in warning for warning in result.warnings)
        assert world.databases() == {world.portal.database.name}
        assert world.stages() == []
        assert world.job().list_restores() == []

    def test_on_a_server_that_does_not_answer(self, world: World) -> None:
        """It stands in the way of what goes to the same place, and of nothing else; it can be given up."""
        restore_id = cut_off(world)
        record = world.portal.archives / ".restores" / f"{restore_id}.json"
        found = json.loads(record.read_text())
        found["parts"]["database"]["port"] = 1
        record.write_text(json.dumps(found))
        result = done(world.job().restore_database("latest"))
        assert any(
            restore_id in warning and "cannot be finished or undone now" in warning for warning in result.warnings
        )
        refused(world.job().restore_media("latest"), 1, "has to be finished or undone first", f"--forget {restore_id}")
        given_up = done(world.job().forget(restore_id))
        assert any("to be removed by hand" in warning for warning in given_up.warnings)
        done(world.job().restore_media("latest"))

    def test_what_was_asked_for_is_remembered(self, world: World) -> None:
        """What another process finishes is what was asked for, whatever is asked for now."""
        result = done(world.job(exact=True, create_database=True, mode="swap").restore_full("latest"))
        record = world.job()._history.record(result.restore_id)
        parts = world.job(mode="in-place", db_host="elsewhere", media_path="/elsewhere")._parts_of(record)
        assert [part.record() for part in parts] == list(record.parts.values())
        assert record.parts["media"]["exact"] is True
        assert record.parts["database"]["mode"] == "swap"


class TestReading:
    """How much of an archive is read."""

    def test_single_files_are_read_alone(self, world: World) -> None:
        """A restore of one upload reads a small part of a large archive."""
        (world.portal.uploads / "noise").write_bytes(os.urandom(30 << 20))
        archive = Path(world.portal.job().backup_media().destination_path)
        program = (
            "import json, sys; from portal.ops.restore import RestoreConfig, RestoreJob\n"
            "job = RestoreJob(RestoreConfig(**json.loads(sys.argv[1])))\n"
            "read = lambda: int(open('/proc/self/io').readline().split()[1])\n"
            "before = read(); result = job.restore_media(sys.argv[2]); assert result.success, result.error\n"
            "print(read() - before)"
        )
        config = {
            "local_path": str(world.portal.archives),
            "media_path": str(world.portal.uploads),
            "patterns": ["newer.sarif"],
        }
        command = [sys.executable, "-c", program, json.dumps(config), str(archive)]
        ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        assert archive.stat().st_size > 30 << 20
        assert int(ended.stdout) < 4 << 20

    def test_without_a_question_it_is_hashed_once(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without the look beforehand the checksum is made beside the staging, by its own thread, and only there."""
        hashed: list[tuple[str, str]] = []
        started: list[str] = []
        compare, start = Checksum._compare, threading.Thread.start

        def compared(checksum: Checksum, path: Path, expected: str) -> None:
            hashed.append((str(path), threading.current_thread().name))
            compare(checksum, path, expected)

        def noted(thread: threading.Thread) -> None:
            started.append(thread.name)
            start(thread)

        archive = world.portal.job().backup_media().destination_path
        monkeypatch.setattr(Checksum, "_compare", compared)
        monkeypatch.setattr(threading.Thread, "start", noted)
        done(RestoreJob(config_of(world.portal, verify_before_restore=False)).restore_media(archive))
        assert [name for name in started if name.startswith("checksum_")] == []  # what a verification hashes by
        assert hashed == [(archive, "checksum")]


class TestProgress:
    """What is told while it goes on."""

    def test_every_byte_is_told(self, world: World) -> None:
        """Each phase grows to about what was said to be expected of it, in many steps, and never back."""
        (world.portal.uploads / "noise").write_bytes(os.urandom(8 << 20))
        succeeded(world.portal.job().backup_full())
        steps: list[Step] = []
        done(RestoreJob(config_of(world.portal), progress=steps.append).restore_full("latest"))
        assert list(dict.fromkeys(step.phase for step in steps)) == ["verify", "database", "media", "audit_logs"]
        verified = [step for step in steps if step.phase == "verify"]
        staged = [step for step in steps if step.phase != "verify"]
        for phase in (verified, staged):
            assert all(before.done <= after.done for before, after in pairwise(phase))
            assert len({step.done for step in phase}) > 8
            assert phase[0].expect() == phase[-1].expect()
        expected = verified[-1].expect()
        assert expected is not None
        assert expected <= verified[-1].done <= expected + (64 << 10)  # the manifest is looked at as well
        assert staged[-1].done == staged[-1].expect() == expected

    def test_an_archive_without_an_index(self, world: World, tmp_path: Path) -> None:
        """What can be told only by reading it through is not told: the look goes on without."""
        archive = plain(tmp_path, {"components": ["database"]}, dump=dump_of(world))
        steps: list[Step] = []
        config = config_of(world.portal, allow_unverified=True)
        done(RestoreJob(config, progress=steps.append).restore_full(archive))
        assert next(step.expect() for step in steps if step.phase == "verify") is None
        assert steps[-1].done == steps[-1].expect() == archive_bytes(archive)

    def test_some_files(self, world: World) -> None:
        """Where single files are asked for, their bytes are what is expected."""
        steps: list[Step] = []
        job = RestoreJob(config_of(world.portal, patterns=("tenant-001/*",)), progress=steps.append)
        done(job.restore_media("latest"))
        assert 0 < steps[-1].done == steps[-1].expect()


def archive_bytes(archive: Path) -> int:
    """How large the dump in an archive is."""
    with tarfile.open(archive) as tar:
        return next(found.size for found in tar if found.name.endswith("/database.sql"))


def test_the_result_as_json(world: World) -> None:
    """The result has the keys that programs read."""
    found = json.loads(json.dumps(world.job(dry_run=True).restore_full("latest").to_dict()))
    keys = "success backup_file backup_id dry_run components_restored warnings duration_seconds rollback error scope"
    assert found.keys() >= set(keys.split())
    assert (found["success"], found["dry_run"], found["rollback"], found["error"]) == (True, True, None, None)


def test_a_configuration_without_sense() -> None:
    """What makes no sense is refused at once."""
    for nonsense in ({"jobs": 0}, {"mode": "sideways"}, {"rollback_days": -1}, {"local_path": ""}):
        with pytest.raises(ConfigurationError):
            RestoreConfig(**nonsense)


def noon() -> datetime:
    """A clock that stands still."""
    return datetime(2026, 1, 2, 12, tzinfo=UTC)


@contextmanager
def mounted(place: Path, bind: Path | None = None) -> Iterator[None]:
    """A file system of its own at a place, or another directory of the same one."""
    mount = ["mount", "--bind", str(bind)] if bind else ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs"]
    if os.geteuid() != 0 or subprocess.run([*mount, str(place)], capture_output=True, check=False).returncode != 0:
        pytest.skip("only root can mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)


def snapshot(root: Path) -> dict[str, Any]:
    """Everything in a directory, what restores keep included."""
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        seen = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (seen.st_mode, seen.st_size if content else 0, seen.st_mtime_ns, content)
    return found


def flip(archive: Path) -> None:
    """Damage one byte in the middle."""
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    archive.write_bytes(data)


def dump_of(world: World) -> bytes:
    """The dump in the world's archive."""
    name = f"{world.archive.name.removesuffix('.tar.gz')}/database.sql"
    with tarfile.open(world.archive) as tar:
        file = tar.extractfile(name)
        assert file is not None
        return file.read()


def plain(
    directory: Path, manifest: dict[str, Any] | None, *, dump: bytes | None = None, media: Path | None = None
) -> Path:
    """An archive as tar and gzip write it, without a sidecar."""
    backup_id = "full_20240115_120000_abc123"
    top = directory / "plain" / backup_id
    top.mkdir(parents=True)
    if manifest is not None:
        says = {"backup_id": backup_id, "type": "full", "timestamp": "2024-01-15T12:00:00Z", "format_version": 1}
        (top / "manifest.json").write_text(json.dumps(says | manifest))
    if dump is not None:
        (top / "database.sql").write_bytes(dump)
    if media is not None:
        shutil.copytree(media, top / "media", symlinks=True)
    archive = directory / f"{backup_id}.tar.gz"
    subprocess.run(["/bin/tar", "-czf", archive, "-C", top.parent, backup_id], check=True)
    return archive


def cut_off(world: World) -> str:
    """A restore that was killed when everything was staged; its id."""
    program = (
        "import os, sys; from portal.ops.restore import create_restore_job\n"
        "from portal.ops.restore.history import RestoreHistory\n"
        "RestoreHistory.apply = lambda *_: os.kill(os.getpid(), 9)\n"
        "create_restore_job().restore_full('latest')"
    )
    ended = subprocess.run([sys.executable, "-c", program], env=world.portal.environ(), check=False, timeout=60)
    assert ended.returncode == -9
    assert len(world.databases()) == 2
    (record,) = (world.portal.archives / ".restores").glob("restore_*.json")
    return record.stem
