"""A repository that was used is missed: an empty directory in its place, or none, is not taken for a new one."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from portal.ops.backup.job import BackupConfig, BackupJob
from portal.ops.drill.job import DrillJob
from portal.ops.errors import RepositoryError
from portal.ops.model import BackupType, VerifyLevel
from portal.ops.monitoring.doctor.check import State, examine
from portal.ops.monitoring.doctor.run import engine_checks
from portal.ops.offsite.signing import own_key
from portal.ops.repository import known
from portal.ops.repository.access_log import NAME
from portal.ops.repository.catalogue import Catalogue
from portal.ops.repository.identity import STAND_IN_NAME
from portal.ops.repository.repository import LOCK_NAME, Repository
from portal.ops.restore.job import RestoreConfig, RestoreJob
from portal.ops.retention.prune import PruneJob
from portal.ops.settings.load import load_settings
from tests.support import commands
from tests.support.backups import NOON
from tests.support.kept import put_archive
from tests.support.portal import succeeded
from tests.support.repositories import as_nobody
from tests.support.services import ServiceProcess
from tests.support.waiting import wait_until
from worker.application import make_app
from worker.keys import TaskKeys
from worker.operations import BACKUP_MEDIA, RESTORE_ARCHIVE, Requester

if TYPE_CHECKING:
    from demo.redis import EmbeddedRedis

ABSENT = "the repository that was used in {} is not there"


def unmount(config: BackupConfig, *, leaves: bool = True) -> Path:
    """Take the repository's volume away; the empty mount point stays, or nothing does."""
    archives = Path(config.local_path)
    archives.rename(archives.with_name("volume"))
    if leaves:
        archives.mkdir()
    return archives


def settings_of(config: BackupConfig) -> dict[str, str]:
    return {"BACKUP_LOCAL_PATH": str(config.local_path), "PORTAL_UPLOAD_DIR": str(config.media_path)}


