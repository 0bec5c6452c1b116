"""Archives whose files have times that are in no calendar, as after a copy by a machine with a broken clock."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import pytest

from portal.ops.model import file_time
from portal.ops.repository.catalogue import Catalogue
from portal.ops.repository.repository import Repository
from portal.ops.retention.policy import RetentionPolicy
from portal.ops.retention.prune import PruneJob
from tests.support.incrementals import Uploads

if TYPE_CHECKING:
    from collections.abc import Iterator

IN_NO_CALENDAR: Final = (-300_000_000_000, 300_000_000_000)


@pytest.fixture
def uploads() -> Iterator[Uploads]:
    """Uploads with one backup, on a file system that stores times of any year."""
    with TemporaryDirectory(dir="/dev/shm") as place:
        found = Uploads(directory=Path(place))
        found.write("a")
        found.base()
        yield found


@pytest.mark.parametrize("seconds", IN_NO_CALENDAR)
def test_archives_with_such_times_are_listed_followed_and_pruned(uploads: Uploads, seconds: int) -> None:
    """They have a moment far away; what goes by the id of the archive goes on as always."""
    repository = Repository(uploads.archives)
    (archive,) = repository.archives()
    os.utime(archive.path, (seconds, seconds))
    if os.stat(archive.path).st_mtime != seconds:
        pytest.skip("the memory file system of this kernel stores no times beyond the year 9999")
    (entry,) = Catalogue(repository).entries()
    assert (entry.moment, entry.modified) == (archive.moment, file_time(seconds))
    assert [one.name for one in repository.archives()] == [archive.name]
    uploads.write("b")
    assert uploads.restored(uploads.incremental().backup_id) == uploads.tree()
    result = PruneJob(repository, RetentionPolicy()).run()
    assert (result.success, result.removed) == (True, ())


def test_a_time_in_the_calendar_is_itself() -> None:
    """Only times that no date has are moved, to where a day more or less still is one."""
    assert file_time(0) == datetime(1970, 1, 1, tzinfo=UTC)
    assert file_time(1796007116.5) == datetime.fromtimestamp(1796007116.5, UTC)
    for seconds in IN_NO_CALENDAR:
        assert file_time(seconds) + timedelta(days=1) > file_time(seconds) - timedelta(days=1)
