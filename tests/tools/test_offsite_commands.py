"""The commands for off-site copies, run to their end."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.support.commands import BACKUP, RESTORE, done, run
from tests.support.offsite import offsite_at, small_archives
from tests.support.terminals import record

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.offsite import Offsite


@pytest.fixture
def world(tmp_path: Path) -> Offsite:
    """A machine with uploads, and a disk for copies."""
    (tmp_path / "disk").mkdir()
    offsite = offsite_at(tmp_path, f"file://{tmp_path}/disk")
    small_archives(offsite.uploads, kilobytes=50)
    return offsite


def test_a_backup_without_a_worker_is_copied(world: Offsite) -> None:
    """The command copies after the backup; on another machine, list, verify, extract and restore need no repository."""
    result, said = done("media", environ=world.environ)
    assert [one["backup_id"] for one in result["offsite"]] == [result["backup_id"]]
    assert f"copied: {result['backup_id']}" in said
    other = world.elsewhere().environ
    listed, _ = done("offsite", "list", environ=other)
    assert [copy["backup_id"] for copy in listed["copies"]] == [result["backup_id"]]
    assert done("verify", "offsite:latest", "--level", "checksum", environ=other)[0]["success"]
    target = world.directory / "scan"
    done("extract", "offsite:latest", "media/tenant-1/scan-1.sarif", "--output", str(target), environ=other)
    assert target.read_bytes() == (world.uploads.root / "tenant-1/scan-1.sarif").read_bytes()
    restored = target.with_name("restored")
    arguments = ("offsite:latest", "--media-only", "--media-dir", str(restored), "--force")
    done(*arguments, environ=other, script=RESTORE)
    assert (restored / "tenant-0/scan-2.sarif").read_bytes() == (
        world.uploads.root / "tenant-0/scan-2.sarif"
    ).read_bytes()


def test_a_failed_copy_fails_no_backup(world: Offsite) -> None:
    """A destination that is away is a warning of the backup, and a failure of the copy that is asked for alone."""
    environ = {**world.environ, "BACKUP_OFFSITE_URLS": f"file://{world.directory}/unmounted"}
    result, said = done("media", environ=environ)
    assert result["success"]
    assert any("off-site copies were not made" in warning for warning in result["warnings"])
    assert "unmounted is not there" in said
    assert done("offsite", "copy", environ=environ, code=1)[0]["success"] is False


def test_a_destination_that_is_away_hides_no_copies_elsewhere(world: Offsite) -> None:
    """The copies that can be reached are listed, with the fault and its exit code; without any there is the fault."""
    made, _ = done("media", environ=world.environ)
    away = f"file://{world.directory}/unmounted"
    both = {**world.environ, "BACKUP_OFFSITE_URLS": f"{away} {world.environ['BACKUP_OFFSITE_URLS']}"}
    listed, said = done("offsite", "list", environ=both, code=1)
    assert [copy["backup_id"] for copy in listed["copies"]] == [made["backup_id"]]
    assert listed["success"] is False
    assert "unmounted is not there" in listed["errors"][0]
    assert "unmounted is not there" in said
    only = {**world.environ, "BACKUP_OFFSITE_URLS": away}
    assert "unmounted is not there" in done("offsite", "list", environ=only, code=1)[0]["error"]


def test_no_secret_is_shown(world: Offsite, tmp_path: Path) -> None:
    """The secret key is in its file alone: in no output, no object, no log and no file of the repository."""
    made, said = done("keygen", "--output", str(tmp_path / "new"), environ=world.environ)
    secret = (tmp_path / "new").read_text().split()[-1]
    assert secret.startswith("AGE-SECRET-KEY-1")
    assert made["recipient"].startswith("age1")
    assert secret not in json.dumps(made) + said
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600
    done("media", environ=world.environ)
    key = (tmp_path / "identity").read_text().split()[-1]
    places = [tmp_path / "disk", world.uploads.archives]
    files = [path for place in places for path in place.rglob("*") if path.is_file()]
    assert files
    assert not any(key.encode() in path.read_bytes() for path in files)
    assert not any(b"scan-1" in path.read_bytes() for path in (tmp_path / "disk").rglob("*") if path.is_file())


def test_damage_is_exit_code_4(world: Offsite) -> None:
    """A damaged copy ends a verification and a fetch with 4."""
    done("media", environ=world.environ)
    segment = next((world.directory / "disk").rglob("*.age"))
    segment.write_bytes(segment.read_bytes()[:-1])
    _, said = done("offsite", "verify", environ=world.environ, code=4)
    assert "00000.age" in said
    assert run("offsite", "fetch", "latest", environ=world.elsewhere().environ).returncode == 4


def test_a_prune_shows_its_plan(world: Offsite) -> None:
    """The plan has the reasons; nothing goes in a dry run."""
    done("media", environ=world.environ)
    result, said = done("offsite", "prune", "--dry-run", environ=world.environ)
    assert result["removed"] == []
    assert "it is the newest media backup" in said


def test_the_list_never_cuts_the_name_of_a_copy(world: Offsite) -> None:
    """A person copies it from a narrow terminal into the next command."""
    made = done("media", environ=world.environ)[0]["backup_id"]
    session = record([BACKUP, "offsite", "list"], world.environ, columns=80)
    assert made in session.text
    assert max(map(len, session.screen)) <= 80


def test_without_a_destination(world: Offsite) -> None:
    """Whoever asks for a copy and has named no place for it is told how to."""
    environ = {**world.environ, "BACKUP_OFFSITE_URLS": ""}
    assert "BACKUP_OFFSITE_URLS" in done("offsite", "copy", environ=environ, code=2)[0]["error"]
