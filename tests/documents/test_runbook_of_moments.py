"""The runbook for an accident is followed, block by block, as it stands in the documentation."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.support.wal_servers import WalPortal, a_moment, wal_portal

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[2]
RUNBOOK: Final = ROOT / "docs" / "disaster-recovery.md"


def commands() -> list[str]:
    """The lines of the section that are to be typed."""
    blocks = re.findall(r"```bash moment\n(.*?)```", RUNBOOK.read_text("utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.strip().splitlines()]


@pytest.fixture
def portal(tmp_path: Path) -> Iterator[WalPortal]:
    """A portal with uploads, whose WAL is received."""
    with wal_portal(tmp_path) as made:
        made.postgres.create_database("portal")
        with made.postgres.connect("portal") as connection:
            connection.execute("CREATE TABLE finding (number int PRIMARY KEY)")
            connection.execute("INSERT INTO finding SELECT generate_series(1, 500)")
        yield made


def rows(portal: WalPortal) -> int:
    with portal.postgres.connect("portal") as connection:
        (count,) = connection.execute("SELECT count(*) FROM finding").fetchone() or (0,)
    return int(count)


def test_the_accident_is_undone(portal: WalPortal, tmp_path: Path) -> None:
    """The timeline names the table, the restore brings the rows back, the rollback takes them away again."""
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    (uploads / "scan.sarif").write_text("{}")
    address = portal.postgres.superuser("portal")
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "BACKUP_LOCAL_PATH": str(portal.repository.path),
        "BACKUP_PG_BIN_DIR": str(portal.bin_dir),
        "BACKUP_WAL": "on",
        "PORTAL_UPLOAD_DIR": str(uploads),
        "DD_DATABASE_URL": f"postgres://{address.user}:{address.password}@{address.host}:{address.port}/portal",
    }
    with portal.receiving(), tempfile.TemporaryDirectory(prefix="kekkai-new-", dir="/tmp") as reachable:
        os.chmod(reachable, 0o755)  # noqa: S103  (the user of the scratch server passes through it)
        environ["NEW_DATA_DIR"] = f"{reachable}/data"
        assert portal.job().backup_base().success
        follow("tools/backup.sh media", environ)
        moment = a_moment()
        with portal.postgres.connect("portal") as connection:
            connection.execute("DELETE FROM finding WHERE number > 3")
        portal.wait_until_covered()
        (timeline, dry_run, restore, rollback, data_dir) = commands()
        assert "public.finding" in follow(timeline, environ)
        environ["MOMENT"] = moment.isoformat()
        follow(dry_run, environ)
        assert rows(portal) == 3
        follow(restore, environ)
        assert rows(portal) == 500
        follow(rollback, environ)
        assert rows(portal) == 3
        assert "pg_ctl" in follow(data_dir, environ)


def follow(command: str, environ: dict[str, str]) -> str:
    """Run a command as it stands; what it printed."""
    ended = subprocess.run(
        ["/usr/bin/env", "bash", "-euc", command], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, f"{command}\n{ended.stderr}"
    return ended.stdout + ended.stderr
