"""What a command reported as done is there after a power cut in the next instant."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from portal.ops.model import RESTORE_DIRECTORY
from portal.ops.offsite.signing import find_key, own_key
from portal.ops.repository.access_log import AccessLog
from portal.ops.repository.repository import Repository
from tests.support.commands import RESTORE, done, run
from tests.support.portal import portal_in
from tests.support.power_cut import disk

if TYPE_CHECKING:
    from pathlib import Path

    from demo.postgres import EmbeddedPostgres
    from portal.ops.settings.database_url import DatabaseTarget
    from tests.support.portal import Portal
    from tests.support.power_cut import Disk

__all__ = ["disk"]


@pytest.fixture
def portal(disk: Disk, portal_database: DatabaseTarget, postgres: EmbeddedPostgres) -> Portal:
    """A portal whose files and archives lie on a disk whose power can be cut; its files are on the disk already."""
    found = portal_in(disk.mount, portal_database, postgres)
    disk.settle()
    return found


def at(portal: Portal, place: Path) -> dict[str, str]:
    """The environment of the portal on the disk as it is after the power cut."""
    return replace(portal, directory=place).environ(PORTAL_UPLOAD_DIR=str(portal.uploads))


class TestBackup:
    """A backup reported as successful survives."""

    @pytest.mark.parametrize("arguments", [("full",), ("media",), ("database",)])
    def test_archive_and_sidecar_survive(self, portal: Portal, disk: Disk, arguments: tuple[str, ...]) -> None:
        """The archive is there under its name, and intact by its sidecar."""
        made, _ = done(*arguments, "--local", environ=portal.environ())
        with disk.after_power_cut() as place:
            found, _ = done("verify", made["backup_id"], environ=at(portal, place))
            assert found["success"] is True
            checked = subprocess.run(
                ["sha256sum", "--check", f"{made['backup_id']}.tar.gz.sha256"],
                cwd=place / "archives",
                capture_output=True,
                check=False,
            )
            assert checked.returncode == 0

    def test_incremental_survives_with_its_chain(self, portal: Portal, disk: Disk) -> None:
        """An incremental is there, follows its base, and the next one goes on from it."""
        done("media", "--local", environ=portal.environ())
        (portal.uploads / "new.json").write_text('{"new": true}')
        disk.settle()
        made, _ = done("media", "--incremental", "--local", environ=portal.environ())
        with disk.after_power_cut() as place:
            found, _ = done("verify", made["backup_id"], environ=at(portal, place))
            assert found["success"] is True
            listed, _ = done("list", environ=at(portal, place))
            assert listed["backups"][0]["backup_id"] == made["backup_id"]

    def test_access_log_has_the_backup(self, portal: Portal, disk: Disk) -> None:
        """Who made the backup stays known, and the chain of the log is unbroken."""
        made, _ = done("full", "--local", environ=portal.environ())
        with disk.after_power_cut() as place:
            log = AccessLog(Repository(place / "archives"))
            assert log.verify().intact
            assert made["backup_id"] in log.path.read_text()


class TestRecords:
    """What was recorded of an archive survives."""

    def test_finding_survives(self, portal: Portal, disk: Disk) -> None:
        """A verification counts after the power cut."""
        made, _ = done("full", "--local", environ=portal.environ())
        done("verify", made["backup_id"], environ=portal.environ())
        with disk.after_power_cut() as place:
            listed, _ = done("list", environ=at(portal, place))
            assert listed["backups"][0]["verified"] is not None

    def test_pin_survives(self, portal: Portal, disk: Disk) -> None:
        """A pinned archive is still pinned."""
        made, _ = done("full", "--local", environ=portal.environ())
        done("pin", made["backup_id"], environ=portal.environ())
        with disk.after_power_cut() as place:
            listed, _ = done("list", environ=at(portal, place))
            assert listed["backups"][0]["pinned"]


class TestRestore:
    """A restore reported as done is on the disk, and can still be rolled back."""

    def test_restored_files_survive(self, portal: Portal, disk: Disk) -> None:
        """Every restored upload has its content."""
        made, _ = done("media", "--local", environ=portal.environ())
        before = contents(portal.uploads)
        for file in files(portal.uploads):
            file.write_text("overwritten")
        disk.settle()
        done(made["backup_id"], "--media-only", "--force", "--local", environ=portal.environ(), script=RESTORE)
        with disk.after_power_cut() as place:
            assert contents(place / "uploads") == before

    def test_rollback_is_possible_after_the_cut(self, portal: Portal, disk: Disk) -> None:
        """The rollback brings back what was replaced."""
        made, _ = done("media", "--local", environ=portal.environ())
        for file in files(portal.uploads):
            file.write_text("overwritten")
        disk.settle()
        before = contents(portal.uploads)
        done(made["backup_id"], "--media-only", "--force", "--local", environ=portal.environ(), script=RESTORE)
        with disk.after_power_cut() as place:
            # The record names the uploads by their path: the disk after the cut takes the place of the one before.
            subprocess.run(["mount", "--bind", place, portal.directory], check=True)
            try:
                done("--rollback", "--force", "--local", environ=portal.environ(), script=RESTORE)
                assert contents(portal.uploads) == before
            finally:
                subprocess.run(["umount", portal.directory], check=True)


class TestPrune:
    """A prune leaves archives whole or gone, whatever reached the disk."""

    def test_what_a_prune_kept_is_complete(self, portal: Portal, disk: Disk) -> None:
        """After the cut every archive that is there verifies, and the newest is among them."""
        for _ in range(3):
            done("media", "--local", environ=portal.environ())
        disk.settle()
        keep_one = {"BACKUP_RETENTION_DAYS": "0", "BACKUP_RETENTION_COUNT": "1"}
        pruned = run("prune", environ=portal.environ(**keep_one))
        assert pruned.returncode == 0, pruned.stderr
        with disk.after_power_cut() as place:
            archives = sorted((place / "archives").glob("*.tar.gz"))
            assert archives
            for archive in archives:
                found, _ = done("verify", archive.name, environ=at(portal, place))
                assert found["success"] is True


def files(directory: Path) -> list[Path]:
    """Every file of a tree, without the rollback data that a restore keeps in it."""
    ours = directory / RESTORE_DIRECTORY
    found = [path for path in sorted(directory.rglob("*")) if path.is_file() and ours not in path.parents]
    assert found
    return found


def contents(directory: Path) -> dict[str, bytes]:
    """Every file of a tree with its content."""
    return {os.fspath(path.relative_to(directory)): path.read_bytes() for path in files(directory)}


def test_the_key_of_offsite_copies_survives(disk: Disk) -> None:
    """Copies are signed with it at once; without it they would count as another's."""
    repository = Repository(disk.mount / "archives")
    repository.prepare()
    disk.settle()
    made = own_key(repository)
    with disk.after_power_cut() as place:
        found = find_key(Repository(place / "archives"))
        assert found is not None
        assert found.signer == made.signer
