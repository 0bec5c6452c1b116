"""Cron and systemd start nothing but backups: a backup that its own process made prunes by the policy afterwards."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.model import BackupType
from portal.ops.repository.pins import Pins
from portal.ops.repository.repository import Repository
from tests.support.commands import ROOT, done
from tests.support.kept import put_archive

if TYPE_CHECKING:
    from demo.postgres import EmbeddedPostgres
    from tests.support.portal import Portal

SCRIPT = ROOT / "scripts" / "backup.sh"
SHORT = {"BACKUP_RETENTION_DAYS": "7", "BACKUP_RETENTION_COUNT": "1"}


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """A portal of uploads alone, with three old archives of them that the policy does not keep."""
    (tmp_path / "uploads").mkdir()
    (tmp_path / "uploads" / "scan.sarif").write_text('{"runs": []}')
    (tmp_path / "archives").mkdir()
    for age in (20, 30, 40):
        put(tmp_path / "archives", BackupType.MEDIA, age)
    return {
        "PATH": os.environ["PATH"],
        "BACKUP_LOCAL_PATH": str(tmp_path / "archives"),
        "PORTAL_UPLOAD_DIR": str(tmp_path / "uploads"),
        "BACKUP_JOBS": "1",
        **SHORT,
    }


def put(archives: Path, kind: BackupType, age: float) -> str:
    return put_archive(archives, kind, datetime.now(UTC) - timedelta(days=age))


def back_up(environ: dict[str, str], *arguments: str) -> tuple[dict[str, Any], str]:
    """Run a backup that succeeds; its result, and what a person reads."""
    result, said = done(*arguments, environ=environ, script=SCRIPT)
    assert result["success"]
    return result, said


def names(environ: dict[str, str]) -> set[str]:
    """The archives that there are."""
    return {path.name.removesuffix(".tar.gz") for path in Path(environ["BACKUP_LOCAL_PATH"]).glob("*.tar.gz")}


def actions(environ: dict[str, str]) -> list[str]:
    """What is written down in the access log."""
    log = Path(environ["BACKUP_LOCAL_PATH"], ".access.jsonl").read_text().splitlines()
    return [json.loads(line)["action"] for line in log]


def test_what_the_policy_does_not_keep_goes(environ: dict[str, str]) -> None:
    """A backup of the uploads removes the old ones, and says which to a person and to a program."""
    old = names(environ)
    result, said = back_up(environ, "media")
    assert names(environ) == {result["backup_id"]}
    assert set(result["pruned"]) == old
    assert "pruned: 3 old archives, " in said
    assert all(name in said for name in old)
    assert not list(Path(environ["BACKUP_LOCAL_PATH"]).glob(f"{min(old)}*"))


@pytest.mark.parametrize("kind", [BackupType.FULL, BackupType.DATABASE])
def test_the_lines_of_the_guide(portal: Portal, postgres: EmbeddedPostgres, kind: BackupType) -> None:
    """Both lines of the guide's crontab clean up, by the guide's variables and nothing else."""
    portal.archives.mkdir()
    doomed, kept = put(portal.archives, kind, 40), put(portal.archives, kind, 20)
    environ = portal.environ(BACKUP_RETENTION_DAYS="30", BACKUP_RETENTION_COUNT="1")
    result, said = back_up(environ, kind.value)
    assert result["pruned"] == [doomed]
    assert re.search(f"^pruned: 1 old archive, .*: {doomed}$", said, re.MULTILINE)
    assert names(environ) == {result["backup_id"], kept}


def test_what_is_pinned_stays(environ: dict[str, str]) -> None:
    """A pin counts, as for any prune."""
    pinned = min(names(environ))
    Pins(Repository(Path(environ["BACKUP_LOCAL_PATH"]))).pin(pinned, reason="", who="ada", moment=datetime.now(UTC))
    result, _ = back_up(environ, "media")
    assert names(environ) == {result["backup_id"], pinned}


def test_a_type_has_its_own_rule(environ: dict[str, str]) -> None:
    """Though the general rule keeps all of it; and the newest one stays anyway."""
    general = {"BACKUP_RETENTION_DAYS": "300", "BACKUP_RETENTION_COUNT": "10"}
    result, _ = back_up({**environ, **general, "BACKUP_RETENTION_RULES": "database: count 5"}, "media")
    assert result["pruned"] == []
    result, said = back_up({**environ, **general, "BACKUP_RETENTION_RULES": "media: count 2"}, "media")
    assert len(result["pruned"]) == 3
    assert "pruned: 3 old archives" in said


def test_nothing_to_remove_is_not_spoken_of(environ: dict[str, str]) -> None:
    """Where everything is kept nothing is said, and nothing written down but the backup."""
    result, said = back_up(environ | {"BACKUP_RETENTION_DAYS": "365"}, "media")
    assert result["pruned"] == []
    assert "pruned" not in said
    assert actions(environ) == ["backup"]


def test_a_prune_that_is_switched_off(environ: dict[str, str]) -> None:
    """What switches off beat's prune switches off this one."""
    old = names(environ)
    result, _ = back_up(environ | {"BACKUP_SCHEDULE_PRUNE": "off"}, "media")
    assert result["pruned"] == []
    assert old < names(environ)


def test_a_backup_that_failed_removes_nothing(environ: dict[str, str]) -> None:
    """Who has no new archive keeps the old ones."""
    old = names(environ)
    shutil.rmtree(environ["PORTAL_UPLOAD_DIR"])
    result, _ = done("media", environ=environ, script=SCRIPT, code=1)
    assert result["pruned"] == []
    assert names(environ) == old


def test_another_prune_is_a_warning(environ: dict[str, str]) -> None:
    """While another prune holds the repository the backup succeeds, and the old archives stay with a warning."""
    old = names(environ)
    directory = os.open(environ["BACKUP_LOCAL_PATH"], os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)
    try:
        result, said = back_up(environ, "media")
    finally:
        os.close(directory)
    assert result["pruned"] == []
    assert old < names(environ)
    assert "warning: old archives were not removed: another prune" in said
    assert any("another prune" in warning for warning in result["warnings"])
    assert actions(environ) == ["backup"]  # a refusal would be told to people as a failure


def test_a_policy_without_sense_is_a_warning(environ: dict[str, str]) -> None:
    """A policy that would keep nothing removes nothing, and costs nobody the backup."""
    old = names(environ)
    nothing = {"BACKUP_RETENTION_DAYS": "0", "BACKUP_RETENTION_COUNT": "0"}
    result, said = back_up(environ | nothing, "media")
    assert old < names(environ)
    assert result["pruned"] == []
    assert "warning: old archives were not removed: " in said


def test_an_archive_that_somebody_reads_stays(environ: dict[str, str]) -> None:
    """What is held at the moment is passed over, and goes with the next backup."""
    held = min(names(environ))
    with Path(environ["BACKUP_LOCAL_PATH"], f"{held}.tar.gz").open("rb") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        result, _ = back_up(environ, "media")
        assert names(environ) == {result["backup_id"], held}
    result, _ = back_up(environ, "media")
    assert held in result["pruned"]