class TestAbsence:
    """What is not mounted is named by everything that would use it."""

    @pytest.mark.parametrize("leaves", [True, False])
    def test_no_backup_makes_a_new_one(self, config: BackupConfig, leaves: bool) -> None:
        """It fails with what to do, and writes nothing; when the volume is there again, it goes on."""
        archives = unmount(config, leaves=leaves)
        result = BackupJob(config).backup_media()
        assert ABSENT.format(archives) in str(result.error)
        assert "--confirm-loss" in str(result.error)
        assert (list(archives.iterdir()) if archives.exists() else []) == []
        if archives.exists():
            archives.rmdir()
        archives.with_name("volume").rename(archives)
        succeeded(BackupJob(config).backup_media())

    def test_a_person_confirms_a_new_one_once(self, config: BackupConfig) -> None:
        """After that it is the one that is known."""
        archives = unmount(config)
        succeeded(BackupJob(replace(config, confirm_loss=True)).backup_media())
        succeeded(BackupJob(config).backup_media())
        assert known.known_id(archives) == Repository(archives).id

    def test_a_lost_source_that_is_confirmed_is_no_new_repository(self, config: BackupConfig) -> None:
        """Both volumes may be away at once; the message says by which name this one is confirmed."""
        archives = unmount(config)
        result = BackupJob(replace(config, confirm_loss=["uploads", "audit-log"])).backup_media()
        assert ABSENT.format(archives) in str(result.error)
        assert "--confirm-loss repository." in str(result.error)
        assert list(archives.iterdir()) == []
        succeeded(BackupJob(replace(config, confirm_loss=["repository"])).backup_media())

    def test_a_command_confirms_what_it_names(self, config: BackupConfig) -> None:
        """`--confirm-loss uploads` leaves the repository refused, and the flag alone confirms everything."""
        unmount(config)
        environ = {"PATH": os.environ["PATH"], "XDG_STATE_HOME": os.environ["XDG_STATE_HOME"], **settings_of(config)}
        commands.done("media", "--confirm-loss", "uploads", environ=environ, code=1)
        commands.done("media", "--confirm-loss", environ=environ)

    def test_a_list_is_not_empty_but_wrong(self, config: BackupConfig) -> None:
        """Neither the archives, nor the catalogue, nor the status say that there are none."""
        archives = unmount(config)
        for look in (
            BackupJob(config).list_backups,
            Repository(archives).archives,
            Catalogue(Repository(archives)).entries,
        ):
            with pytest.raises(RepositoryError, match="is not there"):
                look()

    def test_a_log_and_restores_are_not_empty_but_wrong(self, config: BackupConfig) -> None:
        """A log without entries is not called unbroken, and restores are not said to be none."""
        archives = unmount(config)
        environ = {"PATH": os.environ["PATH"], "XDG_STATE_HOME": os.environ["XDG_STATE_HOME"], **settings_of(config)}
        for script, *arguments in (
            (commands.BACKUP, "audit"),
            (commands.BACKUP, "audit", "--verify"),
            (commands.RESTORE, "--rollback", "--list"),
        ):
            result, said = commands.done(*arguments, environ=environ, script=script, code=1)
            assert ABSENT.format(archives) in result["error"]
            assert "unbroken" not in said
        archives.rmdir()
        archives.with_name("volume").rename(archives)
        result, said = commands.done("audit", "--verify", environ=environ)
        assert result["entries"]
        assert "the log is unbroken" in said

    def test_a_prune(self, config: BackupConfig) -> None:
        """It fails, also as a dry run."""
        repository = Repository(unmount(config))
        for dry_run in (True, False):
            result = PruneJob(repository, config.retention).run(dry_run=dry_run)
            assert ABSENT.format(repository.path) in str(result.error)

    def test_verification_drill_and_restore(self, config: BackupConfig) -> None:
        """They say why there is no archive."""
        archives = unmount(config)
        with pytest.raises(RepositoryError, match="is not there"):
            BackupJob(config).verify("latest", VerifyLevel.CHECKSUM)
        restoring = RestoreConfig(local_path=archives, media_path=Path(config.media_path or ""))
        assert ABSENT.format(archives) in str(DrillJob(restoring).run().error)
        assert ABSENT.format(archives) in str(RestoreJob(restoring).restore_media("latest").error)

    def test_the_doctor(self, config: BackupConfig) -> None:
        """It is a fault, with the same hint."""
        archives = unmount(config)
        settings = settings_of(config)
        with engine_checks(load_settings(settings, lambda _: ""), environ=settings) as checks:
            (found,) = [one for one in examine(checks) if one.name == "repository"]
        assert (found.state, found.what.startswith(ABSENT.format(archives))) == (State.FAULT, True)

    @pytest.mark.parametrize("command", [("list",), ("status",), ("prune",), ("media",)])
    def test_commands(self, config: BackupConfig, command: tuple[str, ...]) -> None:
        """They end with code 1 and say it."""
        archives = unmount(config)
        environ = {"PATH": os.environ["PATH"], "XDG_STATE_HOME": os.environ["XDG_STATE_HOME"]}
        ended = commands.run(*command, environ={**environ, **settings_of(config)})
        assert (ended.returncode, ABSENT.format(archives) in ended.stderr) == (1, True)
        assert not (archives / NAME).exists()

    def test_a_command_that_has_a_broker(self, redis: EmbeddedRedis, config: BackupConfig) -> None:
        """No key for tasks is made there, and nothing else."""
        archives = unmount(config)
        environ = {"PATH": os.environ["PATH"], "XDG_STATE_HOME": os.environ["XDG_STATE_HOME"]}
        environ |= {**settings_of(config), "CELERY_BROKER_URL": redis.url, "CELERY_RESULT_BACKEND": redis.url}
        ended = commands.run("media", environ=environ)
        assert (ended.returncode, ABSENT.format(archives) in ended.stderr) == (1, True)
        assert list(archives.iterdir()) == []

    def test_keys(self, redis: EmbeddedRedis, config: BackupConfig) -> None:
        """None is made, nor rotated, but for what is asked for when the repository is gone for good."""
        keys, repository = TaskKeys(unmount(config)), Repository(Path(config.local_path))
        for make in (keys.current, keys.rotate, lambda: own_key(repository)):
            with pytest.raises(RepositoryError, match="is not there"):
                make()
        assert list(repository.path.iterdir()) == []
        settings = {**settings_of(config), "CELERY_BROKER_URL": redis.url}
        app = make_app(load_settings(settings, lambda _: ""), Requester.COMMAND)
        with pytest.raises(RepositoryError, match="is not there"):
            app.send_task(BACKUP_MEDIA.name, kwargs={"moment": "2026-11-28T12:00:00Z", "confirm_loss": ["uploads"]})
        for operation, given in ((RESTORE_ARCHIVE, {}), (BACKUP_MEDIA, {"confirm_loss": ["repository"]})):
            app.send_task(operation.name, kwargs={"moment": "2026-11-28T12:00:00Z", **given})
            shutil.rmtree(repository.path / ".keys")  # it was made to sign the task

    def test_a_look_leaves_nothing(self, config: BackupConfig) -> None:
        """Neither the catalogue's cache nor the report of a drill is put into the empty mount point."""
        archives = unmount(config)
        with pytest.raises(RepositoryError, match="is not there"):
            Catalogue(Repository(archives)).entries()
        assert not DrillJob(RestoreConfig(local_path=archives)).run().success
        assert list(archives.iterdir()) == []

    def test_the_watcher(self, redis: EmbeddedRedis, config: BackupConfig, tmp_path: Path) -> None:
        """It says so, and makes nothing there."""
        archives = unmount(config)
        state = {"XDG_STATE_HOME": os.environ["XDG_STATE_HOME"]}
        with ServiceProcess("beat.watcher", tmp_path, redis, **state) as watcher:
            wait_until(lambda: bool(watcher.events("heartbeat_unwritten")))
            assert ABSENT.format(archives) in watcher.events("heartbeat_unwritten")[0]["error"]
        assert not (archives / LOCK_NAME).exists()


