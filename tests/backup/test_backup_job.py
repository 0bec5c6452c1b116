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
from portal.ops.postgres.connection import connect
from portal.ops.postgres.row_counts import count_rows, list_tables
from tests.support.backups import GUIDE_KEYS, NOON, ROOT, files_below, manifest, member, members
from tests.support.portal import Portal, succeeded

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
        with connect(portal.database) as connection:
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


<<<<<<< HEAD
class TestResult:
    """What a caller gets."""

    def test_it_describes_the_archive(self, portal: Portal) -> None:
        """Size and checksum are the file's, and the sidecar says the same."""
        result = portal.job().backup_full()
        archive = succeeded(result)
        assert result.size_bytes == archive.stat().st_size
        assert sidecar_of(archive).read_text() == f"{result.checksum}  {archive.name}\n"
        assert result.backup_id == archive.name.removesuffix(".tar.gz")
        assert (result.backup_type, result.exit_code, result.encrypted) == (BackupType.FULL, 0, False)
        assert result.duration_seconds > 0

    def test_it_becomes_json(self, portal: Portal) -> None:
        """The dictionary of a result is JSON, with a version of its own."""
        result = portal.job().backup_media(moment=NOON)
        found = json.loads(json.dumps(result.to_dict()))
        assert found == result.to_dict()
        assert found["format_version"] == 1
        assert (found["type"], found["timestamp"], found["success"]) == ("media", "2024-01-15T12:00:00Z", True)
        assert found["path"] == result.destination_path

    def test_a_failure_becomes_json_too(self, portal: Portal) -> None:
        """The same keys, and the error in words."""
        failed = portal.job(media_path=None).backup_media().to_dict()
        assert failed.keys() == portal.job().backup_media().to_dict().keys()
        assert json.loads(json.dumps(failed))["error"].startswith("there is no directory of media")

    def test_archives_are_listed(self, portal: Portal) -> None:
        """The list has what the portal's code asks for, newest first."""
        job = portal.job()
        older = job.backup_media(moment=NOON)
        newer = job.backup_database(moment=NOON + timedelta(days=1))
        listed = job.list_backups()
        assert [backup["path"] for backup in listed] == [newer.destination_path, older.destination_path]
        assert {"path", "name", "size_bytes", "modified", "checksum"} <= listed[0].keys()
        assert [backup["checksum"] for backup in listed] == [newer.checksum, older.checksum]

    def test_a_damaged_sidecar_does_not_stop_the_list(self, portal: Portal) -> None:
        """An archive whose checksum cannot be read is listed without one."""
        job = portal.job()
        sidecar_of(succeeded(job.backup_media())).write_text("nonsense")
        assert [backup["checksum"] for backup in job.list_backups()] == [None]

    def test_a_list_that_cannot_be_made_is_an_error(self, portal: Portal) -> None:
        """A repository that cannot be read is not reported as empty."""
        portal.archives.touch()
        with pytest.raises(RepositoryError, match="not a directory"):
            portal.job().list_backups()


class TestProgress:
    """What is told while it goes on."""

    def test_it_only_grows(self, portal: Portal) -> None:
        """Bytes never go back, phases come in order, and in the end all content was counted."""
        steps: list[Step] = []
        archive = succeeded(BackupJob(portal.config(), progress=steps.append).backup_full())
        assert all(before.done <= after.done for before, after in pairwise(steps))
        assert list(dict.fromkeys(step.phase for step in steps)) == ["database", "media", "audit_logs"]
        details = manifest(archive)["details"]
        assert steps[-1].done == sum(detail["bytes"] for detail in details.values())

    def test_verification_tells_as_well(self, portal: Portal) -> None:
        """A verification reports how much it has looked at."""
        archive = succeeded(portal.job().backup_media())
        steps: list[Step] = []
        BackupJob(portal.config(), progress=steps.append).verify(archive)
        assert steps[-1].phase == "verify"
        assert steps[-1].done >= manifest(archive)["details"]["media"]["bytes"]


