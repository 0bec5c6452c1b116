"""Incremental backups: what goes into them, and that nothing is missed."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from portal.ops.archive.index import MemberType
from portal.ops.backup.changes import TooMuchError, parts_of
from portal.ops.backup.run import BackupRun
from portal.ops.backup.search import TOP, Search
from portal.ops.chains.lineage import line_of
from portal.ops.chains.state_cache import Known, MediaState, is_unsure, looked_at
from portal.ops.errors import ConfigurationError
from portal.ops.verify.verify import Verifier
from tests.support.archives import program, tree_on_disk
from tests.support.incrementals import Uploads, deleted, held, manifest_of, succeeded, tree_of_chain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


FILE, DIRECTORY, HARDLINK = MemberType.FILE, MemberType.DIRECTORY, MemberType.HARDLINK


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


def on_the_way(monkeypatch: pytest.MonkeyPatch, action: Callable[[], None]) -> None:
    """Do something between the look at the uploads and their reading."""
    check = BackupRun._check_space

    def act(run: BackupRun, expected: int) -> None:
        action()
        check(run, expected)

    monkeypatch.setattr(BackupRun, "_check_space", act)


def test_a_file_that_vanishes_on_the_way_is_gone(uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was there when it was compared, and not when it was read: the archive does not say that it is as before."""
    uploads.base()
    file = uploads.write("tenant-1/scan.json", b"changed")
    job = uploads.job()
    on_the_way(monkeypatch, file.unlink)
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
    on_the_way(monkeypatch, lambda: shutil.rmtree(uploads.root / "tenant-1" / "old", ignore_errors=True))
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
    on_the_way(monkeypatch, lambda: shutil.rmtree(uploads.root / "tenant-1" / "old", ignore_errors=True))
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
