"""`backup.sh schedule`: what is next, what is due, and how it ended last."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from beat.due import Slot
from portal.ops.repository.access_log import AccessLog, Action, Outcome
from portal.ops.repository.repository import Repository
from portal.ops.settings.load import load_settings
from tools.commands.schedule import schedule_of
from worker.operations import BACKUP_FULL

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 11, 22, 9, 10, tzinfo=UTC)


def schedules(directory: Path, **environ: str) -> dict[str, dict[str, Any]]:
    settings = load_settings({"BACKUP_LOCAL_PATH": str(directory), **environ}, lambda path: "")
    return {line["kind"]: line for line in schedule_of(settings, NOW)}


def test_it_says_what_is_next_and_what_is_due(tmp_path: Path) -> None:
    """A full backup of the night is there; the database's of this hour is not."""
    full = Slot(operation=BACKUP_FULL, moment=datetime(2026, 11, 22, 2, tzinfo=UTC))
    (tmp_path / f"{full.backup_id}.tar.gz").touch()
    found = schedules(tmp_path)
    assert found["full"]["next"] == datetime(2026, 11, 23, 2, tzinfo=UTC)
    assert found["full"]["due_since"] is None
    assert found["database"]["due_since"] == datetime(2026, 11, 22, 9, tzinfo=UTC)
    assert found["drill"]["expression"] == "0 5 * * 0"


def test_it_says_how_each_ended_last_by_the_access_log(tmp_path: Path) -> None:
    """Also where that was not well."""
    log = AccessLog(Repository(tmp_path))
    subjects = ["full_20261121_020000_abcdef", "full_20261122_020000_abcdef", "media_20261122_020000_abcdef"]
    for number, subject in enumerate(subjects):
        outcome = Outcome.FAILED if number == 1 else Outcome.DONE
        moment = NOW + timedelta(minutes=number)
        log.append(Action.BACKUP, subject, outcome, who="beat", host="here", moment=moment, error="the disk is full")
    found = schedules(tmp_path)
    assert found["full"]["last"] == {
        "moment": NOW + timedelta(minutes=1),
        "outcome": "failed",
        "subject": "full_20261122_020000_abcdef",
        "who": "beat",
        "error": "the disk is full",
    }
    assert found["database"]["last"] is None


def test_the_command_prints_a_line_for_each_and_one_json_object(tmp_path: Path) -> None:
    """What is off is said to be off; an empty repository is no error."""
    environ = {"BACKUP_LOCAL_PATH": str(tmp_path / "none"), "BACKUP_TIMEZONE": "Europe/Berlin"}
    done = subprocess.run(
        [sys.executable, "-I", "-m", "tools.backup", "schedule"],
        env={**environ, "BACKUP_SCHEDULE_DRILL": "off"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert (found["success"], found["time_zone"]) == (True, "Europe/Berlin")
    kinds = [line["kind"] for line in found["schedules"]]
    assert {"full", "database", "verify", "prune", "drill", "offsite"} <= set(kinds)
    lines = dict(zip(kinds, done.stderr.splitlines(), strict=False))
    assert lines["full"].startswith("full            due since ")
    assert lines["prune"].startswith("prune           next ")
    assert lines["drill"].split() == ["drill", "off", "never", "done"]
    assert lines["offsite"].split() == ["offsite", "off", "never", "done"]
