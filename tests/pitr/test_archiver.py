"""A server that archives its own WAL, too, and cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from portal.ops.model import SUFFIX
from portal.ops.pitr import archiver_watch
from tests.support.wal_servers import wal_portal

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_a_base_backup_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the server's `archive_command` fails, it fails with an error that says so, and leaves no archive."""
    monkeypatch.setattr(archiver_watch, "_PATIENCE_SECONDS", 0.5)
    with wal_portal(tmp_path, archive_mode="on", archive_command="false") as portal, portal.receiving():
        result = portal.job().backup_base()
        assert not result.success
        assert result.error is not None
        assert "archive_command has not succeeded" in result.error
        assert list(portal.repository.path.glob(f"*{SUFFIX}")) == []


def test_a_server_that_archives_in_time_is_backed_up(tmp_path: Path) -> None:
    """Where it succeeds, the base backup is made."""
    with wal_portal(tmp_path, archive_mode="on", archive_command="true") as portal, portal.receiving():
        assert portal.job().backup_base().success
