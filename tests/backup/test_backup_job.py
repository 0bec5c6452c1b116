"""A backup from check to publish: what an archive holds, and every way in which there comes to be none."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

from portal.ops.archive.reader import ArchiveReader
from portal.ops.backup.job import BackupJob, create_backup_job
from portal.ops.postgres.row_counts import count_rows, list_tables
from tests.support.backups import GUIDE_KEYS, NOON, ROOT, files_below, manifest, member, members
from tests.support.portal import Portal, succeeded
from tests.support.sessions import session

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


class TestGuide:
    """The guide, word for word."""

    def test_the_python_example_works(
        self,
        portal: Portal,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """The example's backup half runs as it is written, with the places of this test in it."""
        for name, value in portal.environ().items():
            monkeypatch.setenv(name, value)
        example = (
            "from portal.ops.backup import BackupConfig, BackupJob, create_backup_job\n"
            "# Create backup\n"
            "backup_job = create_backup_job(\n"
            f'    local_path="{portal.archives}",\n'
            f'    db_host="{portal.database.host}",\n'
            f'    media_path="{portal.uploads}"\n'
            ")\n"
            "\n"
            "# Run full backup\n"
            "result = backup_job.backup_full()\n"
            "if result.success:\n"
            '    print(f"Backup created: {result.destination_path}")\n'
            '    print(f"Checksum: {result.checksum}")\n'
            "\n"
            "# Verify backup integrity\n"
            "valid, message = backup_job.verify_backup(result.destination_path)\n"
            'print(f"Integrity check: {message}")\n'
        )
        exec(example, {})  # noqa: S102  (it is the test)
        created, checksum, check = capsys.readouterr().out.splitlines()
        assert re.fullmatch(rf"Backup created: {portal.archives}/full_\d{{8}}_\d{{6}}_[0-9a-f]{{6}}\.tar\.gz", created)
        assert re.fullmatch(r"Checksum: [0-9a-f]{64}", checksum)
        assert re.fullmatch(r"Integrity check: full_\w+ is intact: 6 files, [\d,]+ bytes, every digest is right", check)

    def test_standard_output_belongs_to_the_program(self, portal: Portal) -> None:
        """A program that uses the engine without setting up any logging hears of failures, on standard error alone."""
        program = (
            "from portal.ops.backup import create_backup_job\n"
            "assert create_backup_job().backup_media().success\n"
            "assert not create_backup_job(media_path='/nowhere').backup_media().success\n"
        )
        ended = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env=portal.environ(), capture_output=True, text=True, check=True
        )
        assert ended.stdout == ""
        assert ended.stderr.startswith("event='backup_failed'")
        assert ended.stderr.count("\n") == 1


class TestContents:
    """What an archive holds."""

    def test_a_full_backup_holds_everything(self, portal: Portal) -> None:
        """Manifest first, then database, media and audit log, and the index last."""
        archive = succeeded(portal.job().backup_full())
        found = members(archive)
        files = {**files_below(portal.uploads, "media"), **files_below(portal.audit, "audit")}
        assert found[:2] == ["manifest.json", "database.sql"]
        assert set(files) < set(found)
        assert {path: member(archive, path) for path in files} == files

    def test_a_database_backup_holds_the_database_alone(self, portal: Portal) -> None:
        """No media, no audit log."""
        found = members(succeeded(portal.job().backup_database()))
        assert found[:-1] == ["manifest.json", "database.sql"]

    def test_a_media_backup_holds_the_media_alone(self, portal: Portal) -> None:
        """No database, no audit log, and no server is needed."""
        found = members(succeeded(portal.job(db_port=1).backup_media()))
        assert set(found[1:-1]) == {"media", *files_below(portal.uploads, "media")} | {
            f"media/{path.relative_to(portal.uploads)}" for path in portal.uploads.rglob("*") if path.is_dir()
        }

    def test_the_audit_log_can_be_the_file_itself(self, portal: Portal) -> None:
        """PORTAL_AUDIT_DIR may name the one file."""
        archive = succeeded(portal.job(audit_log_path=portal.audit / "audit.jsonl").backup_full())
        assert member(archive, "audit/audit.jsonl") == (portal.audit / "audit.jsonl").read_bytes()

    def test_what_is_not_configured_is_left_out(self, portal: Portal) -> None:
        """Without uploads and audit log, a full backup is the database, and the manifest says so."""
        archive = succeeded(portal.job(media_path=None, audit_log_path=None).backup_full())
        assert manifest(archive)["components"] == ["database"]

    def test_an_empty_upload_variable_leaves_the_media_out(self, portal: Portal) -> None:
        """PORTAL_UPLOAD_DIR set to nothing is how to leave the media out."""
        job = create_backup_job(environ=portal.environ(PORTAL_UPLOAD_DIR=""))
        assert manifest(succeeded(job.backup_full()))["components"] == ["database", "audit_logs"]

    def test_empty_uploads_are_media_all_the_same(self, portal: Portal, tmp_path: Path) -> None:
        """A portal without an upload yet has an empty directory, which is backed up and verifies."""
        (tmp_path / "empty").mkdir()
        job = portal.job(media_path=tmp_path / "empty")
        archive = succeeded(job.backup_media())
        assert manifest(archive)["components"] == ["media"]
        assert job.verify_backup(archive)[0]

    def test_the_repository_is_never_captured(self, portal: Portal) -> None:
        """A repository that lies among the uploads stays out of the archive, itself and what is in it."""
        job = portal.job(local_path=portal.uploads / "tenant-001" / "backups")
        succeeded(job.backup_media())
        found = members(succeeded(job.backup_media(moment=NOON)))
        assert "media/tenant-001" in found
        assert not [path for path in found if "backups" in path]

    def test_uploads_behind_a_link_are_followed(self, portal: Portal, tmp_path: Path) -> None:
        """The uploads' directory may be a symlink to where they are."""
        (tmp_path / "link").symlink_to(portal.uploads)
        found = members(succeeded(portal.job(media_path=tmp_path / "link").backup_media()))
        assert set(files_below(portal.uploads, "media")) < set(found)

    def test_what_is_no_file_is_a_warning(self, portal: Portal) -> None:
        """A FIFO is left out, and result and manifest say so."""
        os.mkfifo(portal.uploads / "pipe")
        result = portal.job().backup_media()
        assert result.warnings == ("media/pipe is a socket, a FIFO or a device and was left out",)
        assert manifest(succeeded(result))["warnings"] == list(result.warnings)

    def test_links_that_lead_out_are_a_warning(self, portal: Portal) -> None:
        """They are in the archive; the first few are named, with what a restore will ask for, the others counted."""
        for number in range(8):
            (portal.uploads / f"link-{number}").symlink_to("/var/lib/reports")
        (portal.uploads / "inside").symlink_to("link-1")
        result = portal.job().backup_media()
        found = members(succeeded(result))
        assert "media/link-7" in found
        assert result.warnings == (
            *(
                f"the link media/link-{number} leads out of the tree, to /var/lib/reports: a restore will ask for "
                "--allow-outside-links"
                for number in range(5)
            ),
            "3 more links lead out of the tree",
        )

    def test_an_incremental_warns_of_new_links_that_lead_out(self, portal: Portal) -> None:
        """What an incremental takes is judged as everything else is."""
        succeeded(portal.job().backup_media())
        (portal.uploads / "link").symlink_to("../../secret")
        (warning,) = portal.job().backup_media(incremental=True).warnings
        assert warning.startswith("the link media/link leads out of the tree, to ../../secret")


