"""The quick start: an invented portal, and everything that protects it.

Everything is real: a PostgreSQL server, a Redis server, workers, files, and the operator's commands. All of it is in a
temporary directory and removed afterwards; with ``--keep`` it stays until it is interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from demo.compare import file_digest, table_contents, tree_contents
from demo.object_store import ADMINISTRATOR, EmbeddedObjectStore
from demo.portal import fill
from demo.portal_files import write_audit_log, write_uploads
from demo.postgres import EmbeddedPostgres
from demo.service import Service, own_environment
from portal.ops.errors import OpsError, RestoreError
from portal.ops.settings.load import SETTINGS
from portal.ops.units import human_bytes
from tools.terminal import StoppedError, run_command
from tools.terminal.wrap import wrapped

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_TOOLS: Final = Path(__file__).resolve().parents[1] / "tools"
_FINDINGS: Final = 20_000
_TENANTS: Final = 4
_FILES_PER_TENANT: Final = 75
_AUDIT_ENTRIES: Final = 1_000
_DATABASE: Final = "defectdojo"
_RESTORED: Final = "defectdojo_restored"
_RECOVERED: Final = "defectdojo_recovered"
_BUCKET: Final = "kekkai-copies"
_USER: Final = "defectdojo"
_PASSWORD: Final = "quick-start"  # noqa: S105  (of a server that lives for seconds)
_UPLOAD_SECONDS: Final = 60.0


def main() -> int:
    """Run the quick start; return the exit code."""
    arguments = _parser().parse_args()
    _tell("Kekkai Portal backup: the quick start")
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kekkai-quickstart-")))
        server = stack.enter_context(EmbeddedPostgres(settings={"max_slot_wal_keep_size": "1GB"}))
        service = stack.enter_context(Service(environ=_environment(server, home), directory=home))
        show = _Show(server=server, service=service, home=home, is_kept=arguments.keep)
        show.make_portal()
        show.start_service()
        seconds = [show.back_up(), show.verify()]
        result, restoring = show.restore()
        show.compare(result)
        protected = show.upload()
        service.start_wal()
        show.drill()
        recovering = show.undo_accident()
        show.status()
        show.recover_from_offsite(stack.enter_context(EmbeddedObjectStore()))
        _tell(
            "\nEverything that was restored equals the original.\n"
            f"Enter to prompt: backup {seconds[0]:.1f} s, verification {seconds[1]:.1f} s, restore {restoring:.1f} s; "
            f"an upload was safe after {protected:.1f} s;\n"
            f"the second before the accident was back after {recovering:.1f} s.\n"
        )
        if arguments.keep:
            show.keep()
    _tell(
        "Next: set BACKUP_LOCAL_PATH, DD_DATABASE_* and PORTAL_UPLOAD_DIR for your own portal (docs/settings.md),\n"
        "then run tools/backup.sh full."
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="quickstart.sh", description="Show all of it on a portal that is made up, in a temporary directory."
    )
    parser.add_argument("--keep", action="store_true", help="leave it up to try things, until Ctrl-C")
    return parser


@dataclass(frozen=True, kw_only=True)
class _Show:
    """The steps of the quick start, with a server and a directory."""

    server: EmbeddedPostgres
    service: Service
    home: Path
    is_kept: bool

    @property
    def uploads(self) -> Path:
        return self.home / "uploads"

    @property
    def audit_log(self) -> Path:
        return self.home / "audit" / "audit.jsonl"

    @property
    def restored_uploads(self) -> Path:
        return self.home / "elsewhere"

    def make_portal(self) -> None:
        _step(1, "A portal to protect")
        self.server.create_role(_USER, password=_PASSWORD, options="CREATEDB REPLICATION")
        self.server.create_database(_DATABASE, owner=_USER)
        with self.server.connect(_DATABASE) as connection:
            connection.execute(f"SET ROLE {_USER}")
            fill(connection, findings=_FINDINGS)
            connection.commit()
            tables = table_contents(connection)
            size = connection.execute("SELECT pg_database_size(current_database())").fetchone()
        assert size is not None
        write_uploads(self.uploads, tenants=_TENANTS, files_per_tenant=_FILES_PER_TENANT)
        self.audit_log.parent.mkdir()
        write_audit_log(self.audit_log, entries=_AUDIT_ENTRIES)
        rows = sum(rows for rows, _ in tables.values())
        files = [path for path in self.uploads.rglob("*") if path.is_file()]
        _tell(f"   a database on a real PostgreSQL: {rows:,} rows in {len(tables)} tables, {human_bytes(size[0])}")
        _tell(f"   {len(files)} uploads of {_TENANTS} tenants, {human_bytes(sum(one.stat().st_size for one in files))}")
        _tell(f"   an audit log of {_AUDIT_ENTRIES:,} entries, each with the hash of the one before")

    def start_service(self) -> None:
        _step(2, "The service: a real Redis, and a worker that takes tasks off its queues")
        seconds = self.service.start_worker()
        if self.is_kept:  # from the start, so that it shows all tasks
            self.service.start_flower()
        _tell(f"   queues for backups, restores, maintenance and off-site copies, ready after {seconds:.1f} s")

    def back_up(self) -> float:
        _step(3, "Back it up: the command hands the work to the worker, and waits")
        return self._run("backup.sh", "full")[1]

    def verify(self) -> float:
        _step(4, "Verify the archive: every file, and the dump to its end")
        return self._run("backup.sh", "verify", "latest", "--level", "dump")[1]

    def restore(self) -> tuple[dict[str, Any], float]:
        _step(5, "Restore it to another place")
        options = ("--create-database", "--target-database", _RESTORED, "--media-dir", str(self.restored_uploads))
        return self._run("restore.sh", "latest", "--force", *options)

    def compare(self, result: dict[str, Any]) -> None:
        _step(6, "Compare what was restored with the original")
        with self.server.connect(_DATABASE) as live, self.server.connect(_RESTORED) as restored:
            ours, theirs = table_contents(live), table_contents(restored)
        rows = sum(count for count, _ in ours.values())
        _expect(f"database   {len(ours)} tables, {rows:,} rows: every row", ours == theirs)
        before, after = tree_contents(self.uploads), tree_contents(self.restored_uploads)
        _expect(f"uploads    {len(before)} names: every byte, mode and time", before == after)
        beside = Path(result["facts"]["audit_logs"]["path"])
        _expect("audit log  every byte", file_digest(self.audit_log) == file_digest(beside))
        beside.unlink()

    def upload(self) -> float:
        """Upload a file and wait until an archive contains it; return the seconds in between."""
        _step(7, "Somebody uploads a file: the watcher backs it up")
        self.service.start_watcher()
        self.service.wait_for_scan()
        upload = self.uploads / "tenant-001" / "just-now.sarif"
        shutil.copy(min(self.uploads.rglob("*.sarif")), upload)
        started = time.monotonic()
        archive = self._archive_with(f"media/tenant-001/{upload.name}", started + _UPLOAD_SECONDS)
        seconds = time.monotonic() - started
        _tell(
            f"   {seconds:.1f} s later it is in {archive.name}, an incremental of {human_bytes(archive.stat().st_size)}"
        )
        return seconds

    def drill(self) -> None:
        _step(8, "A drill: restore for real to a scratch place, compare, remove")
        self._run("backup.sh", "drill")

    def undo_accident(self) -> float:
        """Delete rows, and restore the second before; return the seconds that the restore took."""
        _step(9, "An accident, and the second before it")
        self._wait_until_covered(datetime.now(UTC))
        with self.server.connect(_DATABASE) as connection:
            before = table_contents(connection)
            moment = datetime.now(UTC)
            time.sleep(0.1)
            (rows,) = connection.execute("SELECT count(*) FROM note").fetchone() or (0,)
            connection.execute("DELETE FROM note")
        _tell(f"   somebody deletes {rows:,} notes; the WAL has it, to the second")
        self._wait_until_covered(datetime.now(UTC))
        self._run("backup.sh", "timeline", "--from", "1 minute ago")
        seconds = self._run("restore.sh", "--at", moment.isoformat(), "--database-only", "--force")[1]
        with self.server.connect(_DATABASE) as connection:
            _expect(
                "database   as it was a second before the accident: every row", table_contents(connection) == before
            )
        return seconds

    def _wait_until_covered(self, moment: datetime) -> None:
        """Wait until the recovery window includes a moment."""
        from portal.ops.pitr.look import look
        from portal.ops.repository.repository import Repository

        deadline = time.monotonic() + _UPLOAD_SECONDS
        while (window := look(Repository(self.home / "backups")).window) is None or window.end < moment:
            if time.monotonic() > deadline:
                raise OpsError("the WAL did not reach the moment in time", hint="This is a fault of ours.")
            time.sleep(0.1)

    def status(self) -> None:
        _step(10, "The status")
        self._run("backup.sh", "status")

    def recover_from_offsite(self, store: EmbeddedObjectStore) -> None:
        _step(11, "A copy to an S3 server, encrypted; then the archives are gone, and a new machine restores")
        store.create_bucket(_BUCKET)
        key = self.home / "identity"
        made, _ = self._run("backup.sh", "keygen", "--output", str(key))
        copies = {
            **ADMINISTRATOR.environ(),
            "BACKUP_OFFSITE_URLS": store.url(_BUCKET, "portal"),
            "BACKUP_ENCRYPTION_RECIPIENTS": made["recipient"],
        }
        self._run("backup.sh", "offsite", "copy", "--local", environ=copies)
        gone = self.home / "gone"
        gone.mkdir()
        for path in (self.home / "backups").glob("*.tar.gz*"):
            path.rename(gone / path.name)
        try:
            recovery = {
                **copies,
                "BACKUP_LOCAL_PATH": str(self.home / "new-machine"),
                "BACKUP_ENCRYPTION_IDENTITY_FILE": str(key),
            }
            place = self.home / "recovered"
            options = ("--create-database", "--target-database", _RECOVERED, "--media-dir", str(place))
            self._run("restore.sh", "offsite:latest", "--force", "--local", *options, environ=recovery)
        finally:
            for path in gone.iterdir():
                path.rename(self.home / "backups" / path.name)
        with self.server.connect(_RESTORED) as first, self.server.connect(_RECOVERED) as recovered:
            _expect("database   every row", table_contents(first) == table_contents(recovered))
        _expect(
            "uploads    every byte, mode and time",
            tree_contents(self.restored_uploads) == tree_contents(place),
        )

    def keep(self) -> None:
        """Keep everything running until it is interrupted."""
        self.service.start_beat()
        address = f"http://127.0.0.1:{self.service.flower_port}"
        file = self.home / "environment"
        settings = self.service.client_environ()
        wanted = [name for name in sorted(settings) if name.startswith(("DD_", "BACKUP_", "PORTAL_", "CELERY_"))]
        known = [f"{one.name}{suffix}" for one in SETTINGS for suffix in ("", "_FILE")]
        lines = [f"unset {' '.join(known)}", *(f"export {name}={shlex.quote(settings[name])}" for name in wanted)]
        file.write_text("\n".join(lines) + "\n")
        file.chmod(0o600)
        _tell(
            f"Flower shows the tasks: {address}   user kekkai, password {self.service.flower_password}\n"
            "In another terminal, in this directory:\n"
            f"   source {file}\n"
            "   tools/backup.sh list\n"
            "Ctrl-C ends it all, and removes it."
        )
        try:
            while True:
                time.sleep(3600)
        except StoppedError:
            _tell("")

    def _archive_with(self, member: str, deadline: float) -> Path:
        """The archive with a file, when there is one."""
        from portal.ops.archive.reader import ArchiveReader

        looked: set[Path] = set()
        while time.monotonic() < deadline:
            for path in set((self.home / "backups").glob("media_*.tar.gz")) - looked:
                looked.add(path)
                if ArchiveReader(path).find(member):
                    return path
            time.sleep(0.05)
        raise OpsError(f"nothing was backed up within {_UPLOAD_SECONDS:.0f} s", hint="This is a fault of ours.")

    def _run(
        self, command: str, *arguments: str, environ: Mapping[str, str] | None = None
    ) -> tuple[dict[str, Any], float]:
        """Run a command like an operator, show its output, and return its result and the seconds it took."""
        shown = shlex.join((f"tools/{command}", *arguments)).replace(str(self.home), "demo")
        _tell(f"   $ {shown}")
        started = time.monotonic()
        ours, theirs = pty.openpty()  # like on a person's terminal: without log lines and overdrawn progress
        process = subprocess.Popen(
            [_TOOLS / command, *arguments],
            env={**self.service.client_environ(), "BACKUP_LOG_FORMAT": "auto", "NO_COLOR": "1", **(environ or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=theirs,
        )
        os.close(theirs)
        assert process.stdout is not None
        for line in _shown_lines(ours):
            _tell(f"   {line}".replace(str(self.home), "demo").rstrip())
        output = process.stdout.read()
        if process.wait() != 0:
            raise RestoreError(
                f"{shown} ended with exit code {process.returncode}",
                hint="What it said stands above; please report it.",
            )
        return json.loads(output), time.monotonic() - started


def _shown_lines(terminal: int) -> Iterator[str]:
    """The lines that remain on a terminal, until nothing writes to it any more."""
    with open(terminal, "rb", buffering=0) as file:
        rest = b""
        while True:
            try:
                some = file.read(65536)
            except OSError:  # the last process on the other end has closed it
                return
            *lines, rest = (rest + some).split(b"\n")
            for line in lines:
                yield line.decode(errors="replace").rpartition("\r\x1b[K")[2].rstrip()


def _environment(server: EmbeddedPostgres, home: Path) -> dict[str, str]:
    address = server.superuser(_DATABASE)
    return {
        **own_environment(),
        "DD_DATABASE_HOST": address.host,
        "DD_DATABASE_PORT": str(address.port),
        "DD_DATABASE_NAME": _DATABASE,
        "DD_DATABASE_USER": _USER,
        "DD_DATABASE_PASSWORD": _PASSWORD,
        "BACKUP_LOCAL_PATH": str(home / "backups"),
        "BACKUP_ALLOWED_PATHS": str(home / "elsewhere"),
        "BACKUP_PG_BIN_DIR": str(server.reachable_bin_dir),
        "BACKUP_WAL": "on",
        "PORTAL_UPLOAD_DIR": str(home / "uploads"),
        "PORTAL_AUDIT_DIR": str(home / "audit" / "audit.jsonl"),
        "XDG_STATE_HOME": str(home / "state"),
    }


def _step(number: int, what: str) -> None:
    _tell(f"\n{number}  {what}")


def _tell(text: str) -> None:
    columns = os.get_terminal_size(1).columns if os.isatty(1) else 0
    if columns:
        text = "\n".join(one for line in text.split("\n") for one in wrapped(line, columns))
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _expect(what: str, equal: bool) -> None:
    if not equal:
        raise RestoreError(f"{what} should be equal, and is not", hint="This is a fault of ours; please report it.")
    _tell(f"   {what:<62} equal")


if __name__ == "__main__":
    run_command(main)
