"""What an incremental backup follows, and the cache that remembers it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from portal.ops.archive.index import MemberType
from portal.ops.backup.increment import SMALL_CHAIN
from portal.ops.backup.run import BackupRun
from portal.ops.errors import DiskFullError
from portal.ops.repository.repository import Repository
from portal.ops.verify.verify import Verifier
from tests.support.incrementals import Uploads, held, succeeded, tree_of_chain

if TYPE_CHECKING:
    from portal.ops.backup.job import BackupResult

ROOT = Path(__file__).parents[2]
FILE, DIRECTORY, HARDLINK = MemberType.FILE, MemberType.DIRECTORY, MemberType.HARDLINK


def test_without_a_base_it_becomes_one(uploads: Uploads) -> None:
    """An ordinary archive with everything."""
    result = uploads.incremental(["tenant-1/scan.json"])
    assert (result.parent, result.unchanged) == (None, False)
    assert tree_of_chain(Path(result.destination_path)) == uploads.tree()


def test_a_new_base_starts_a_new_chain(uploads: Uploads) -> None:
    """Also where it is for a slot that lies before the last incremental."""
    uploads.base()
    uploads.write("one.json")
    uploads.incremental()
    late = uploads.job().backup_media(moment=datetime.now(UTC) - timedelta(hours=7), request_id="late")
    uploads.write("two.json")
    assert uploads.incremental().parent == late.backup_id


def test_a_chain_that_grows_long_is_closed(uploads: Uploads) -> None:
    """After so many incrementals the next backup is a base."""
    uploads.base()
    parents = []
    for number in range(4):
        uploads.write(f"{number}.json")
        parents.append(uploads.incremental(chain_length=2).parent)
    assert [parent is None for parent in parents] == [False, False, True, False]


def test_a_chain_that_grows_large_is_closed(uploads: Uploads) -> None:
    """The incrementals together may be so many percent of their base; small ones are not worth the trouble."""
    uploads.base()
    uploads.write("large.bin", Random(1).randbytes(SMALL_CHAIN + 1))
    assert uploads.incremental().parent is not None
    uploads.write("one.json")
    assert uploads.incremental(chain_percent=100_000).parent is not None
    uploads.write("two.json")
    assert uploads.incremental(chain_percent=100).parent is None


@pytest.mark.parametrize("harm", ["gone", "replaced", "unreadable", "no sidecar", "found damaged"])
def test_a_chain_that_is_damaged_is_closed(uploads: Uploads, harm: str) -> None:
    """What stands in the middle is gone, or another's: the next backup is a base, and an intact one."""
    uploads.base()
    results = []
    for number in range(3):
        uploads.write(f"{number}.json")
        results.append(uploads.incremental())
    middle = Path(results[1].destination_path)
    if harm == "gone":
        middle.unlink()
    elif harm == "replaced":
        shutil.copy(results[0].destination_path, middle)
    elif harm == "found damaged":
        data = middle.read_bytes()
        middle.write_bytes(data[:-1500] + b"\0" + data[-1499:])
        assert not uploads.job().verify(middle).intact
    elif harm == "unreadable":
        middle.write_bytes(b"\0" * 1000)
    else:
        middle.with_name(middle.name + ".sha256").write_text("nonsense")
    uploads.write("new.json")
    result = uploads.incremental()
    assert result.parent is None
    assert tree_of_chain(Path(result.destination_path)) == uploads.tree()


def test_a_finding_that_cannot_be_read_is_no_good_one(uploads: Uploads) -> None:
    """It may be a damage: the next backup is a base, and the one after it follows that."""
    uploads.base()
    uploads.write("one.json")
    middle = uploads.incremental()
    assert uploads.job().verify(middle.destination_path).intact
    (uploads.archives / ".verifications" / f"{middle.backup_id}.json").write_bytes(b"{")
    uploads.write("two.json")
    base = uploads.incremental()
    assert base.parent is None
    uploads.write("three.json")
    assert uploads.incremental().parent == base.backup_id


