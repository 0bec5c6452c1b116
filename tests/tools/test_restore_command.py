"""The command `restore.sh` as an operator, a script and a hurried person use it."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
from contextlib import closing, suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from demo.compare import table_contents, tree_contents
from portal.ops.archive.open import open_archive
from portal.ops.repository.access_log import AccessLog, Action
from portal.ops.repository.repository import Repository
from portal.ops.restore.job import RestoreConfig, RestoreJob
from tests.support import commands
from tests.support.commands import ROOT
from tests.support.portal import Portal, succeeded

if TYPE_CHECKING:
    from demo.postgres import EmbeddedPostgres


def run(portal: Portal, *arguments: str, code: int = 0, cwd: Path = ROOT, **more: str) -> dict[str, Any]:
    """Run the command without a terminal; its result."""
    ended = commands.run(*arguments, environ=portal.environ(**more), script=ROOT / "scripts" / "restore.sh", cwd=cwd)
    assert ended.returncode == code, ended.stderr
    assert portal.password not in ended.stdout + ended.stderr
    return commands.answer(ended)


@pytest.fixture
def changed(portal: Portal, postgres: EmbeddedPostgres) -> Portal:
    """A portal that was backed up, and has lost rows and files since."""
    succeeded(portal.job().backup_full())
    with postgres.connect(portal.database.name) as connection:
        connection.execute("TRUNCATE note")
    for path in list(portal.uploads.rglob("*.*"))[:2]:
        path.unlink()
    return portal


def state(portal: Portal, postgres: EmbeddedPostgres) -> object:
    """Every row and every file."""
    with postgres.connect(portal.database.name) as connection:
        return table_contents(connection), tree_contents(portal.uploads)


def test_a_restore_and_its_rollback(changed: Portal, postgres: EmbeddedPostgres) -> None:
    """With --force everything is restored, the result says how to take it back, and that takes it back."""
    before = state(changed, postgres)
    result = run(changed, "latest", "--force")
    assert result["success"]
    assert result["components_restored"] == ["database", "media", "audit_logs"]
    assert state(changed, postgres) != before
    assert result["rollback"].split() == ["./tools/restore.sh", "--rollback", result["restore_id"]]
    assert run(changed, "--rollback", "--force")["restore_id"] == result["restore_id"]
    assert state(changed, postgres) == before


def test_without_a_terminal_nobody_says_yes(changed: Portal, postgres: EmbeddedPostgres) -> None:
    """Without --force and without a terminal nothing is changed, with exit code 3."""
    before = state(changed, postgres)
    assert not run(changed, "latest", code=3)["success"]
    assert state(changed, postgres) == before


@pytest.mark.parametrize(("answer", "code"), [("yes", 0), ("y", 3), ("", 3)])
def test_the_answer_decides(changed: Portal, answer: str, code: int) -> None:
    """On a terminal the plan is shown and only the word yes goes on."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [ROOT / "tools" / "restore.sh", "latest", "--media-only"],
        env=changed.environ(TERM="xterm"),
        stdin=child,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    os.write(parent, f"{answer}\n".encode())
    _, said = process.communicate(timeout=120)
    os.close(parent)
    os.close(child)
    assert process.returncode == code, said.decode()
    assert b"Restore uploads from full_" in said


def test_a_dry_run_changes_nothing(changed: Portal, postgres: EmbeddedPostgres) -> None:
    """A dry run tells the plan, and neither the server nor a directory is another afterwards."""
    before = state(changed, postgres), tree_contents(changed.archives)
    result = run(changed, "latest", "--dry-run")
    assert result["dry_run"]
    assert result["components_restored"] == []
    assert any(re.search(r"\d+ rows", line) for line in result["plan"])
    assert (state(changed, postgres), tree_contents(changed.archives)) == before


def test_one_file(changed: Portal) -> None:
    """With --path only what fits is restored."""
    lost = run(changed, "latest", "--dry-run", "--media-only")["plan"]
    assert any("2 files would be new" in line for line in lost)
    result = run(changed, "latest", "--path", "*.sarif", "--path", "*.json", "--force")
    assert result["components_restored"] == ["media"]
    assert result["facts"]["media"]["new"] == 2


@pytest.mark.parametrize(("how", "phase"), [("--dry-run", "verify"), ("--force", "uploads")])
def test_it_shows_how_far_it_is(portal: Portal, how: str, phase: str) -> None:
    """On a terminal the look beforehand and the stage each have a bar and a rate."""
    (portal.uploads / "large").write_bytes(os.urandom(1 << 20) * 200)
    succeeded(portal.job().backup_media())
    parent, child = pty.openpty()
    command = [str(ROOT / "tools" / "restore.sh"), "latest", "--media-only", how]
    environ = portal.environ(TERM="xterm")
    process = subprocess.Popen(command, env=environ, stdin=child, stdout=subprocess.PIPE, stderr=child)
    os.close(child)
    seen = bytearray()
    with suppress(OSError):  # nobody has the other end any more
        while piece := os.read(parent, 1 << 16):
            seen += piece
    process.communicate(timeout=120)
    os.close(parent)
    assert process.returncode == 0, seen.decode()
    screen = seen.decode()
    shown = re.findall(rf"{phase} +[0-9.]+ MB +[0-9.]+ MB/s  \[#*\.*\] +(\d+) %(?:  [0-9:]+ (?:s|min) left)?", screen)
    assert shown, screen
    assert sorted(map(int, shown)) == [*map(int, shown)]


