"""The runbook is followed, command by command, as it stands in the documentation, on an empty server and disk."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tests.test_backup_job import Portal, portal, succeeded
from tools.demo.compare import table_contents, tree_contents
from tools.demo.postgres import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["portal"]

ROOT = Path(__file__).parents[1]
RUNBOOK = ROOT / "docs" / "disaster-recovery.md"
PASSWORD = "phoenix"


def commands() -> Iterator[str]:
    """The lines of the runbook that are to be typed."""
    for block in re.findall(r"```bash\n(.*?)```", RUNBOOK.read_text("utf-8"), re.DOTALL):
        yield from block.strip().splitlines()


def environment(server: EmbeddedPostgres, new: Path) -> dict[str, str]:
    """What an operator has set on the new machine."""
    address = server.superuser()
    return {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "BACKUP_LOCAL_PATH": str(new / "archives"),
        "BACKUP_PG_BIN_DIR": str(server.bin_dir),
        "DD_DATABASE_HOST": address.host,
        "DD_DATABASE_PORT": str(address.port),
        "DD_DATABASE_PASSWORD": PASSWORD,
        "PORTAL_UPLOAD_DIR": str(new / "uploads"),
        "PORTAL_AUDIT_DIR": str(new / "audit"),
    }


def follow(command: str, variables: dict[str, str]) -> None:
    ended = subprocess.run(
        ["/usr/bin/env", "bash", "-euc", command], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, f"{command}\n{ended.stderr}"


def test_the_runbook_brings_the_portal_back(portal: Portal, postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    """On a server that knows only the user, the runbook's commands bring back every row and every file."""
    succeeded(portal.job().backup_full())
    new = tmp_path / "new machine"
    shutil.copytree(portal.archives, new / "archives")
    with postgres.connect(portal.database.name) as connection:
        rows = table_contents(connection)
    with EmbeddedPostgres(unsafe_speed=True) as server:
        server.create_role("defectdojo", password=PASSWORD, options="CREATEDB")
        variables = environment(server, new)
        for command in commands():
            if "--rollback" in command:
                break
            follow(command, variables)
        with server.connect("defectdojo") as connection:
            assert table_contents(connection) == rows
        assert tree_contents(new / "uploads") == tree_contents(portal.uploads)
        for command in commands():
            if "--rollback" in command:
                follow(command, variables)


def test_the_steps_of_the_guide(portal: Portal, tmp_path: Path) -> None:
    """Database first, then media, as in the guide; where there is no database, the message has the command for it."""
    succeeded(portal.job().backup_full())
    new = tmp_path / "new machine"
    shutil.copytree(portal.archives, new / "archives")
    archive = next((new / "archives").glob("*.tar.gz"))
    with EmbeddedPostgres(unsafe_speed=True) as server:
        variables = environment(server, new)
        refused = restore(variables, archive, "--database-only", "--force")
        assert refused.returncode == 1
        assert "refused the password of user defectdojo" in refused.stderr
        where = f"--host=127.0.0.1 --port={server.port}"
        assert f"createuser {where} --pwprompt defectdojo" in refused.stderr
        assert f"createdb {where} --owner=defectdojo defectdojo" in refused.stderr
        assert "--create-database" in refused.stderr
        server.create_role("defectdojo", password=PASSWORD)
        refused = restore(variables, archive, "--database-only", "--force")
        assert refused.returncode == 1
        assert f"createdb {where} --owner=defectdojo defectdojo" in refused.stderr
        server.create_database("defectdojo", owner="defectdojo")
        for option in ("--database-only", "--media-only"):
            ended = restore(variables, archive, option, "--force")
            assert ended.returncode == 0, ended.stderr
    assert tree_contents(new / "uploads") == tree_contents(portal.uploads)


def restore(variables: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The guide's command."""
    command = ["./scripts/restore.sh", *arguments]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )


def test_the_runbook_says_something() -> None:
    """There are commands in the runbook, and each is one of ours."""
    found = list(commands())
    assert len(found) >= 8
    assert all(command.startswith(("tools/backup.sh ", "tools/restore.sh ")) for command in found)