def test_where_no_finding_can_be_read_there_is_no_end_of_bases(uploads: Uploads) -> None:
    """A new one would be no better, so the backup fails and says what to do."""
    uploads.base()
    (uploads.archives / ".verifications").touch()
    result = uploads.job().backup_media(incremental=True)
    assert not result.success
    assert ".verifications" in (result.error or "")
    assert "hint" in (result.error or "")


def test_two_at_once_never_fork_a_chain(uploads: Uploads) -> None:
    """They wait for one another: every archive has at most one that follows it."""
    uploads.base()

    def work(number: int) -> None:
        for turn in range(4):
            uploads.write(f"{number}-{turn}.json")
            uploads.incremental()

    threads = [threading.Thread(target=work, args=[number]) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    parents = [backup["parent"] for backup in uploads.job().list_backups() if backup["parent"]]
    assert len(parents) == len(set(parents))
    assert tree_of_chain(Path(uploads.incremental().destination_path)) == uploads.tree()


def test_the_same_request_gives_the_same_archive(uploads: Uploads) -> None:
    """Delivered twice, also where something has changed meanwhile."""
    uploads.base()
    uploads.write("new.json")
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    first = succeeded(uploads.job().backup_media(incremental=True, moment=moment, request_id="one"))
    uploads.write("newer.json")
    second = succeeded(uploads.job().backup_media(incremental=True, moment=moment, request_id="one"))
    assert (first.backup_id, first.checksum, first.parent) == (second.backup_id, second.checksum, second.parent)
    assert second.parent is not None


def two_lines(uploads: Uploads) -> tuple[BackupResult, BackupResult]:
    """Two bases with an incremental each, of which the second has what the first line lacks; the second line."""
    uploads.base()
    uploads.write("first.json")
    uploads.incremental()
    base = uploads.base()
    uploads.write("second.json")
    second = uploads.incremental(["second.json"])
    assert second.parent == base.backup_id
    return base, second


@pytest.mark.parametrize("harm", ["base gone", "base ahead", "base unreadable", "head gone", "head unreadable"])
@pytest.mark.parametrize("is_cached", [True, False])
def test_named_paths_are_not_enough_on_another_line(uploads: Uploads, harm: str, is_cached: bool) -> None:
    """Where the last archive is not in the line that is followed, or cannot be read, the whole tree is looked at."""
    base, head = two_lines(uploads)
    if harm.startswith("head"):
        uploads.write("third.json")
        head = uploads.incremental(["third.json"])
    path = Path((base if harm.startswith("base") else head).destination_path)
    if harm.endswith("gone"):
        path.unlink()
    elif harm.endswith("unreadable"):
        path.write_bytes(b"\0" * 1000)
    else:
        os.utime(path, (time.time() + 3600, time.time() + 3600))
    if not is_cached:
        uploads.cache.unlink()
    uploads.write("last.json")
    result = uploads.incremental(["last.json"])
    assert result.parent is not None
    assert tree_of_chain(Path(result.destination_path)) == uploads.tree()


def test_a_line_that_was_taken_up_in_vain_is_still_another(uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backup that changed over to it failed, so the next one looks at the whole tree as well."""
    base, _ = two_lines(uploads)
    Path(base.destination_path).unlink()
    uploads.write("last.json")
    job = uploads.job()

    def refuse(_: BackupRun, expected: int) -> None:
        raise DiskFullError(f"no room for {expected}")

    with monkeypatch.context() as patched:
        patched.setattr(BackupRun, "_check_space", refuse)
        assert not job.backup_media(incremental=True, changed=["last.json"]).success
    result = uploads.incremental(["last.json"])
    assert tree_of_chain(Path(result.destination_path)) == uploads.tree()


def test_an_archive_that_the_cache_could_not_learn_of_is_missed(uploads: Uploads) -> None:
    """Where it is removed afterwards, the next incremental looks at the whole tree."""
    two_lines(uploads)
    uploads.write("third.json")
    with sqlite3.connect(uploads.cache) as connection:
        connection.execute("CREATE TRIGGER full BEFORE INSERT ON entry BEGIN SELECT RAISE(ABORT, 'no room'); END")
    third = uploads.incremental(["third.json"])
    Path(third.destination_path).unlink()
    uploads.write("last.json")
    result = uploads.incremental(["last.json"])
    assert result.parent is not None
    assert tree_of_chain(Path(result.destination_path)) == uploads.tree()


def test_on_one_line_named_paths_are_enough(uploads: Uploads) -> None:
    """What nobody names is not looked at: that is what they are named for."""
    two_lines(uploads)
    uploads.write("unnamed.json")
    uploads.write("last.json")
    assert set(held(uploads.incremental(["last.json"]))) == {"", "last.json"}


# -- the cache ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", ["gone", "empty", "garbage", "a directory", "no place", "of another release"])
def test_a_cache_that_is_of_no_use_changes_nothing(uploads: Uploads, harm: str) -> None:
    """It is made again from the archives, and the archive is the same as with it."""
    uploads.base()
    uploads.write("one.json")
    uploads.incremental()
    if harm == "of another release":
        with sqlite3.connect(uploads.cache) as connection:
            connection.execute("UPDATE head SET version = 99")
    else:
        uploads.cache.unlink()
    if harm == "empty":
        uploads.cache.touch()
    elif harm == "garbage":
        uploads.cache.write_bytes(b"garbage" * 5000)
    elif harm == "a directory":
        uploads.cache.mkdir()
    elif harm == "no place":
        uploads.cache.parent.rmdir()
        uploads.cache.parent.touch()
    uploads.write("two.json")
    assert set(held(uploads.incremental(["two.json"]))) == {"", "two.json"}


def test_a_cache_that_is_behind_is_brought_up_to_date(uploads: Uploads) -> None:
    """As after a kill between the archive and the cache."""
    uploads.base()
    uploads.write("one.json")
    uploads.incremental()
    behind = uploads.cache.read_bytes()
    uploads.write("two.json")
    uploads.incremental()
    uploads.cache.write_bytes(behind)
    assert uploads.incremental().unchanged


def test_a_new_base_is_in_the_cache_at_once(uploads: Uploads) -> None:
    """Where incrementals are made, the next one finds the state of a new base ready."""
    uploads.base()
    assert not uploads.cache.exists()
    uploads.incremental()
    newest = uploads.base()
    with closing(sqlite3.connect(uploads.cache)) as connection:
        assert connection.execute("SELECT backup_id, sha256 FROM head").fetchall() == [
            (newest.backup_id, newest.checksum)
        ]


def test_a_base_is_made_also_where_incrementals_cannot_be_locked(uploads: Uploads) -> None:
    """As after an incremental of root: the archive is there, so the backup has succeeded."""
    uploads.base()
    uploads.incremental()
    lock = uploads.archives / ".chain.lock"
    lock.unlink()
    lock.mkdir()
    assert Path(uploads.base().destination_path).is_file()


def test_a_killed_backup_leaves_nothing_or_all(uploads: Uploads) -> None:
    """After SIGKILL at random instants the next incremental gives the tree as it is."""
    uploads.base()
    instants = Random(5)
    code = (
        "import sys; from pathlib import Path; from tests.support.incrementals import Uploads;"
        "print(flush=True); Uploads(directory=Path(sys.argv[1])).incremental()"
    )
    for number in range(8):
        uploads.write(f"{number}.bin", instants.randbytes(300_000))
        process = subprocess.Popen([sys.executable, "-c", code, uploads.directory], stdout=subprocess.PIPE, cwd=ROOT)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(instants.uniform(0, 0.06))
        process.kill()
        process.communicate()
    result = uploads.incremental()
    assert tree_of_chain(Path(result.destination_path)) == uploads.tree()
    assert all(Verifier().verify(archive.path).intact for archive in Repository(uploads.archives).archives())
    assert not list(uploads.archives.glob(".*.partial"))