class TestRequests:
    """The same request twice, and different ones at once."""

    def test_the_same_request_gives_the_same_answer(self, portal: Portal) -> None:
        """A second delivery finds the first one's archive, and says the same of it."""
        first = portal.job().backup_full(moment=NOON, request_id="task-1")
        again = portal.job().backup_full(moment=NOON, request_id="task-1")
        assert replace(again, duration_seconds=0) == replace(first, duration_seconds=0)
        assert len(portal.left()) == 2

    def test_the_id_is_a_function_of_the_request(self, portal: Portal) -> None:
        """Type, moment and request make the id; the moment of a slot is in it."""
        first = portal.job().backup_media(moment=NOON, request_id="task-1")
        assert re.fullmatch(r"media_20240115_120000_[0-9a-f]{6}", first.backup_id)

    def test_requests_at_once_give_one_archive(self, portal: Portal) -> None:
        """Eight processes that get the same message make one archive, and all answer with it."""
        program = (
            "import json, os\nfrom datetime import UTC, datetime\n"
            "from portal.ops.backup import create_backup_job\n"
            "moment = datetime(2024, 1, 15, 12, tzinfo=UTC)\n"
            "result = create_backup_job().backup_full(moment=moment, request_id='task-1')\n"
            "print(json.dumps(result.to_dict()))"
        )
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", program], cwd=ROOT, env=portal.environ(), stdout=subprocess.PIPE, text=True
            )
            for _ in range(8)
        ]
        answers = [json.loads(process.communicate(timeout=60)[0].splitlines()[-1]) for process in processes]
        assert len({answer["checksum"] for answer in answers}) == 1
        assert all(answer["success"] for answer in answers)
        assert len(portal.left()) == 2

    def test_different_requests_in_one_second_do_not_meet(self, portal: Portal) -> None:
        """Two backups of the same second are two archives."""
        job = portal.job()
        one, other = (job.backup_media(moment=NOON) for _ in range(2))
        assert one.backup_id != other.backup_id
        assert len(job.list_backups()) == 2

    def test_an_archive_that_was_damaged_meanwhile_is_no_answer(self, portal: Portal) -> None:
        """A second delivery whose archive cannot be read does not call it a success."""
        job = portal.job()
        archive = succeeded(job.backup_media(moment=NOON, request_id="task-1"))
        archive.write_bytes(archive.read_bytes()[:1000])
        again = job.backup_media(moment=NOON, request_id="task-1")
        assert (again.success, again.exit_code) == (False, 4)

    def test_one_that_takes_too_long_makes_the_other_busy(self, portal: Portal) -> None:
        """Who waits in vain for the same archive ends with the code for busy."""
        first = portal.job().backup_media(moment=NOON, request_id="task-1")
        repository = Repository(portal.archives)
        archive = repository.find(first.backup_id)
        archive.path.unlink()
        assert archive.backup_id is not None
        with repository.draft(archive.backup_id):
            second = portal.job(lock_timeout=0.1).backup_media(moment=NOON, request_id="task-1")
        assert (second.success, second.exit_code) == (False, 5)


class TestSourcesThatAreNotThere:
    """Uploads and audit log that cannot be backed up."""

    def test_missing_uploads_fail_the_backup(self, portal: Portal, tmp_path: Path) -> None:
        """A directory that is not mounted is a failure that says how to leave it out on purpose."""
        result = portal.job(media_path=tmp_path / "gone").backup_full()
        error = refused(result, portal)
        assert error.startswith(f"{tmp_path}/gone does not exist, so the media cannot be backed up")
        assert "set PORTAL_UPLOAD_DIR to nothing" in error
        assert result.exit_code == 1

    def test_a_missing_audit_log_fails_the_backup(self, portal: Portal, tmp_path: Path) -> None:
        """The same of the audit log, with its own variable in the hint."""
        assert "PORTAL_AUDIT_DIR" in refused(portal.job(audit_log_path=tmp_path / "gone").backup_full(), portal)

    def test_no_uploads_to_back_up_is_a_wrong_configuration(self, portal: Portal) -> None:
        """A media backup without uploads is refused as wrong usage."""
        result = portal.job(media_path=None).backup_media()
        assert "Set PORTAL_UPLOAD_DIR" in refused(result, portal)
        assert result.exit_code == 2

    @pytest.mark.parametrize("place", ["", "inside", "link"])
    def test_uploads_inside_the_repository_are_refused(self, portal: Portal, tmp_path: Path, place: str) -> None:
        """Archives and uploads in one directory would be mixed up: neither below it, nor through a link."""
        (portal.archives / "inside").mkdir(parents=True)
        (tmp_path / "link").symlink_to(portal.archives / "inside")
        uploads = tmp_path / "link" if place == "link" else portal.archives / place
        result = portal.job(media_path=uploads).backup_media()
        assert result.exit_code == 2
        assert result.error is not None
        assert result.error.startswith(f"{uploads} lies inside the repository {portal.archives}")

    def test_uploads_behind_a_loop_of_links_fail_the_backup(self, portal: Portal, tmp_path: Path) -> None:
        """A path that leads nowhere is an error about that path, not about the repository."""
        (tmp_path / "loop").symlink_to("loop")
        assert f"cannot read {tmp_path}/loop" in refused(
            portal.job(media_path=tmp_path / "loop").backup_media(), portal
        )


