"""A scratch server that hangs keeps no restore waiting for ever, and the index of the WAL neither."""

from __future__ import annotations

import fcntl
from typing import TYPE_CHECKING

import pytest

from portal.ops.errors import BusyError, RestoreError
from portal.ops.pitr import archive_index, scratch_server
from portal.ops.pitr.scratch_server import Progress

if TYPE_CHECKING:
    from pathlib import Path


def test_a_server_that_goes_on_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it takes: each step begins the wait anew."""
    monkeypatch.setattr(scratch_server, "_STALLED_SECONDS", -1.0)
    progress = Progress()
    for step in range(3):
        progress.note((step,), "replays")
    with pytest.raises(RestoreError, match="hangs: it replays"):
        progress.note((2,), "replays")


def test_the_index_of_the_wal_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has it is named in the end."""
    monkeypatch.setattr(archive_index, "_LOCK_SECONDS", 0.1)
    with (tmp_path / archive_index.LOCK).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(BusyError, match="is locked by process"), archive_index.index_lock(tmp_path):
            pytest.fail("two at once")
