"""Rejected messages are counted by reason, whatever is in the file, by one process at a time."""

from __future__ import annotations

import fcntl
import json
import os
import stat
from typing import TYPE_CHECKING

import pytest

from portal.ops.repository import rejected
from portal.ops.repository.rejected import NAME, count_rejected, rejected_counts
from tests.support.repositories import NOBODY

if TYPE_CHECKING:
    from pathlib import Path


def test_each_reason_is_counted(tmp_path: Path) -> None:
    """From none; the file is for its owner alone."""
    assert rejected_counts(tmp_path) == {}
    for reason in ("unsigned", "expired", "unsigned"):
        count_rejected(tmp_path, reason)
    assert rejected_counts(tmp_path) == {"unsigned": 2, "expired": 1}
    assert stat.S_IMODE((tmp_path / NAME).stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"a": "x"}', b'{"a": null}', b'{"a": 1e999}', b"[" * 60_000])
def test_a_file_that_makes_no_sense_counts_as_none(tmp_path: Path, content: bytes) -> None:
    """The next message replaces it, and nothing of it is left behind."""
    (tmp_path / NAME).write_bytes(content)
    assert rejected_counts(tmp_path) == {}
    count_rejected(tmp_path, "unsigned")
    assert json.loads((tmp_path / NAME).read_bytes()) == {"unsigned": 1}


def test_a_file_that_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is waited for, for a while: a reader has no counts then, a writer an error with the holder's name."""
    monkeypatch.setattr(rejected, "_LOCK_SECONDS", 0.0)
    count_rejected(tmp_path, "unsigned")
    before = len(os.listdir("/proc/self/fd"))
    with (tmp_path / NAME).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert rejected_counts(tmp_path) == {"unsigned": 1}
        with pytest.raises(OSError, match=f"locked by process {os.getpid()}"):
            count_rejected(tmp_path, "unsigned")
        fcntl.flock(file, fcntl.LOCK_EX)
        assert rejected_counts(tmp_path) == {}
    assert rejected_counts(tmp_path) == {"unsigned": 1}
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    """Another file is not written to."""
    (tmp_path / "target").write_text("kept")
    (tmp_path / NAME).symlink_to("target")
    with pytest.raises(OSError, match="symbolic link"):
        count_rejected(tmp_path, "unsigned")
    assert (tmp_path / "target").read_text() == "kept"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_root_counts_is_the_owners(tmp_path: Path) -> None:
    """A worker that is not root's can go on counting."""
    os.chown(tmp_path, NOBODY, NOBODY)
    count_rejected(tmp_path, "unsigned")
    assert (tmp_path / NAME).stat().st_uid == NOBODY