class TestAnother:
    """Another repository at the same path."""

    @pytest.mark.parametrize("held", [0, 1])
    def test_a_backup_and_a_prune_refuse_it(self, config: BackupConfig, tmp_path: Path, held: int) -> None:
        """Both ids are named, whether it has archives or not; it can be looked at."""
        mine = Repository(Path(config.local_path)).id
        other = Repository(tmp_path / "other")
        other.prepare()
        for _ in range(held):
            put_archive(other.path, BackupType.FULL, NOON)
        archives = unmount(config, leaves=False)
        other.path.rename(archives)
        result = BackupJob(config).backup_media()
        assert f"has the id {Repository(archives).id}, and the one that was used here has {mine}" in str(result.error)
        assert not PruneJob(Repository(archives), config.retention).run().success
        assert len(BackupJob(config).list_backups()) == held

    def test_one_that_was_copied_without_its_hidden_files(self, config: BackupConfig) -> None:
        """Its archives are there, so it is not refused."""
        (Path(config.local_path) / LOCK_NAME).unlink()
        succeeded(BackupJob(config).backup_media())
        assert Repository(Path(config.local_path)).id == known.known_id(Path(config.local_path)) != ""

    def test_one_that_was_copied_and_then_seen_by_a_service(self, config: BackupConfig) -> None:
        """Beat and the watcher give it an id, and that is the one that is known from then on."""
        (Path(config.local_path) / LOCK_NAME).unlink()
        Repository(Path(config.local_path)).prepare()
        succeeded(BackupJob(config).backup_media())

    def test_a_restore_from_elsewhere_works(self, config: BackupConfig) -> None:
        """On the worst day an archive that is brought by hand is restored; the directory stays without an id."""
        archives = unmount(config)
        (archive,) = archives.with_name("volume").glob("media_*.tar.gz")
        (Path(config.media_path or "") / "scan.json").unlink()
        restoring = RestoreConfig(local_path=archives, media_path=Path(config.media_path or ""))
        result = RestoreJob(restoring).restore_media(archive)
        assert (result.success, result.error) == (True, None)
        assert Repository(archives).id == ""
        assert ABSENT.format(archives) in str(BackupJob(config).backup_media().error)

    def test_what_was_brought_for_a_restore_is_no_repository(self, config: BackupConfig) -> None:
        """An archive that was fetched to an empty mount point has no backup or prune go on there without a word."""
        archives = unmount(config)
        repository = Repository(archives)
        repository.prepare_for_restore()
        for path in archives.with_name("volume").glob("media_*"):
            shutil.copy2(path, archives)
        repository.prepare()  # as beat and the watcher do
        assert (len(repository.archives()), repository.id) == (1, "")
        assert ABSENT.format(archives) in str(BackupJob(config).backup_media().error)
        assert ABSENT.format(archives) in str(PruneJob(repository, config.retention).run().error)
        succeeded(BackupJob(replace(config, confirm_loss=True)).backup_media())
        succeeded(BackupJob(config).backup_media())

    @pytest.mark.parametrize("has_id", [True, False])
    def test_a_restore_leaves_no_note_in_the_repository_itself(self, config: BackupConfig, has_id: bool) -> None:
        """Nor in a copy of it that came without its id: backups go on in both."""
        archives = Path(config.local_path)
        if not has_id:
            (archives / LOCK_NAME).unlink()
        Repository(archives).prepare_for_restore()
        assert not (archives / STAND_IN_NAME).exists()
        succeeded(BackupJob(config).backup_media())


