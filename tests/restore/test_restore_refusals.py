"""Restores that change nothing: dry runs, refusals, and failures before anything live is touched."""

from __future__ import annotations

import hashlib
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from psycopg.sql import SQL

from demo.compare import tree_contents
from portal.ops.repository.sidecar import sidecar_of
from portal.ops.restore.components import FilesPart
from tests.support.portal import small_disk
from tests.support.restores import done, dump_of, flip, mounted, plain, refused, snapshot
from tests.support.restoring import ask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from portal.ops.restore.job import RestorePlan
    from tests.support.world import World


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
        result = refused(world.job(confirm=lambda _: False).restore_full("latest"), 3, "Not confirmed")
        assert result.plan[0].startswith("Restore database, uploads, audit log from full_")

    def test_everything_in_the_way_is_told(self, world: World) -> None:
        """What makes a restore impossible is in the plan, and nobody is asked."""
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
        assert len(blockers) == 1
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
        refused(world.job(media_path=None).restore_media("latest"), 2, "no place configured for the uploads")

    def test_a_pattern_for_the_database(self, world: World) -> None:
        """A part of a database cannot be restored by a pattern."""
        refused(world.job(patterns=("*",)).restore_database("latest"), 2, "--path")

    def test_a_component_that_the_archive_lacks(self, world: World) -> None:
        """What the archive does not hold cannot be restored."""
        archive = Path(world.portal.job().backup_media().destination_path)
        refused(world.job().restore_database(archive), 2, "holds uploads, and no database")

    def test_a_manifest_that_lists_too_much(self, world: World, tmp_path: Path) -> None:
        """A manifest may list what is not there, as the portal's own scripts do: a warning says what is missing."""
        archive = plain(tmp_path, {"components": ["database", "media"]}, dump=dump_of(world))
        result = done(world.job(dry_run=True, allow_unverified=True).restore_full(archive))
        assert any("lists uploads, but" in warning for warning in result.warnings), result.warnings

    def test_row_counts_that_make_no_sense(self, world: World, tmp_path: Path) -> None:
        """A manifest can say anything; it is no reason for a traceback."""
        details = {"database": {"rows": ["many"]}}
        archive = plain(tmp_path, {"components": ["database"], "details": details}, dump=dump_of(world))
        job = world.job(verify_before_restore=False, allow_unverified=True)
        refused(job.restore_full(archive), 4, "numbers of rows are invalid")

    def test_a_failing_stage_leaves_nothing(self, world: World, tmp_path: Path) -> None:
        """Row counts that are not met undo the stage of everything."""
        details = {"database": {"rows": {"public.mark": 7}}}
        archive = plain(tmp_path, {"components": ["database"], "details": details}, dump=dump_of(world))
        job = world.job(verify_before_restore=False, allow_unverified=True)
        refused(job.restore_full(archive), 4, "the restored rows differ from the backup")

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
            refused(world.job().restore_full("latest"), 1, "no space left")
        (listed,) = world.job().list_restores()
        assert listed["state"] == "rolled_back"
        done(world.job().discard(listed["restore_id"]))

    def test_another_restore_is_running(self, world: World) -> None:
        """Only one restore of a repository runs at a time; the other one ends at once with 5."""
        results = []

        def confirm(_: RestorePlan) -> bool:
            results.append(world.job().restore_full("latest"))
            return False

        world.job(confirm=confirm).restore_full("latest")
        refused(results[0], 5, "another restore is running")


def test_a_full_disk_of_the_repository_is_named(world: World, tmp_path: Path) -> None:
    """Where not even the record of a restore can be written, the error has its path, and nothing was changed."""
    with small_disk(tmp_path / "full", "2m"):
        archives = tmp_path / "full"
        archive = Path(shutil.copy(world.archive, archives))
        shutil.copy(sidecar_of(world.archive), archives)
        with suppress(OSError), (archives / "fill").open("wb") as file:
            while True:
                file.write(bytes(4096))
                file.flush()
        result = world.job(local_path=archives).restore_full(archive)
        refused(result, 1, f"{archives}/", "no space left on device", "Free space on its file system")
    assert world.state() == world.after