class TestDatabasesThatAreNotThere:
    """Everything that is wrong before pg_dump has begun."""

    def test_a_wrong_password(self, portal: Portal) -> None:
        """The server's refusal names the user and where passwords come from, and shows none."""
        error = refused(portal.job(db_password="guess-4711").backup_full(), portal)
        assert "refused the password of user postgres" in error
        assert "DD_DATABASE_PASSWORD" in error
        assert "guess-4711" not in error

    def test_no_server(self, portal: Portal) -> None:
        """Where nobody listens, the address is named."""
        result = portal.job(db_port=1).backup_full()
        assert "no PostgreSQL server answers at 127.0.0.1:1" in refused(result, portal)
        assert result.exit_code == 1

    def test_no_such_database(self, portal: Portal) -> None:
        """A database that is not there is named, with the variable that names it."""
        error = refused(portal.job(db_name="misspelt").backup_full(), portal)
        assert "has no database misspelt" in error
        assert "DD_DATABASE_NAME" in error

    def test_no_pg_dump(self, portal: Portal, tmp_path: Path) -> None:
        """Without the client programs, the error names the package to install."""
        (tmp_path / "empty").mkdir()
        error = refused(portal.job(pg_bin_dir=tmp_path / "empty").backup_full(), portal)
        assert f"pg_dump not found in {tmp_path}/empty (BACKUP_PG_BIN_DIR)" in error
        assert "apt-get install postgresql-client-17" in error

    def test_no_session_stays(self, portal: Portal, postgres: EmbeddedPostgres, tmp_path: Path) -> None:
        """A backup that fails after the connection was made closes it."""
        (tmp_path / "empty").mkdir()
        portal.job(pg_bin_dir=tmp_path / "empty").backup_full()
        assert no_session_soon(postgres, portal.database)


