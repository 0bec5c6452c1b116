"""Every example that the help of the commands shows is run as it stands, against a portal, and succeeds."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.portal import Portal, succeeded
from tests.support.restoring import remove

if TYPE_CHECKING:
    from collections.abc import Iterator

    from demo.postgres import EmbeddedPostgres

ROOT = Path(__file__).parents[2]
EXAMPLE = re.compile(r"  ((?:backup|restore)\.sh.*?)(?:  .*)?")
A_RESTORE = "restore_20240115_120000_abc123"
ANOTHER_PLACE = "/tmp/try"


def examples(command: str) -> list[str]:
    """The examples in the help of a command."""
    shown = subprocess.run([ROOT / "tools" / command, "--help"], capture_output=True, text=True, check=True, timeout=60)
    block = shown.stdout.partition("examples:\n")[2].partition("\n\n")[0]
    return [found[1] for line in block.splitlines() if (found := EXAMPLE.fullmatch(line))]


@pytest.fixture
def world(portal: Portal, postgres: EmbeddedPostgres) -> Iterator[Portal]:
    """A portal that has what the examples name: a backup of 2024, an upload, and no database `try`."""
    (portal.uploads / "tenant-a").mkdir()
    (portal.uploads / "tenant-a" / "scan.sarif").write_text('{"runs": []}')
    succeeded(portal.job().backup_full(moment=datetime(2024, 1, 15, 12, tzinfo=UTC), request_id="old"))
    succeeded(portal.job().backup_full())
    yield portal
    with postgres.connect("postgres") as connection:
        connection.autocommit = True
        names = connection.execute("SELECT datname FROM pg_database WHERE datname ~ '^try(_|$)'").fetchall()
        for (name,) in names:
            connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true".encode())
            postgres.drop_database(name)
    remove(portal.database)


def follow(example: str, world: Portal) -> None:
    """Run an example as a person does who says yes."""
    command, *arguments = shlex.split(example)
    place = world.directory / "try"
    parent, child = pty.openpty()
    os.write(parent, b"yes\n")
    try:
        ended = subprocess.run(
            [
                ROOT / "tools" / command,
                *(
                    str(place) if one == ANOTHER_PLACE else newest_restore(world) if one == A_RESTORE else one
                    for one in arguments
                ),
            ],
            env=world.environ(),
            cwd=world.directory,
            stdin=child,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    finally:
        os.close(parent)
        os.close(child)
    assert ended.returncode == 0, f"{example}\n{ended.stderr}"
    assert json.loads(ended.stdout)["success"], example


def newest_restore(world: Portal) -> str:
    """The restore that an example can name."""
    return max((path for path in (world.archives / ".restores").glob("*.json")), key=os.path.getmtime).stem


@pytest.mark.parametrize(("command", "least"), [("backup.sh", 12), ("restore.sh", 9)])
def test_the_examples_work(world: Portal, command: str, least: int) -> None:
    """One after the other, each ends with 0."""
    shown = examples(command)
    assert len(shown) >= least
    # Those need WAL (see tests/pitr) or an off-site copy (see test_offsite_commands).
    found = [example for example in shown if "--at" not in example and "offsite:" not in example]
    for example in found:
        follow(example, world)


def test_a_look_beside_what_is_live(world: Portal, postgres: EmbeddedPostgres) -> None:
    """The examples that restore beside what is live put nothing into the portal, and nothing beside its audit log."""
    beside = [one for one in examples("restore.sh") if "try" in one]
    before = sorted(world.directory.glob("audit*")), sorted(world.uploads.rglob("*"))
    for example in beside:
        follow(example, world)
    assert (sorted(world.directory.glob("audit*")), sorted(world.uploads.rglob("*"))) == before
    assert (world.directory / "try" / "tenant-a" / "scan.sarif").exists()
    with postgres.connect("try") as connection:
        assert connection.execute("SELECT count(*) > 0 FROM note").fetchone() == (True,)
