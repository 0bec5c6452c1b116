"""What is remembered of a line of archives, and what is open while one is read."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from portal.ops.archive.index import Member, MemberType
from portal.ops.archive.reader import ArchiveReader
from portal.ops.chains import state_cache
from portal.ops.chains.deletions import deletions
from portal.ops.chains.lineage import line_of
from portal.ops.chains.reader import ChainReader, open_tree
from portal.ops.chains.state_cache import Content, MediaState
from portal.ops.errors import NotIntactError
from tests.support.incrementals import Uploads


@pytest.fixture
def newest(tmp_path: Path) -> Path:
    """The last of a base and two incrementals."""
    uploads = Uploads(directory=tmp_path)
    uploads.write("tenant/one")
    uploads.base()
    for name in ("two", "three"):
        uploads.write(f"tenant/{name}")
        last = uploads.incremental()
    return Path(last.destination_path)


def test_a_line_that_was_followed_is_not_read_again(newest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state stands for the end of the line, however far it had to go there."""
    line = line_of(newest)
    read: list[Path] = []

    class Reader(ArchiveReader):
        def __init__(self, path: Path) -> None:
            read.append(path)
            super().__init__(path)

    monkeypatch.setattr(state_cache, "ArchiveReader", Reader)
    with closing(MediaState(None)) as state:
        state.follow(line)
        assert read == [ancestor.path for ancestor in line]
        state.follow(line)
    assert len(read) == len(line) == 3


def test_a_chain_that_was_read_leaves_nothing_open(newest: Path) -> None:
    """Every archive that was opened for it is closed."""
    before = len(os.listdir("/proc/self/fd"))
    tree = open_tree(newest)
    assert isinstance(tree, ChainReader)
    for name in ("one", "two", "three"):
        member = tree.find(f"media/tenant/{name}")
        assert member is not None
        assert b"".join(tree.extract(member)) == b"content"
    assert len(os.listdir("/proc/self/fd")) > before
    tree.close()
    assert len(os.listdir("/proc/self/fd")) == before


def content_of(archive: Path) -> Content:
    """What an archive changes."""
    with closing(ArchiveReader(archive)) as reader:
        manifest = reader.manifest()
        gone = list(deletions(reader)) if manifest.parent else []
        return Content(manifest=manifest, members=list(reader.members()), deleted=gone)


def names(state: MediaState) -> set[bytes]:
    return {known.path for known in state.below(b"media")}