class TestHalfWay:
    """What goes wrong when a part of the archive has been written."""

    def test_a_dump_that_is_terminated(self, portal: Portal, postgres: EmbeddedPostgres) -> None:
        """An administrator who ends pg_dump's session leaves no archive, no process and no transaction."""
        execute(portal.database, BIG_TABLE)
        before = descendants()

        def terminate() -> None:
            query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND query LIKE 'COPY%%'"
            with postgres.connect() as connection:
                assert connection.execute(query, [portal.database.name]).fetchall() == [(True,)]

        error = refused(BackupJob(portal.config(), progress=at_first(terminate)).backup_full(), portal)
        assert error.startswith("pg_dump failed: ")
        assert "the server went away: see its log, and try again" in error
        assert no_session_soon(postgres, portal.database)
        assert no_new_descendants_soon(before)

    def test_a_server_that_stops(self, server: EmbeddedPostgres, tmp_path: Path) -> None:
        """A server that goes away half way leaves no archive and no process, and the error says so."""
        address = server.superuser()
        target = DatabaseTarget(host=address.host, port=address.port, name=address.database, user=address.user)
        config = BackupConfig(
            local_path=tmp_path / "archives",
            db_host=target.host,
            db_port=target.port,
            db_name=target.name,
            db_user=target.user,
            db_password=address.password,
            pg_bin_dir=server.bin_dir,
        )
        target = config.database
        execute(target, BIG_TABLE)
        before = descendants()
        result = BackupJob(config, progress=at_first(server.stop)).backup_full()
        portal = Portal(directory=tmp_path, database=target, bin_dir=server.bin_dir)
        assert "server" in refused(result, portal)
        assert result.exit_code == 1
        assert no_new_descendants_soon(before)

    def test_a_disk_that_gets_full(self, portal: Portal) -> None:
        """Where the archive does not fit, the error says so, and its part is taken away."""
        (portal.uploads / "noise").write_bytes(os.urandom(90 << 20))
        with small_disk(portal.archives, "80m"):
            result = portal.job().backup_media()
            error = refused(result, portal)
        assert error.startswith(f"no space left for the archive in {portal.archives}")
        assert result.exit_code == 1

    def test_a_disk_that_is_full_already(self, portal: Portal) -> None:
        """Where there is hardly any space, nothing is begun, and the error has the figures."""
        with small_disk(portal.archives, "8m"):
            error = refused(portal.job().backup_full(), portal)
        assert re.match(rf"{portal.archives} has \d MiB free, and this backup needs about 64 MiB\n", error)

    def test_a_disk_that_cannot_be_written(self, portal: Portal) -> None:
        """A repository that is mounted read-only is said to be so."""
        with small_disk(portal.archives, "8m,ro"):
            error = refused(portal.job().backup_full(), portal)
        assert error.startswith(f"cannot write to {portal.archives}: read-only file system")

    def test_a_limit_on_the_size_of_files(self, portal: Portal) -> None:
        """A process that may not write so much fails without a trace."""
        (portal.uploads / "noise").write_bytes(os.urandom(4 << 20))
        program = (
            "import json, resource\nfrom portal.ops.backup import create_backup_job\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
            "print(json.dumps(create_backup_job().backup_media().to_dict()))"
        )
        ended = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env=portal.environ(), capture_output=True, text=True, check=True
        )
        answer = json.loads(ended.stdout.splitlines()[-1])
        assert not answer["success"]
        assert "File too large" in answer["error"]
        assert portal.left() == set()


class TestSecrets:
    """Where the database's password must not turn up."""

    @pytest.fixture
    def logged(self) -> Iterator[io.StringIO]:
        """The log lines of a test."""
        before = structlog.get_config()
        stream = io.StringIO()
        configure_logging(LogFormat.JSON, stream)
        yield stream
        structlog.configure(**before)

    def test_not_in_results_and_logs(self, portal: Portal, logged: io.StringIO) -> None:
        """Neither a success nor a failure shows it, in results or log lines."""
        results = [portal.job().backup_full(), portal.job(db_name="misspelt").backup_full()]
        assert "archive_published" in logged.getvalue()
        assert "backup_failed" in logged.getvalue()
        assert portal.password not in logged.getvalue()
        assert portal.password not in json.dumps([result.to_dict() for result in results])

    def test_not_in_the_archive(self, portal: Portal) -> None:
        """No byte of an archive, packed or unpacked, is of the password."""
        archive = succeeded(portal.job().backup_full())
        packed = archive.read_bytes()
        unpacked = subprocess.run(["gzip", "-dc", archive], capture_output=True, check=True).stdout
        assert len(unpacked) > 100_000
        assert portal.password.encode() not in packed + unpacked

    def test_not_in_the_arguments_of_a_process(self, portal: Portal) -> None:
        """While a dump runs, no process that belongs to it has the password among its arguments."""
        execute(portal.database, BIG_TABLE)
        seen: set[bytes] = set()
        over = threading.Event()

        def sample() -> None:
            while not over.is_set():
                for pid in descendants():
                    try:
                        seen.add(Path(f"/proc/{pid}/cmdline").read_bytes())
                    except OSError:
                        continue

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            succeeded(portal.job().backup_full())
        finally:
            over.set()
            thread.join()
        assert any(b"/pg_dump\0--format=custom" in line for line in seen)
        assert not [line for line in seen if portal.password.encode() in line]


=======
>>>>>>> main
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
