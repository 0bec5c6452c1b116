"""Every way in which a backup fails: a reason, a hint, and nothing that is left of it."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
import structlog

from portal.ops.backup.job import BackupConfig, BackupJob
from portal.ops.runtime.logs import configure_logging
from portal.ops.settings.load import DatabaseTarget, LogFormat
from tests.support.backups import ROOT, refused
from tests.support.portal import BIG_TABLE, Portal, execute, small_disk, succeeded
from tests.support.servers import no_session_soon
from tests.support.waiting import LONG_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from demo.postgres import EmbeddedPostgres
    from portal.ops.runtime.progress import Step


def descendants() -> set[int]:
    """The processes that this one started, and those that they did."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(") ")[2].split()[1])
            except OSError:
                continue
    found, more = set(), {os.getpid()}
    while more:
        more = {pid for pid, parent in parents.items() if parent in more}
        found |= more
    return found


def no_new_descendants_soon(before: set[int], seconds: float = LONG_SECONDS) -> bool:
    deadline = time.monotonic() + seconds
    while descendants() - before:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def at_first(action: Callable[[], object]) -> Callable[[Step], None]:
    """What does something once, when the first block of a dump has been read and pg_dump waits to write more."""
    todo = [action]

    def progress(_: Step) -> None:
        while todo:
            todo.pop()()

    return progress


class TestSourcesThatAreNotThere:
    """Uploads and audit log that cannot be backed up."""

    def test_missing_uploads_fail_the_backup(self, portal: Portal, tmp_path: Path) -> None:
        """A directory that is not mounted is a failure that says how to leave it out on purpose."""
        result = portal.job(media_path=tmp_path / "gone").backup_full()
        error = refused(result, portal)
        assert error.startswith(f"{tmp_path}/gone does not exist, so the uploads cannot be backed up")
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
        """An administrator who ends pg_dump's session leaves no archive, no process and no transaction.

        A session that is just sending can say no last word: then all that pg_dump knows is that the connection ended.
        """
        execute(portal.database, BIG_TABLE)
        before = descendants()

        def terminate() -> None:
            query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND query LIKE 'COPY%%'"
            with postgres.connect() as connection:
                assert connection.execute(query, [portal.database.name]).fetchall() == [(True,)]

        error = refused(BackupJob(portal.config(), progress=at_first(terminate)).backup_full(), portal)
        assert error.startswith("pg_dump failed: ")
        hints = ("an administrator ended the session", "the server went away: see its log, and try again")
        assert [hint for hint in hints if hint in error]
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
        result = BackupJob(config, progress=at_first(server.stop)).backup_database()
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
        assert re.match(rf"{portal.archives} has [\d.]+ [kM]?B free, and this backup needs about 67\.1 MB\n", error)

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
        assert "file too large" in answer["error"]
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


def test_another_user_is_told_what_cannot_be_reached(portal: Portal) -> None:
    """Uploads below a directory of another user's are named, with advice about them and not about the repository."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        (Path(directory) / "closed").mkdir(mode=0o700)
        (Path(directory) / "archives").mkdir(mode=0o777)
        (Path(directory) / "archives").chmod(0o777)
        job = portal.job(media_path=f"{directory}/closed/uploads", local_path=f"{directory}/archives")
        os.setresuid(65534, 65534, 0)
        try:
            result = job.backup_media(request_id=uuid4().hex)
        finally:
            os.setresuid(0, 0, 0)
        assert result.error is not None
        assert result.error.startswith(f"cannot read {directory}/closed/uploads: permission denied")
        assert "the portal's user" in result.error
