"""Incremental backups: what goes into them, what they follow, and that nothing is missed."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import threading
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from portal.ops.archive.index import MemberType
from portal.ops.backup.changes import TooMuchError, parts_of
from portal.ops.backup.increment import SMALL_CHAIN
from portal.ops.backup.run import BackupRun
from portal.ops.backup.search import TOP, Search
from portal.ops.chains.lineage import line_of, read_manifest
from portal.ops.chains.state_cache import Known, MediaState, is_unsure, looked_at
from portal.ops.errors import ConfigurationError, DiskFullError
from portal.ops.repository.repository import Repository
from portal.ops.verify.verify import Verifier
from tests.support.archives import program, tree_on_disk
from tests.support.incrementals import Uploads, members_of, succeeded, tree_of_chain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from portal.ops.backup.job import BackupResult
    from portal.ops.manifest import Manifest

ROOT = Path(__file__).parents[2]
FILE, DIRECTORY, HARDLINK = MemberType.FILE, MemberType.DIRECTORY, MemberType.HARDLINK


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    """Two tenants, and no backup yet."""
    found = Uploads(directory=tmp_path)
    for path in ("tenant-1/scan.json", "tenant-1/old/report.sarif", "tenant-2/scan.json"):
        found.write(path, path.encode())
    return found


def manifest_of(result: BackupResult) -> Manifest:
    found = read_manifest(Path(result.destination_path))
    assert found is not None
    return found


def held(result: BackupResult) -> dict[str, MemberType]:
    return members_of(Path(result.destination_path))


def deleted(result: BackupResult) -> list[str]:
    """The list of what is gone, as a stranger reads it."""
    with tarfile.open(result.destination_path) as archive:
        file = archive.extractfile(f"{result.backup_id}/deleted.jsonl")
        assert file is not None
        return [json.loads(line)["path"] for line in file]


# -- what goes into one ---------------------------------------------------------------------------------------------


def test_only_what_has_changed_is_taken(uploads: Uploads) -> None:
    """The changed file, and the directory whose time it changed; a format that older releases refuse."""
    base = uploads.base()
    uploads.write("tenant-1/new.json", b"new")
    result = uploads.incremental()
    assert held(result) == {"tenant-1": DIRECTORY, "tenant-1/new.json": FILE}
    manifest = manifest_of(result)
    assert (manifest.format_version, manifest.parent, manifest.base) == (2, base.backup_id, base.backup_id)
    assert manifest.parent_sha256 == base.checksum
    assert result.to_dict()["parent"] == base.backup_id
    assert Verifier().verify(Path(result.destination_path)).intact


def test_what_stands_by_itself_keeps_its_format(uploads: Uploads) -> None:
    """A base is what it was before there were incrementals."""
    manifest = manifest_of(uploads.base())
    assert (manifest.format_version, manifest.parent, manifest.base) == (1, None, None)


def test_where_nothing_has_changed_there_is_no_archive(uploads: Uploads) -> None:
    """The result names the archive that has it all, and nothing is left of the attempt."""
    uploads.base()
    uploads.write("tenant-1/new.json", b"new")
    newest = uploads.incremental()
    before = sorted(path.name for path in uploads.archives.iterdir())
    for changed in (None, ["tenant-1/new.json"], []):
        result = uploads.incremental(changed)
        assert result.unchanged
        assert (result.backup_id, result.checksum) == (newest.backup_id, newest.checksum)
    assert sorted(path.name for path in uploads.archives.iterdir()) == before


def test_what_is_gone_is_listed(uploads: Uploads) -> None:
    """A directory stands for everything that was in it."""
    uploads.base()
    shutil.rmtree(uploads.root / "tenant-1" / "old", ignore_errors=True)
    (uploads.root / "tenant-2" / "scan.json").unlink()
    assert deleted(uploads.incremental()) == ["media/tenant-1/old", "media/tenant-2/scan.json"]


def test_a_stranger_needs_no_more_than_tar_and_rm(uploads: Uploads, tmp_path: Path) -> None:
    """Base unpacked, what is listed removed, incremental unpacked on top: the tree as it was."""
    base = uploads.base()
    shutil.rmtree(uploads.root / "tenant-1" / "old", ignore_errors=True)
    uploads.write("tenant-1/old", b"a file where a directory was")
    uploads.write("tenant-2/deep/new.json", b"new")
    second = uploads.incremental()
    for result in (base, second):
        if result is second:
            for path in deleted(result):
                place = tmp_path / "unpacked" / path
                shutil.rmtree(place) if place.is_dir() else place.unlink()
        (tmp_path / "unpacked").mkdir(exist_ok=True)
        into = ["-C", str(tmp_path / "unpacked"), "--strip-components=1"]
        subprocess.run([program("tar"), "xzf", result.destination_path, *into], check=True)
    assert tree_on_disk(tmp_path / "unpacked" / "media") == uploads.tree()


def test_all_names_of_a_changed_file_are_taken(uploads: Uploads) -> None:
    """Hard links stay links of one another, whichever name was named."""
    first = uploads.write("tenant-1/first", b"one")
    os.link(first, uploads.root / "tenant-2" / "second")
    uploads.base()
    first.write_bytes(b"two")
    result = uploads.incremental(["tenant-2/second"])
    assert held(result) == {"tenant-1/first": FILE, "tenant-2/second": HARDLINK}
    assert tree_of_chain(Path(result.destination_path)) == uploads.tree()


def test_a_second_name_brings_the_first_along(uploads: Uploads) -> None:
    """A file that had one name gets another: both are taken, though only the new one was named."""
    uploads.base()
    uploads.incremental()
    uploads.write("tenant-2/unrelated", b"something to follow")
    uploads.incremental()
    os.link(uploads.root / "tenant-1" / "scan.json", uploads.root / "tenant-2" / "second")
    result = uploads.incremental(["tenant-2/second"])
    assert held(result) == {"tenant-1/scan.json": FILE, "tenant-2": DIRECTORY, "tenant-2/second": HARDLINK}
    assert tree_of_chain(Path(result.destination_path)) == uploads.tree()


def test_the_name_that_held_the_content_can_go(uploads: Uploads) -> None:
    """The other names are taken again, though nobody has named them."""
    first = uploads.write("tenant-1/first", b"one")
    os.link(first, uploads.root / "tenant-2" / "second")
    uploads.base()
    uploads.write("tenant-2/unrelated", b"something to follow")
    uploads.incremental()
    first.unlink()
    result = uploads.incremental(["tenant-1/first"])
    assert held(result)["tenant-2/second"] is FILE
    assert tree_of_chain(Path(result.destination_path)) == uploads.tree()


@pytest.mark.parametrize("unsure", [0, 1])
def test_a_name_that_is_alone_now_has_its_content_again(tmp_path: Path, unsure: int) -> None:
    """It was a link to one that is gone, and the time of the change does not show that."""
    file = tmp_path / "file"
    file.write_bytes(b"now")
    content = sha256(b"now").digest()
    places = [((b"", TOP), tmp_path, 0), ((TOP, b"file"), file, 2)]
    for changed in ([], [parts_of("file")]):
        with closing(MediaState(None)) as state:
            state.confirm(
                Known._make((*names, *looked_at(place.stat()), linked, unsure, content, b""))
                for names, place, linked in places
            )
            search = Search(root=tmp_path, state=state)
            delta = search.of(changed) if changed else search.everything()
        assert TOP + b"/file" in delta.taken


def test_the_name_that_held_the_content_can_go_during_the_search(uploads: Uploads) -> None:
    """The other one was looked at already, and was as before."""
    first = uploads.write("tenant-1/first", b"one")
    os.link(first, uploads.root / "tenant-2" / "second")
    base = uploads.base()

    def changed() -> Iterator[tuple[bytes, ...]]:
        yield parts_of("tenant-2")
        first.unlink()
        yield parts_of("tenant-1/first")

    with closing(MediaState(None)) as state:
        state.follow(line_of(Path(base.destination_path)))
        delta = Search(root=uploads.root, state=state).of(changed())
    assert delta.gone == {TOP + b"/tenant-1/first"}
    assert TOP + b"/tenant-2/second" in delta.taken


# -- nothing is missed ----------------------------------------------------------------------------------------------


def test_the_same_size_and_an_old_time_hide_nothing(uploads: Uploads) -> None:
    """The ctime shows what the mtime was made to hide."""
    file = uploads.root / "tenant-1" / "scan.json"
    before = file.stat()
    uploads.base()
    file.write_bytes(b"x" * before.st_size)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert held(uploads.incremental()) == {"tenant-1/scan.json": FILE}


@pytest.mark.parametrize("unsure", [0, 1])
def test_what_was_read_too_soon_is_read_again(tmp_path: Path, unsure: int) -> None:
    """Where a change would not show in any time, the content is compared; elsewhere it is not read."""
    file = tmp_path / "file"
    file.write_bytes(b"now")
    stat = looked_at(file.stat())
    with closing(MediaState(None)) as state:
        state.confirm([Known._make((TOP, b"file", *stat, 0, unsure, b"the digest of something else", b""))])
        delta = Search(root=tmp_path, state=state).of([parts_of("file")])
    assert (TOP + b"/file" in delta.taken) == bool(unsure)


def test_a_directory_is_always_looked_into() -> None:
    """Also where directories have one name and no size, as those of /proc/sys, and this one is as it was."""
    root = Path("/proc/sys/fs")
    places = [(b"", TOP, root), (TOP, b"inotify", root / "inotify")]
    with closing(MediaState(None)) as state:
        state.confirm(Known._make((*names, *looked_at(place.stat()), 0, 0, b"", b"")) for *names, place in places)
        delta = Search(root=root, state=state).everything()
    assert TOP + b"/inotify/max_user_watches" in delta.taken


def test_too_many_changes_are_not_kept_in_memory(uploads: Uploads) -> None:
    """The search gives up, and the backup takes everything."""
    with closing(MediaState(None)) as state, pytest.raises(TooMuchError):
        Search(root=uploads.root, state=state, most=3).everything()


def test_a_file_is_unsure_until_the_clock_has_moved_on() -> None:
    """Two seconds, the coarsest that file systems have, lie between its last change and the reading."""
    second = 1_000_000_000
    assert is_unsure(10 * second, 11 * second)
    assert is_unsure(12 * second, 11 * second)
    assert not is_unsure(10 * second, 12 * second)


def test_another_inode_with_the_same_content_is_no_change(uploads: Uploads) -> None:
    """As after a restore: such files are read and compared, and not taken again."""
    uploads.base()
    for path in [*uploads.root.rglob("*.json"), *uploads.root.rglob("*.sarif")]:
        copy = path.with_suffix(".copy")
        shutil.copy2(path, copy)
        os.replace(copy, path)
    result = uploads.incremental()
    assert set(held(result)) == {"tenant-1", "tenant-1/old", "tenant-2"}


def test_the_first_incremental_on_a_base_looks_everywhere(uploads: Uploads) -> None:
    """What was named before may have gone to an incremental that the base does not know of."""
    uploads.base()
    uploads.write("tenant-1/unnamed.json")
    uploads.write("tenant-2/named.json")
    assert "tenant-1/unnamed.json" in held(uploads.incremental(["tenant-2/named.json"]))


def test_a_file_that_vanishes_on_the_way_is_gone(uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was there when it was compared, and not when it was read: the archive does not say that it is as before."""
    uploads.base()
    file = uploads.write("tenant-1/scan.json", b"changed")
    job = uploads.job()
    check = BackupRun._check_space

    def vanish(run: BackupRun, expected: int) -> None:
        file.unlink()
        check(run, expected)

    monkeypatch.setattr(BackupRun, "_check_space", vanish)
    result = succeeded(job.backup_media(incremental=True))
    assert deleted(result) == ["media/tenant-1/scan.json"]
    assert b"tenant-1/scan.json" not in tree_of_chain(Path(result.destination_path))