@pytest.fixture
def renamed(changed: Portal) -> Path:
    """The archive and its sidecar, moved away and renamed as in the guide's example."""
    archive = next(changed.archives.glob("*.tar.gz"))
    archive.with_name(archive.name + ".sha256").unlink()
    place = Path(shutil.move(archive, changed.directory / "backup.tar.gz"))
    digest = sha256(place.read_bytes()).hexdigest()
    place.with_name("backup.tar.gz.sha256").write_text(f"{digest}  backup.tar.gz\n")
    return place


def test_a_file_of_any_name(changed: Portal, renamed: Path, postgres: EmbeddedPostgres) -> None:
    """What was restored is called as its manifest does, in result, plan, list and log; from where is a whole path."""
    with closing(open_archive(renamed)) as archive:
        name = archive.manifest().backup_id
    before = state(changed, postgres)
    planned = run(changed, "backup.tar.gz", "--dry-run", cwd=renamed.parent)
    result = run(changed, "backup.tar.gz", "--force", cwd=renamed.parent)
    for one in (planned, result):
        assert (one["backup_id"], one["backup_file"]) == (name, str(renamed))
        assert f"from {name}, made " in one["plan"][0]
    (listed,) = run(changed, "--rollback", "--list")["restores"]
    assert listed["backup_id"] == name
    record = json.loads((changed.archives / ".restores" / f"{result['restore_id']}.json").read_text())
    assert (record["backup_id"], record["backup_file"]) == (name, str(renamed))
    entries = AccessLog(Repository(changed.archives)).entries()
    assert [one.subject for one in entries if one.action is Action.RESTORE] == [name]
    valid, found = RestoreJob(RestoreConfig(local_path=changed.archives)).validate_backup(renamed)
    assert (valid, found["backup_id"]) == (True, name)
    run(changed, "--rollback", "--force")
    assert state(changed, postgres) == before


def test_an_older_record(changed: Portal, postgres: EmbeddedPostgres) -> None:
    """A restore whose record has the name of a file and a relative path is listed and rolled back as any other."""
    before = state(changed, postgres)
    restore_id = run(changed, "latest", "--force")["restore_id"]
    path = changed.archives / ".restores" / f"{restore_id}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"backup_id": "backup", "backup_file": "backup.tar.gz"}))
    (listed,) = run(changed, "--rollback", "--list")["restores"]
    assert listed["backup_id"] == "backup"
    back = run(changed, "--rollback", "--force")
    assert (back["backup_id"], back["backup_file"]) == ("backup", "backup.tar.gz")
    assert state(changed, postgres) == before


def test_no_such_archive(portal: Portal) -> None:
    """An archive that is not there is wrong usage, and the hint says where it was looked for."""
    portal.archives.mkdir()
    assert "archive not found: 'full_2001'" in run(portal, "full_2001", "--force", code=2)["error"]


def test_a_damaged_archive_is_refused(changed: Portal, postgres: EmbeddedPostgres) -> None:
    """A flipped byte in the archive means exit code 4, and nothing is changed."""
    before = state(changed, postgres)
    archive = next(changed.archives.glob("*.tar.gz"))
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    assert not run(changed, "latest", "--force", code=4)["success"]
    assert state(changed, postgres) == before


def test_nothing_to_take_back(portal: Portal) -> None:
    """Without a restore there is nothing to take back, and it is said so."""
    portal.archives.mkdir()
    assert "there is no restore" in run(portal, "--rollback", "--force", code=1)["error"]
    assert run(portal, "--rollback", "--list")["restores"] == []


def test_what_is_kept_is_shown_and_forgotten(changed: Portal) -> None:
    """Both lists show a restore and what is kept of it; --discard asks, and with --force removes it."""
    restore_id = run(changed, "latest", "--force")["restore_id"]
    (listed,) = run(changed, "--rollback", "--list")["restores"]
    assert (listed["restore_id"], listed["can_be_taken_back"]) == (restore_id, True)
    command = [str(ROOT / "tools" / "backup.sh"), "list"]
    ended = subprocess.run(command, env=changed.environ(), capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(ended.stdout)["restores"] == [listed]
    assert restore_id in ended.stderr
    assert f"keeps {listed['kept'][0]}" in ended.stderr
    assert listed["targets"][0].startswith("database ")
    assert all(f"\n    {target}\n" in ended.stderr for target in listed["targets"])
    assert f"can be rolled back, at least until {listed['kept_until']}" in ended.stderr
    run(changed, "--rollback", "--discard", restore_id, code=3)
    run(changed, "--rollback", "--forget", restore_id, "--force")  # as releases before call it
    assert run(changed, "--rollback", "--list")["restores"] == []


def test_all_that_is_in_the_way_is_shown(changed: Portal) -> None:
    """A restore that cannot be started tells the plan with everything in the way, and is not asked about."""
    result = run(changed, "latest", "--database-only", "--target-database", "absent", code=1)
    assert "has no database absent" in result["error"]
    assert [line for line in result["plan"] if line.startswith("In the way: ")]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--list",),
        ("--discard", "restore_1"),
        ("--rollback", "--dry-run"),
        ("latest", "--database-only", "--media-only"),
        ("latest", "--mode", "sideways"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    """Options that exclude one another end with 2, before anything is looked at."""
    command = [str(ROOT / "tools" / "restore.sh"), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL)
    assert (ended.returncode, ended.stdout) == (2, "")
