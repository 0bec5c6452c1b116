"""The quick start: a portal made up for the purpose, backed up, checked, restored somewhere else, and compared.

Everything is real: a PostgreSQL server, files, the commands that an operator uses. All of it lives in a temporary
directory and is gone afterwards.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from portal.ops.errors import RestoreError
from portal.ops.logs import human_bytes
from tools.demo.compare import file_digest, table_contents, tree_contents
from tools.demo.portal import fill
from tools.demo.portal_files import write_audit_log, write_uploads
from tools.demo.postgres import EmbeddedPostgres
from tools.terminal import run_command

_TOOLS: Final = Path(__file__).resolve().parents[1]
_FINDINGS: Final = 20_000
_TENANTS: Final = 4
_FILES_PER_TENANT: Final = 75
_AUDIT_ENTRIES: Final = 1_000
_DATABASE: Final = "defectdojo"
_RESTORED: Final = "defectdojo_restored"
_USER: Final = "defectdojo"
_PASSWORD: Final = "quick-start"  # noqa: S105  (of a server that lives for seconds)


def main() -> int:
    """Run the quick start; the exit code."""
    _tell("Kekkai Portal backup: the quick start")
    with tempfile.TemporaryDirectory(prefix="kekkai-quickstart-") as directory, EmbeddedPostgres() as server:
        show = _Show(server=server, home=Path(directory))
        show.make_portal()
        seconds = [show.back_up(), show.verify()]
        result, restoring = show.restore()
        show.compare(result)
    _tell(
        "\nEverything that was restored equals the original.\n"
        f"Enter to prompt: backup {seconds[0]:.1f} s, verification {seconds[1]:.1f} s, restore {restoring:.1f} s.\n"
        "\n"
        "Next: set BACKUP_LOCAL_PATH, DD_DATABASE_* and PORTAL_UPLOAD_DIR for your own portal (docs/settings.md),\n"
        "then run tools/backup.sh full."
    )
    return 0


@dataclass(frozen=True, kw_only=True)
class _Show:
    """The steps, on a server and in a directory."""

    server: EmbeddedPostgres
    home: Path

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
        self.server.create_role(_USER, password=_PASSWORD, options="CREATEDB")
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

    def back_up(self) -> float:
        _step(2, "Back it up")
        return self._run("backup.sh", "full")[1]

    def verify(self) -> float:
        _step(3, "Is the archive whole? Every file, and the dump to its end")
        return self._run("backup.sh", "verify", "latest", "--level", "dump")[1]

    def restore(self) -> tuple[dict[str, Any], float]:
        _step(4, "Restore it somewhere else")
        options = ("--create-database", "--target-database", _RESTORED, "--media-dir", str(self.restored_uploads))
        return self._run("restore.sh", "latest", "--force", *options)

    def compare(self, result: dict[str, Any]) -> None:
        _step(5, "Compare what was restored with the original")
        with self.server.connect(_DATABASE) as live, self.server.connect(_RESTORED) as restored:
            ours, theirs = table_contents(live), table_contents(restored)
        rows = sum(count for count, _ in ours.values())
        _expect(f"database   {len(ours)} tables, {rows:,} rows: every row", ours == theirs)
        before, after = tree_contents(self.uploads), tree_contents(self.restored_uploads)
        _expect(f"uploads    {len(before)} names: every byte, mode and time", before == after)
        beside = Path(result["facts"]["audit_logs"]["path"])
        _expect("audit log  every byte", file_digest(self.audit_log) == file_digest(beside))

    def _run(self, command: str, *arguments: str) -> tuple[dict[str, Any], float]:
        """Run a command as an operator does, show what it says, and give back its result and seconds."""
        shown = " ".join((f"tools/{command}", *arguments)).replace(str(self.home), "<demo>")
        _tell(f"   $ {shown}")
        started = time.monotonic()
        process = subprocess.Popen(
            [_TOOLS / command, *arguments], env=self._environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stderr is not None
        assert process.stdout is not None
        for line in process.stderr:
            _tell(f"   {line.decode(errors='replace').rstrip()}".replace(str(self.home), "<demo>").rstrip())
        output = process.stdout.read()
        if process.wait() != 0:
            raise RestoreError(
                f"{shown} ended with exit code {process.returncode}",
                hint="What it said stands above; please report it.",
            )
        return json.loads(output), time.monotonic() - started

    def _environment(self) -> dict[str, str]:
        address = self.server.superuser(_DATABASE)
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(("DD_", "BACKUP_", "PORTAL_"))},
            "DD_DATABASE_HOST": address.host,
            "DD_DATABASE_PORT": str(address.port),
            "DD_DATABASE_NAME": _DATABASE,
            "DD_DATABASE_USER": _USER,
            "DD_DATABASE_PASSWORD": _PASSWORD,
            "BACKUP_LOCAL_PATH": str(self.home / "backups"),
            "BACKUP_PG_BIN_DIR": str(self.server.bin_dir),
            "BACKUP_LOG_FORMAT": "console",
            "PORTAL_UPLOAD_DIR": str(self.uploads),
            "PORTAL_AUDIT_DIR": str(self.audit_log),
        }


def _step(number: int, what: str) -> None:
    _tell(f"\n{number}  {what}")


def _tell(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _expect(what: str, equal: bool) -> None:
    if not equal:
        raise RestoreError(f"{what} should be equal, and is not", hint="This is a fault of ours; please report it.")
    _tell(f"   {what:<62} equal")


if __name__ == "__main__":
    run_command(main)