def test_a_directory_that_vanishes_on_the_way_is_gone_with_all_in_it(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with what is as it was and was not to be read: this archive and the next one count it out, and restore."""
    uploads.base()
    uploads.write("tenant-1/old/new.json", b"makes the directory another")
    job = uploads.job()
    check = BackupRun._check_space

    def vanish(run: BackupRun, expected: int) -> None:
        shutil.rmtree(uploads.root / "tenant-1" / "old", ignore_errors=True)
        check(run, expected)

    monkeypatch.setattr(BackupRun, "_check_space", vanish)
    first = succeeded(job.backup_media(incremental=True))
    assert deleted(first) == ["media/tenant-1/old"]
    assert manifest_of(first).details["media"]["tree"]["files"] == 2
    left = {b"", b"tenant-1", b"tenant-1/scan.json", b"tenant-2", b"tenant-2/scan.json"}
    assert set(uploads.restored(first.backup_id)) == left
    uploads.write("tenant-2/new.json", b"new")
    assert uploads.restored(uploads.incremental().backup_id) == uploads.tree()


def test_content_that_vanishes_on_the_way_with_its_directory_is_not_linked_to(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its other name was as before, and was not to be read; the backup is to be made again, and is right then."""
    os.link(uploads.root / "tenant-1" / "old" / "report.sarif", uploads.root / "tenant-2" / "same")
    uploads.base()
    uploads.write("tenant-1/old/new.json", b"makes the directory another")
    job = uploads.job()
    check = BackupRun._check_space

    def vanish(run: BackupRun, expected: int) -> None:
        shutil.rmtree(uploads.root / "tenant-1" / "old", ignore_errors=True)
        check(run, expected)

    monkeypatch.setattr(BackupRun, "_check_space", vanish)
    result = job.backup_media(incremental=True)
    assert (result.success, result.retryable) == (False, True)
    assert uploads.restored(uploads.incremental().backup_id) == uploads.tree()


# -- the paths that are named ---------------------------------------------------------------------------------------


def test_only_what_is_named_is_looked_at(uploads: Uploads) -> None:
    """Files, directories with all in them, what is new, what is gone; and nothing else."""
    uploads.base()
    uploads.write("tenant-1/first", b"a chain")
    uploads.incremental()
    uploads.write("tenant-1/unnamed.json")
    uploads.write("tenant-2/scan.json", b"another content")
    uploads.write("tenant-3/deep/new.json")
    shutil.rmtree(uploads.root / "tenant-1" / "old", ignore_errors=True)
    result = uploads.incremental(["tenant-2/scan.json", "./tenant-3//deep/new.json", "tenant-1/old/report.sarif"])
    assert set(held(result)) == {
        "",
        "tenant-1",
        "tenant-2/scan.json",
        "tenant-3",
        "tenant-3/deep",
        "tenant-3/deep/new.json",
    }
    assert deleted(result) == ["media/tenant-1/old"]


@pytest.mark.parametrize("second", ["tenant-1/scan.json", "tenant-1", "tenant-1/nothing", ""])
def test_what_is_back_during_the_search_is_not_gone(uploads: Uploads, second: str) -> None:
    """A directory was missing at the first path, and is there at the second: with all that is in it."""
    base = uploads.base()
    place, aside = uploads.root / "tenant-1", uploads.directory / "aside"

    def changed() -> Iterator[tuple[bytes, ...]]:
        place.rename(aside)
        yield parts_of("tenant-1/old/report.sarif")
        aside.rename(place)
        (place / "old" / "report.sarif").write_bytes(b"changed")
        yield parts_of(second)

    with closing(MediaState(None)) as state:
        state.follow(line_of(Path(base.destination_path)))
        delta = Search(root=uploads.root, state=state).of(changed())
    assert not delta.gone
    assert TOP + b"/tenant-1/old/report.sarif" in delta.taken


def test_a_name_that_no_file_can_have_is_of_none(uploads: Uploads) -> None:
    """The other paths are looked at all the same."""
    uploads.base()
    uploads.write("first.json")
    uploads.incremental()
    uploads.write("last.json")
    assert set(held(uploads.incremental(["x" * 300, "last.json", "tenant-1/" + "y" * 300 + "/z"]))) == {"", "last.json"}


@pytest.mark.parametrize("path", ["/etc/passwd", "../outside", "tenant-1/../../outside", "tenant-1/\0", "\ud800"])
def test_a_path_that_leads_out_is_refused(uploads: Uploads, path: str) -> None:
    """Nothing is read, and the error says what a path has to be."""
    uploads.base()
    result = uploads.job().backup_media(incremental=True, changed=[path])
    assert not result.success
    assert result.exit_code == ConfigurationError.exit_code
    assert "is no " in (result.error or "")


def test_a_symlink_on_the_way_is_not_followed(uploads: Uploads, tmp_path: Path) -> None:
    """What lies behind it is not in the uploads."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"secret")
    uploads.base()
    uploads.write("tenant-1/first", b"a chain")
    uploads.incremental()
    (uploads.root / "link").symlink_to(tmp_path / "outside")
    assert held(uploads.incremental(["link/secret"])) == {"": DIRECTORY, "link": MemberType.SYMLINK}


def test_our_own_directories_are_never_taken(tmp_path: Path) -> None:
    """Neither a repository that lies in the uploads, nor what a restore keeps there, also where they are named."""
    uploads = Uploads(directory=tmp_path)
    uploads.write("scan.json")
    inside = uploads.root / "backups"
    uploads.base()
    job = uploads.job(local_path=inside)
    succeeded(job.backup_media(request_id="base"))
    uploads.write(".kekkai-restore/restore_1/stage/file")
    uploads.write("new.json")
    for changed in (None, [".kekkai-restore/restore_1/stage/file", "backups/x", "backups", "new.json"]):
        uploads.write("new.json", os.urandom(8))
        result = succeeded(job.backup_media(incremental=True, changed=changed, request_id=str(changed)))
        assert set(held(result)) <= {"", "new.json"}


def test_paths_need_an_incremental(uploads: Uploads) -> None:
    """To name paths for a backup of everything is a mistake."""
    result = uploads.job().backup_media(changed=["tenant-1"])
    assert result.exit_code == ConfigurationError.exit_code


# -- what it follows ------------------------------------------------------------------------------------------------


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