class TestNotes:
    """Where it is noted."""

    def test_places(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What systemd gives counts before XDG, that before home; without any there is none."""
        shared = tmp_path / "shared"
        monkeypatch.setattr(known, "STATE", shared)
        home = {"HOME": str(tmp_path)}
        own = tmp_path / ".local" / "state" / "kekkai-backup"
        assert known.state_directories({"STATE_DIRECTORY": "/a:/b", "XDG_STATE_HOME": "/x"}) == [Path("/a")]
        assert known.state_directories({"XDG_STATE_HOME": "/x"}) == [Path("/x/kekkai-backup")]
        assert known.state_directories(home) == [own]
        assert known.state_directories({"HOME": "/nonexistent"}) == []
        shared.mkdir()
        assert known.state_directories(home) == [shared, own]

    @pytest.mark.parametrize(("mode", "is_first"), [(0o755, False), (0o766, False), (0o777, True)])
    def test_a_place_of_services_that_this_user_cannot_write(
        self, mode: int, is_first: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Is read after the user's own."""
        with tempfile.TemporaryDirectory() as above:
            Path(above).chmod(0o755)
            shared, home = Path(above) / "shared", Path(above) / "home"
            shared.mkdir()
            shared.chmod(mode)
            home.mkdir(mode=0o755)
            monkeypatch.setattr(known, "STATE", shared)
            with as_nobody():
                found = known.state_directories({"HOME": str(home)})
                assert known.state_directories({"HOME": ""}) == [shared]
        own = home / ".local" / "state" / "kekkai-backup"
        assert found == ([shared, own] if is_first else [own, shared])

    def test_a_note(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Everybody may read it; it is found by any way to the repository, and is about that one alone."""
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "deep" / "state"))
        place, link = tmp_path / "one", tmp_path / "link"
        link.symlink_to(place)
        assert known.remember(place, "") == known.known_id(place) == ""
        assert not (tmp_path / "deep").exists()
        assert known.remember(link, "first") == ""
        (note,) = (tmp_path / "deep" / "state" / "kekkai-backup").iterdir()
        assert stat.S_IMODE(note.stat().st_mode) == 0o644
        assert json.loads(note.read_text()) == {"path": str(place), "id": "first"}
        assert (known.known_id(place), known.known_id(link), known.known_id(tmp_path)) == ("first", "first", "")
        before = note.stat()
        assert known.remember(place, "first") == ""
        assert note.stat().st_ino == before.st_ino
        assert known.remember(place, "second") == ""
        assert known.known_id(place) == "second"
        note.write_text(json.dumps({"path": "/elsewhere", "id": "second"}))
        assert known.known_id(place) == ""
        assert os.listdir(note.parent) == [note.name]

    @pytest.mark.parametrize("text", ["", "[]", "7", '{"id": "x"}', '{"path": "PLACE"}'])
    def test_a_note_of_something_else(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
        """Counts as none."""
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
        known.remember(tmp_path, "first")
        (note,) = (tmp_path / "kekkai-backup").iterdir()
        note.write_text(text.replace("PLACE", str(tmp_path)))
        assert known.known_id(tmp_path) == ""

    def test_a_note_that_cannot_be_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Why is told; nothing is left of it."""
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        (tmp_path / "state").write_text("in the way")
        said = known.remember(tmp_path, "first")
        assert said == f"{tmp_path}/state/kekkai-backup cannot be written: not a directory"
        (tmp_path / "state").unlink()
        known.remember(tmp_path, "first")
        (note,) = (tmp_path / "state" / "kekkai-backup").iterdir()
        note.unlink()
        note.mkdir()
        assert "cannot be written: is a directory" in known.remember(tmp_path, "first")
        assert os.listdir(note.parent) == [note.name]
        monkeypatch.delenv("XDG_STATE_HOME")
        monkeypatch.setenv("HOME", "/nonexistent")
        monkeypatch.setattr(known, "STATE", tmp_path / "absent")
        assert known.remember(tmp_path, "first") == "this user has no home"

    def test_a_home_that_may_not_be_looked_at(self) -> None:
        """As under ProtectHome of systemd: there is no place for notes, and no error."""
        with tempfile.TemporaryDirectory() as above, as_nobody():  # root's, and for nobody else
            assert Path(above) / "home" not in known.state_directories({"HOME": f"{above}/home"})
            assert known.state_directories({"HOME": f"{above}/home"}) == known.state_directories({})

    def test_a_note_that_makes_no_sense(self, config: BackupConfig) -> None:
        """It counts as none, and the next backup writes it anew."""
        archives = Path(config.local_path)
        (directory,) = known.state_directories(os.environ)
        for note in directory.glob("repository-*.json"):
            if json.loads(note.read_text())["path"] == str(archives):
                note.write_text("{")
        assert known.known_id(archives) == ""
        succeeded(BackupJob(config).backup_media())
        assert known.known_id(archives) == Repository(archives).id

    def test_a_user_without_a_home(self, config: BackupConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        """Backups work, and the doctor says that nobody would notice."""
        monkeypatch.delenv("XDG_STATE_HOME")
        monkeypatch.setenv("HOME", "/nonexistent")
        succeeded(BackupJob(config).backup_media())
        settings = settings_of(config)
        with engine_checks(load_settings(settings, lambda _: ""), environ=settings) as checks:
            (found,) = [one for one in examine(checks) if one.name == "repository"]
        assert "BACKUP_REPOSITORY_ID" in found.what