class TestManifest:
    """What an archive says of itself."""

    def test_it_has_the_keys_of_the_guide(self, portal: Portal) -> None:
        """The seven keys of the guide, with the values that belong there."""
        result = portal.job().backup_full(moment=NOON)
        found = manifest(succeeded(result))
        assert {key: found[key] for key in GUIDE_KEYS} == {
            "backup_id": result.backup_id,
            "type": "full",
            "timestamp": "2024-01-15T12:00:00Z",
            "format_version": 1,
            "components": ["database", "media", "audit_logs"],
            "hostname": os.uname().nodename,
            "db_name": portal.database.name,
        }

    def test_its_row_counts_are_those_of_the_database(self, portal: Portal) -> None:
        """Every table is counted, and rightly."""
        found = manifest(succeeded(portal.job().backup_database()))
        with session(portal.database) as connection:
            expected = count_rows(connection, list_tables(connection))
        assert found["details"]["database"]["rows"] == expected
        assert sum(expected.values()) > 400

    def test_it_says_what_made_the_dump(self, portal: Portal) -> None:
        """The versions of server and pg_dump are there, for whoever has to find a pg_restore that fits."""
        details = manifest(succeeded(portal.job().backup_database()))["details"]["database"]
        assert details["server_version"].split(".")[0] == details["pg_dump_version"].split(".")[0]

    def test_it_counts_files_and_bytes(self, portal: Portal) -> None:
        """Files and bytes of the media are those of the directory."""
        details = manifest(succeeded(portal.job().backup_media()))["details"]["media"]
        files = files_below(portal.uploads, "media")
        assert (details["files"], details["bytes"]) == (len(files), sum(map(len, files.values())))


def test_pg_restore_reads_the_dump(portal: Portal, tmp_path: Path) -> None:
    """The database.sql of an archive is a dump that `pg_restore --list` reads, with every table in it."""
    archive = succeeded(portal.job().backup_full())
    dump = tmp_path / "database.sql"
    dump.write_bytes(member(archive, "database.sql"))
    listed = subprocess.run(
        [portal.bin_dir / "pg_restore", "--list", dump], capture_output=True, text=True, check=True
    ).stdout
    for table in manifest(archive)["details"]["database"]["rows"]:
        assert f"TABLE DATA {table.replace('.', ' ')} " in listed


def test_reading_the_manifest_needs_no_server(portal: Portal) -> None:
    """An archive can be looked into when the database is gone."""
    archive = succeeded(portal.job().backup_database())
    with closing(ArchiveReader(archive)) as reader:
        assert reader.manifest().db_name == portal.database.name


def test_a_clock_can_be_passed_in(portal: Portal) -> None:
    """The time of a backup is that of the clock that it is given."""
    result = BackupJob(portal.config(), clock=lambda: NOON).backup_media()
    assert result.timestamp == NOON
    assert result.backup_id.startswith("media_20240115_120000_")
