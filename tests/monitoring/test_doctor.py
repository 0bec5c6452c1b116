"""The doctor: what it finds on a portal that is well, on one that is not, and on none at all."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import TYPE_CHECKING

import pytest

from portal.ops.errors import BusyError
from portal.ops.monitoring.doctor.check import Check, examine, ok, this_user
from portal.ops.monitoring.doctor.files import FileChecks
from portal.ops.monitoring.doctor.run import Finding, State, engine_checks
from portal.ops.repository.locks import holders
from portal.ops.repository.repository import LOCK_NAME, Repository
from portal.ops.runtime.progress import read_text
from portal.ops.settings.load import load_settings
from tests.support.commands import answer, run
from tests.support.portal import Portal, succeeded
from tests.support.unprivileged import done_by_nobody

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from demo.postgres import EmbeddedPostgres

KEY = "DD_CREDENTIAL_AES_256_KEY"


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A directory that another user can reach; those of pytest are closed to others."""
    with TemporaryDirectory(dir="/tmp") as directory:
        yield Path(directory)


def look(environ: dict[str, str], clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> dict[str, Finding]:
    """What the engine's checks find, by their names."""
    with engine_checks(load_settings(environ, read_text), environ=environ, clock=clock) as checks:
        return {finding.name: finding for finding in examine(checks)}


def restore_of_files() -> Finding:
    """What is found of the places in the working directory where files would be restored."""
    checks = FileChecks(uploads=Path("uploads"), audit=Path("log/audit"), environ={}).all()
    return next(check.look() for check in checks if check.name == "restore of files")


def states(found: dict[str, Finding], state: State) -> set[str]:
    return {name for name, finding in found.items() if finding.state is state}


class TestExamine:
    """The list of checks, whatever they do."""

    def test_a_check_that_hangs_is_left_behind(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It counts as a fault, and the next one is made."""
        never, join = Event(), Thread.join

        def briefly(thread: Thread, timeout: float | None = None) -> None:
            join(thread, 0.05 if thread.name == "check-hung" else timeout)

        checks = [
            Check(name="hung", look=lambda: ok(str(never.wait()))),
            Check(name="next", look=lambda: ok("fine")),
        ]
        monkeypatch.setattr(Thread, "join", briefly)
        found = list(examine(checks))
        assert [(finding.name, finding.state) for finding in found] == [("hung", State.FAULT), ("next", State.OK)]

    def test_a_check_that_is_broken_is_a_fault_of_its_own(self) -> None:
        """Its text, which could hold anything, is not shown, and the next one is made."""

        def broken() -> Finding:
            raise ValueError("postgres://user:hunter2@host")

        found = list(examine([Check(name="broken", look=broken), Check(name="next", look=lambda: ok("fine"))]))
        assert found[0].state is State.FAULT
        assert "hunter2" not in str(found)
        assert found[1].state is State.OK

    def test_an_error_of_the_engine_becomes_a_fault_with_its_hint(self) -> None:
        """What to do about it is what the hint says."""

        def busy() -> Finding:
            raise BusyError("somebody is there", hint="wait")

        assert next(examine([Check(name="busy", look=busy)])) == Finding(
            name="busy", state=State.FAULT, what="somebody is there", mend="wait"
        )


class TestWell:
    """A portal that is well."""

    def test_no_fault_is_found(self, portal: Portal) -> None:
        """With a backup made and everything in order nothing is at fault, and every check had something to say."""
        succeeded(portal.job().backup_full())
        found = look(portal.environ() | {KEY: "k"})
        assert states(found, State.FAULT) == set()
        assert states(found, State.WARNING) <= {"separate disk", "server's disk", "space"}
        assert all(finding.what for finding in found.values())

    def test_nothing_is_changed(self, portal: Portal) -> None:
        """Not even the repository is made."""
        look(portal.environ())
        assert not portal.archives.exists()

    def test_every_finding_that_is_not_well_says_what_to_do(self, portal: Portal) -> None:
        """Only what was not looked at has nothing to be mended by itself."""
        found = look(portal.environ(DD_DATABASE_PORT="1", PORTAL_AUDIT_DIR="/nowhere"))
        others = [finding for finding in found.values() if finding.state is not State.OK]
        assert all(finding.mend or "not looked at" in finding.what for finding in others)


class TestDatabase:
    """What can be wrong with the database."""

    def test_a_server_that_is_away_is_told_once(self, portal: Portal) -> None:
        """One fault, and the checks that need the server are warnings that say so."""
        found = look(portal.environ(DD_DATABASE_PORT="1"))
        assert "server" in states(found, State.FAULT)
        assert all("not looked at" in found[name].what for name in ("client programs", "reading", "clock"))

    def test_a_wrong_password_is_said(self, portal: Portal, postgres: EmbeddedPostgres) -> None:
        """The hint names the places it can come from, and nothing shows the password."""
        postgres.create_role("reader_doctor", password="right")
        environ = portal.environ(DD_DATABASE_USER="reader_doctor", DD_DATABASE_PASSWORD="wr0ng")
        found = look(environ)
        assert "refused the password" in found["server"].what
        assert "wr0ng" not in str(found)

    def test_a_user_who_may_not_read_is_told_the_statement(self, portal: Portal, postgres: EmbeddedPostgres) -> None:
        """The statement that an administrator has to run is what to do; a restore would be in place."""
        postgres.create_role("blind_doctor", password="blind")
        found = look(portal.environ(DD_DATABASE_USER="blind_doctor", DD_DATABASE_PASSWORD="blind"))
        assert "GRANT pg_read_all_data TO" in found["reading"].mend
        assert "ALTER ROLE" in found["restoring"].mend

    def test_programs_newer_than_the_server_are_a_warning(self, portal: Portal, tmp_path: Path) -> None:
        """They work, and it is said what comes of it; without psql, restores in place may not."""
        for program in ("pg_dump", "pg_restore"):
            (tmp_path / program).write_text(f"#!/bin/sh\necho '{program} (PostgreSQL) 19beta2'\n")
            (tmp_path / program).chmod(0o755)
        found = look(portal.environ(BACKUP_PG_BIN_DIR=str(tmp_path)))["client programs"]
        assert found.state is State.WARNING
        assert "psql not found" in found.what
        (tmp_path / "psql").symlink_to(tmp_path / "pg_restore")
        found = look(portal.environ(BACKUP_PG_BIN_DIR=str(tmp_path)))["client programs"]
        assert found.state is State.WARNING
        assert "their dumps are read by pg_restore 19 or newer only" in found.mend

    def test_programs_older_than_the_server_are_a_fault(self, portal: Portal, tmp_path: Path) -> None:
        """Such as those of a release beside the beta version of the next one."""
        (tmp_path / "pg_dump").write_text("#!/bin/sh\necho 'pg_dump (PostgreSQL) 12.1'\n")
        (tmp_path / "pg_dump").chmod(0o755)
        found = look(portal.environ(BACKUP_PG_BIN_DIR=str(tmp_path)))["client programs"]
        assert found.state is State.FAULT
        assert found.what.startswith("pg_dump 12 cannot dump a version ")

    def test_missing_programs_are_a_fault(self, portal: Portal, tmp_path: Path) -> None:
        """The package to install is what to do."""
        found = look(portal.environ(BACKUP_PG_BIN_DIR=str(tmp_path)))
        assert "apt-get install postgresql-client-17" in found["client programs"].mend

    @pytest.mark.parametrize(
        ("apart", "state"),
        [(timedelta(seconds=30), State.WARNING), (timedelta(hours=-2), State.FAULT)],
        ids=["a little", "much"],
    )
    def test_clocks_that_differ_are_told(self, portal: Portal, apart: timedelta, state: State) -> None:
        """A little is a warning, much is a fault."""
        assert look(portal.environ(), lambda: datetime.now(UTC) + apart)["clock"].state is state


class TestFiles:
    """What can be wrong with the repository and the files."""

    def test_what_others_may_read_is_told(self, portal: Portal, tmp_path: Path) -> None:
        """An open repository, an open archive and an open secret are warnings with the command that closes them."""
        archive = succeeded(portal.job().backup_full())
        secret = tmp_path / "password"
        secret.write_text(portal.password)
        secret.chmod(0o644)
        environ = portal.environ(DD_DATABASE_PASSWORD_FILE=str(secret))
        del environ["DD_DATABASE_PASSWORD"]
        archive.chmod(0o644)
        assert "chmod 600" in look(environ)["permissions"].mend
        portal.archives.chmod(0o755)
        found = look(environ)
        assert "chmod 700" in found["permissions"].mend
        assert "DD_DATABASE_PASSWORD_FILE" in found["secret files"].what

    def test_a_password_file_that_libpq_ignores_is_a_fault(self, portal: Portal) -> None:
        """Libpq passes over a ~/.pgpass that others may read."""
        (portal.directory / ".pgpass").write_text("*:*:*:*:x\n")
        (portal.directory / ".pgpass").chmod(0o644)
        assert look(portal.environ())["secret files"].state is State.FAULT

    def test_where_files_are_restored_to(self, reachable: Path) -> None:
        """Whoever may read uploads and audit log, and not write there, is told that this is no restore."""

        def look_at_them() -> None:
            assert restore_of_files().state is State.OK
            Path("uploads").chmod(0o555)
            Path("log").chmod(0o555)
            found = restore_of_files()
            assert found.state is State.FAULT
            assert all(f"may not write to {Path(place).absolute()}" in found.what for place in ("uploads", "log"))
            assert "/log, where a restore puts the audit log" in found.what
            assert f"user {this_user()} can back up" in found.what
            Path("uploads").chmod(0o755)
            Path("log").chmod(0o755)

        (reachable / "uploads").mkdir()
        (reachable / "log" / "audit").mkdir(parents=True)
        done_by_nobody(reachable, look_at_them)

    @pytest.mark.parametrize(
        ("foreign", "said"),
        [("uploads", "the directory itself"), ("uploads/a/b", "a/b"), ("uploads/a", ""), ("log", "")],
        ids=["the top", "one with files", "one with none", "beside the audit log"],
    )
    def test_directories_of_others(self, reachable: Path, foreign: str, said: str) -> None:
        """Another user's directory is told where a restore would have to change it, also where all may write to it."""
        if os.geteuid() != 0:
            pytest.skip("only root can give files to others")

        def look_at_them() -> None:
            found = restore_of_files()
            assert (found.state is State.FAULT) == bool(said), found
            assert not said or f"may not change {said}: another user owns it" in found.what
            assert not said or "Run the restore as the portal's user" in found.mend

        (reachable / "uploads" / "a" / "b").mkdir(parents=True)
        (reachable / "uploads" / "a" / "b" / "scan.sarif").touch()
        (reachable / "log" / "audit").mkdir(parents=True)
        (reachable / foreign).chmod(0o777)
        done_by_nobody(reachable, look_at_them, but=reachable / foreign)

    def test_missing_uploads_are_a_fault(self, portal: Portal, tmp_path: Path) -> None:
        """Mostly a volume that is not mounted."""
        assert look(portal.environ(PORTAL_UPLOAD_DIR=str(tmp_path / "gone")))["uploads"].state is State.FAULT

    def test_left_out_components_are_no_fault(self, portal: Portal) -> None:
        """Who leaves media and audit log out on purpose is not bothered."""
        found = look(portal.environ(PORTAL_UPLOAD_DIR="", PORTAL_AUDIT_DIR=""))
        assert found["uploads"].state is found["audit log"].state is State.OK

    def test_the_key_is_never_shown(self, portal: Portal) -> None:
        """Only whether it is set."""
        assert "s3cr3t" not in str(look(portal.environ() | {KEY: "s3cr3t"}))
        assert look(portal.environ())["credential key"].state is State.WARNING

    def test_an_empty_file_is_no_key(self, portal: Portal, tmp_path: Path) -> None:
        """Compose names a file that is empty until somebody puts the key into it."""
        (tmp_path / "key").write_text("")
        assert look(portal.environ() | {f"{KEY}_FILE": str(tmp_path / "key")})["credential key"].state is State.WARNING
        (tmp_path / "key").write_text("k")
        assert look(portal.environ() | {f"{KEY}_FILE": str(tmp_path / "key")})["credential key"].state is State.OK

    def test_remains_of_a_crash_are_told(self, portal: Portal) -> None:
        """A hidden file that nobody holds is left from a crash."""
        portal.archives.mkdir()
        (portal.archives / ".full_20240115_120000_abc123.tar.gz.partial").touch()
        assert "full_20240115_120000_abc123" in look(portal.environ())["remains"].what

    def test_an_archive_from_the_future_is_told(self, portal: Portal) -> None:
        """It would count as the newest for years."""
        portal.archives.mkdir()
        (portal.archives / "full_20990115_120000_abc123.tar.gz").touch()
        assert look(portal.environ())["dates"].state is State.WARNING

    def test_who_holds_the_lock_is_told(self, tmp_path: Path) -> None:
        """By process and program; nobody is not listed."""
        repository = Repository(tmp_path)
        assert holders([tmp_path / LOCK_NAME]) == {}
        with repository.exclusive():
            assert f"process {os.getpid()} " in holders([tmp_path / LOCK_NAME])[tmp_path / LOCK_NAME][0]


class TestOperatorCommands:
    """The commands that run around backups and restores, and in drills."""

    def test_one_that_cannot_be_started_is_a_fault(self, portal: Portal, tmp_path: Path) -> None:
        """The setting and the program are named; nothing is looked at where none is set."""
        (tmp_path / "not executable").write_text("")
        found = look(
            portal.environ(BACKUP_BEFORE_COMMAND="true", BACKUP_DRILL_COMMAND=f"'{tmp_path}/not executable' --check")
        )["commands"]
        assert found.state is State.FAULT
        assert f"BACKUP_DRILL_COMMAND: {tmp_path}/not executable" in found.what
        assert "BEFORE" not in found.what
        assert look(portal.environ(BACKUP_AFTER_COMMAND="sh -c 'exit 1'"))["commands"].state is State.OK
        assert "commands" not in look(portal.environ())


class TestCommand:
    """`backup.sh doctor`, as a person starts it."""

    def test_it_ends_with_0_where_no_fault_is(self, portal: Portal) -> None:
        """One JSON object, a line for each finding, and a verdict."""
        ended = run("doctor", environ=portal.environ() | {KEY: "k"})
        assert ended.returncode == 0, ended.stderr
        assert answer(ended)["counts"]["fault"] == 0
        assert "backups and restores have what they need" in ended.stderr

    def test_it_ends_with_1_where_a_fault_is(self, portal: Portal) -> None:
        """The way to fix it stands under the line."""
        ended = run("doctor", environ=portal.environ(DD_DATABASE_PORT="1"))
        assert ended.returncode == 1
        assert "FAULT    server" in ended.stderr
        assert "fix: is it running" in ended.stderr
        assert portal.password not in ended.stdout + ended.stderr

    def test_settings_that_make_no_sense_are_a_fault(self, portal: Portal) -> None:
        """Nothing else is looked at then, and the variable is named."""
        ended = run("doctor", environ=portal.environ(DD_DATABASE_PORT="many"))
        assert ended.returncode == 1
        assert [finding["name"] for finding in json.loads(ended.stdout)["findings"]] == ["settings"]
        assert "DD_DATABASE_PORT" in ended.stderr
