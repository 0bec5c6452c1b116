"""Deliveries by themselves: the lock on the file of a task."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

import pytest

from portal.ops.errors import BusyError
from tests.support.repositories import as_nobody
from worker.delivery import is_abandoned, is_begun, sole_delivery

if TYPE_CHECKING:
    from pathlib import Path


def test_the_lock_is_free_where_the_file_cannot_be_removed(tmp_path: Path) -> None:
    """A repository that cannot be written any more keeps no later delivery waiting for a process that is done."""
    file = tmp_path / ".deliveries" / "one"
    with pytest.raises(OSError, match="one"), sole_delivery(tmp_path, "one", 1):
        descriptor = os.open(file, os.O_RDWR)
        file.unlink()
        file.mkdir()
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)


def test_a_delivery_waits_only_so_long(tmp_path: Path) -> None:
    """Who works on the task is named with what to do, and can go on."""
    said = rf"(?s)task one is being worked on by process {os.getpid()} .*hint: End that process"
    with sole_delivery(tmp_path, "one", 1) as begun:
        with pytest.raises(BusyError, match=said) as busy, sole_delivery(tmp_path, "one", 0.1):
            pytest.fail("two at once")
        assert busy.value.retryable
        assert begun == 1


def test_a_task_whose_file_may_not_be_looked_at_is_neither_begun_nor_abandoned(tmp_path: Path) -> None:
    """As in a repository of another user: nothing is known of it, and nothing fails."""
    with sole_delivery(tmp_path, "one", 1):
        assert is_begun(tmp_path, "one")
        (tmp_path / ".deliveries").chmod(0)
        with as_nobody():
            assert not is_begun(tmp_path, "one")
            assert not is_abandoned(tmp_path, "one")
        (tmp_path / ".deliveries").chmod(0o700)
