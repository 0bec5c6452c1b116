"""Locks on a repository: who waits for whom, and for how long."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from portal.ops.errors import BusyError, RepositoryError
from portal.ops.repository.locks import is_locked_alone
from portal.ops.repository.repository import LOCK_NAME, Repository
from tests.support.repositories import as_nobody
from tests.support.waiting import LONG_SECONDS

if TYPE_CHECKING:
    from pathlib import Path


class TestLocks:
    """Shared for backups and verifications, exclusive for what removes."""

    def test_shared_locks_do_not_exclude_each_other(self, repository: Repository) -> None:
        """Any number of readers and writers of archives can work at once."""
        with repository.shared(), repository.shared():
            assert not is_locked_alone(repository.path / LOCK_NAME)

    def test_an_exclusive_lock_waits_for_shared_ones(self, repository: Repository) -> None:
        """Nothing is removed while somebody works: who wants to is busy."""
        with (
            repository.shared(),
            pytest.raises(BusyError, match=r"is locked by process \d+ \("),
            repository.exclusive(),
        ):
            pass

    def test_a_shared_lock_waits_for_an_exclusive_one(self, repository: Repository) -> None:
        """While somebody removes, nobody else works: after the time limit they are busy, which a retry can help."""
        started = time.monotonic()
        with repository.exclusive(), pytest.raises(BusyError) as caught, repository.shared():
            pass
        assert time.monotonic() - started >= 0.5
        assert caught.value.retryable
        assert "BACKUP_LOCK_TIMEOUT" in caught.value.hint

    def test_a_lock_is_free_when_its_holder_has_ended(self, tmp_path: Path) -> None:
        """Who waits goes on as soon as the lock is free."""
        repository = Repository(tmp_path, lock_timeout=10 * LONG_SECONDS)
        holding = ExitStack()
        holding.enter_context(repository.exclusive())
        threading.Timer(0.2, holding.close).start()
        started = time.monotonic()
        with repository.shared():
            assert time.monotonic() - started < LONG_SECONDS

    def test_a_lock_of_another_user_is_an_error_with_a_way_out(self, public_directory: Path) -> None:
        """A lock file that root made in the portal's repository is refused with the command that helps."""
        public_directory.chmod(0o777)
        with Repository(public_directory).shared():
            pass
        with as_nobody(), pytest.raises(RepositoryError) as caught, Repository(public_directory).shared():
            pass
        assert str(caught.value).startswith(f"cannot open {public_directory}/.lock: permission denied")
        assert f"chown -R kekkai:kekkai {public_directory}" in caught.value.hint