def test_a_new_archive_is_where_the_state_stands(newest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After taking it, the line that ends there is not read, and was compared; the one before is another state."""
    line = line_of(newest)
    with closing(MediaState(None)) as state, closing(MediaState(None)) as followed:
        state.follow(line[:-1])
        assert not state.follow(line[:-1])
        state.take(content_of(newest), line[-1].sha256)
        followed.follow(line)
        assert names(state) == names(followed) >= {b"media/tenant/one", b"media/tenant/three"}
        monkeypatch.setattr(state_cache, "ArchiveReader", None)
        assert state.follow(line)
        with pytest.raises(TypeError):
            state.follow(line[:-1])
        assert state.follow(line)  # what went wrong has changed nothing


def test_a_new_base_begins_anew(newest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the line before is left; it counts as compared only when it was."""
    line = line_of(newest)
    with closing(MediaState(None)) as state:
        state.follow(line)
        state.settle()
        assert state.follow(line)
        state.restart(content_of(line[0].path), line[0].sha256)
        assert names(state) == {b"media", b"media/tenant", b"media/tenant/one"}
        monkeypatch.setattr(state_cache, "ArchiveReader", None)
        assert not state.follow(line[:1])
        state.settle()
        assert state.follow(line[:1])


def test_another_line_replaces_the_state(newest: Path, tmp_path: Path) -> None:
    """What the state knew of a line that this is not is forgotten, and it was compared with no tree."""
    line = line_of(newest)
    (tmp_path / "other").mkdir()
    uploads = Uploads(directory=tmp_path / "other")
    uploads.write("elsewhere")
    other = line_of(Path(uploads.base().destination_path))
    with closing(MediaState(None)) as state:
        state.follow(other)
        state.settle()
        assert not state.follow(line)
        assert b"media/elsewhere" not in names(state)
        assert not state.follow(line)
        state.settle()
        assert state.follow(line)
        assert not state.follow(other)
        assert names(state) == {b"media", b"media/elsewhere"}


def test_a_change_that_fails_changes_nothing(newest: Path) -> None:
    """Whatever it had put in by then."""
    line = line_of(newest)
    with closing(MediaState(None)) as state:
        state.follow(line[:-1])
        state.settle()
        before = names(state)
        content = content_of(newest)
        hard = Member("media/tenant/x", MemberType.HARDLINK, link="media/tenant/absent")
        for change in (state.take, state.restart):
            with pytest.raises(NotIntactError, match="media/tenant/absent"):
                change(replace(content, members=[*content.members, hard]), line[-1].sha256)
            assert names(state) == before
            assert state.follow(line[:-1])


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_members_are_taken_in_batches(newest: Path, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each once, whether a batch is full at the end or not; a link finds its file in one that is not full."""
    monkeypatch.setattr(state_cache, "_BATCH", batch)
    line = line_of(newest)
    files = [
        Member(f"media/{name}", MemberType.FILE, 1, mtime_ns=1, inode=7, sha256="00" * 32) for name in ("a", "b", "c")
    ]
    link = Member("media/l", MemberType.HARDLINK, link="media/c")
    with closing(MediaState(None)) as state:
        content = Content(manifest=content_of(newest).manifest, members=[*files, link])
        state.restart(content, line[-1].sha256)
        assert names(state) >= {b"media/a", b"media/b", b"media/c", b"media/l"}


def test_an_archive_that_does_not_say_when_it_was_read_is_none_to_build_on(newest: Path) -> None:
    """Whether a file changed since could not be told."""
    content = content_of(newest)
    said: list[dict[str, Any]] = [{}, {"media": {}}, {"media": {"read_from_ns": "now"}}]
    for details in said:
        other = replace(content, manifest=replace(content.manifest, details=details))
        with closing(MediaState(None)) as state, pytest.raises(NotIntactError, match="when its uploads were read"):
            state.restart(other, "0" * 64)


def test_what_was_removed_is_removed_with_all_below(newest: Path) -> None:
    """And nothing whose name only begins alike."""
    line = line_of(newest)
    manifest = content_of(newest).manifest
    kept = ["media/a0", "media/a-b/x", "media/ab/c/d", "media/b"]
    gone = ["media/a/x", "media/a/b/c/d"]
    members = [
        Member(path, MemberType.FILE, 1, mtime_ns=1, inode=number, sha256="00" * 32)
        for number, path in enumerate([*kept, *gone])
    ]
    with closing(MediaState(None)) as state:
        state.restart(Content(manifest=manifest, members=members), line[-1].sha256)
        assert {path.encode() for path in gone} < names(state)
        state.take(Content(manifest=manifest, members=[], deleted=["media/a", "media/b"]), "0" * 64)
        assert {path for path in names(state) if state.get(path).digest} == {  # type: ignore[union-attr]
            path.encode() for path in kept if path != "media/b"
        }
        assert state.get(b"media/a") is None
        assert state.get(b"media/a/b") is None


def test_a_state_of_another_release_is_none_of_ours(tmp_path: Path) -> None:
    """It is refused, and the file is closed; one of our own is opened as it was left."""
    with closing(MediaState(tmp_path / "state")) as state:
        state.settle()
    with closing(sqlite3.connect(tmp_path / "state")) as changed:
        assert changed.execute("SELECT version, compared FROM head").fetchall() == [(state_cache.VERSION, 1)]
        changed.execute("UPDATE head SET version = version - 1")
        changed.commit()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(sqlite3.DatabaseError, match="another release made it"):
        MediaState(tmp_path / "state")
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("ctime_ns", "is_so"), [(-1, False), (0, False), (1, True), (state_cache.GRANULE_NS + 5, True)]
)
def test_a_change_shortly_before_the_reading_is_in_doubt(ctime_ns: int, is_so: bool) -> None:
    """What changed longer ago than a file system's clock steps is not."""
    assert state_cache.is_unsure(10**18 + ctime_ns, 10**18 + state_cache.GRANULE_NS) is is_so


@pytest.mark.parametrize("number", [0, -1, (1 << 63) - 1, 1 - (1 << 63)])
def test_numbers_that_fit_are_kept(number: int) -> None:
    """Others become numbers that fit, neighbours different ones."""
    assert state_cache.fitted(number) == number
    large = {state_cache.fitted((1 << 63) + step) for step in range(3)}
    assert len(large) == 3
    assert all(0 <= one < 1 << 63 for one in large)
