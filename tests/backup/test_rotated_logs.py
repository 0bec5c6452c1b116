"""Audit logs that are rotated while they are backed up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from portal.ops.backup.job import BackupJob
from portal.ops.chains.reader import open_tree
from portal.ops.model import Component
from tests.support.portal import Portal, succeeded

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from portal.ops.runtime.progress import Step

LARGE = 3 << 20
"""So large that each log is read by itself, and reading the first is reported before the second is opened."""


def log_of(letter: str) -> bytes:
    return letter.encode() * LARGE


def numbered(logs: Path) -> None:
    """As logrotate does it by default."""
    (logs / "audit.jsonl.1").rename(logs / "audit.jsonl.2")
    (logs / "audit.jsonl").rename(logs / "audit.jsonl.1")
    (logs / "audit.jsonl").write_bytes(log_of("d"))


def dated(logs: Path) -> None:
    """As with `dateext`: the name of the old one comes before that of the new one."""
    (logs / "audit.jsonl.1").rename(logs / "audit-20261128.jsonl")
    (logs / "audit.jsonl").rename(logs / "audit-20261129.jsonl")
    (logs / "audit.jsonl").write_bytes(log_of("d"))


def removed(logs: Path) -> None:
    """The last one goes for good, and the others get new names."""
    (logs / "audit.jsonl.1").unlink()
    (logs / "audit.jsonl").rename(logs / "audit.jsonl.1.old")


def backed_up(portal: Portal, logs: Path, rotate: Callable[[Path], None]) -> dict[str, bytes]:
    """What a backup has of the logs if they are rotated while the first one is read."""
    rotated = False

    def progress(step: Step) -> None:
        nonlocal rotated
        if step.phase == Component.AUDIT_LOGS and not rotated:
            rotated = True
            rotate(logs)

    archive = succeeded(BackupJob(portal.config(audit_log_path=logs, jobs=1), progress=progress).backup_full())
    assert rotated
    tree = open_tree(archive)
    try:
        return {
            member.path: b"".join(map(bytes, content))
            for member, content in tree.contents(1, below="audit")
            if member.type == "file"
        }
    finally:
        tree.close()


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """Two logs."""
    directory = tmp_path / "logs"
    directory.mkdir()
    (directory / "audit.jsonl").write_bytes(log_of("a"))
    (directory / "audit.jsonl.1").write_bytes(log_of("b"))
    return directory


@pytest.mark.parametrize("rotate", [numbered, dated])
def test_no_log_is_missed(portal: Portal, logs: Path, rotate: Callable[[Path], None]) -> None:
    """Each log that was there when the backup began is in the archive, under its old name or its new one."""
    found = backed_up(portal, logs, rotate)
    assert {content[:1] for content in found.values()} >= {b"a", b"b"}
    assert {len(content) for content in found.values()} == {LARGE}


def test_a_log_that_goes(portal: Portal, logs: Path) -> None:
    """A log that is removed cannot be read; one that has another name now is in the archive."""
    found = backed_up(portal, logs, removed)
    assert log_of("a") in found.values()
