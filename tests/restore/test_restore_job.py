"""A restore from recover to report: what is live afterwards, what is said, and every way in which nothing changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from demo.compare import tree_contents
from portal.ops.errors import ConfigurationError
from portal.ops.restore.background_checksum import Checksum
from portal.ops.restore.job import RestoreConfig, RestoreJob
from tests.support.portal import succeeded
from tests.support.restores import archive_bytes, done, dump_of, flip, plain
from tests.support.restoring import remove
from tests.support.world import World, config_of

if TYPE_CHECKING:
    from portal.ops.runtime.progress import Step


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
        assert any("left out: the audit log" in warning for warning in result.warnings)

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


def test_the_result_as_json(world: World) -> None:
    """The result has the keys that programs read."""
    found = json.loads(json.dumps(world.job(dry_run=True).restore_full("latest").to_dict()))
    keys = "success backup_file backup_id dry_run components_restored warnings duration_seconds rollback error scope"
    assert found.keys() >= set(keys.split())
    assert (found["success"], found["dry_run"], found["rollback"], found["error"]) == (True, True, None, None)


def test_a_configuration_without_sense() -> None:
    """Invalid data is refused at once."""
    for nonsense in ({"jobs": 0}, {"mode": "sideways"}, {"rollback_days": -1}, {"local_path": ""}):
        with pytest.raises(ConfigurationError):
            RestoreConfig(**nonsense)
