"""What counts as a loss of a source, file by file; and how much a tree has."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.backup.changes import parts_of
from portal.ops.backup.loss import SourceState, check_loss, last_state, place_of
from portal.ops.backup.walk import FileTree, check_length, identity, open_root, tree_bytes
from portal.ops.errors import ConfigurationError, SourceError
from portal.ops.manifest import Manifest
from portal.ops.model import RESTORE_DIRECTORY, Component
from portal.ops.repository.repository import Repository
from tests.support.kept import packed

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.incrementals import Uploads

MEDIA, AUDIT_LOGS = Component.MEDIA, Component.AUDIT_LOGS
HERE: dict[str, Any] = {"device": 1, "is_mount": True}


def state(files: int, **place: Any) -> SourceState:
    return SourceState(files=files, backup_id="media_20260101_000000_abcdef", **place)


@pytest.mark.parametrize(
    ("component", "before", "files", "is_refused"),
    [
        (MEDIA, 9, 0, False),
        (MEDIA, 10, 0, True),
        (MEDIA, 10, 1, False),
        (MEDIA, 100, 10, False),
        (MEDIA, 100, 9, True),
        (MEDIA, 0, 0, False),
        (MEDIA, 10, 10, False),
        (MEDIA, 10, 5000, False),
        (AUDIT_LOGS, 1, 0, True),
        (AUDIT_LOGS, 2, 1, False),
        (AUDIT_LOGS, 0, 0, False),
    ],
)
def test_nearly_everything(tmp_path: Path, component: Component, before: int, files: int, is_refused: bool) -> None:
    """Is all but a tenth of at least ten files, or all of an audit log."""
    check_loss(component, tmp_path, None, files)
    if not is_refused:
        check_loss(component, tmp_path, state(before), files)
        return
    with pytest.raises(SourceError) as caught:
        check_loss(component, tmp_path, state(before), files)
    assert caught.value.message == (
        f"{tmp_path} has {files} files, and media_20260101_000000_abcdef had {before} of it: "
        "nearly everything is gone at once, so nothing was backed up"
    )


def test_few_files_of_another_device(tmp_path: Path) -> None:
    """All of them gone is refused there; one that is left is not."""
    elsewhere = os.stat(tmp_path).st_dev + 1
    check_loss(MEDIA, tmp_path, state(9, device=os.stat(tmp_path).st_dev, is_mount=False), 0)
    check_loss(MEDIA, tmp_path, state(9, device=elsewhere), 1)
    with pytest.raises(SourceError, match="of it, and it is not on the device that it was on then: nearly"):
        check_loss(MEDIA, tmp_path, state(9, device=elsewhere), 0)


@pytest.mark.parametrize(
    ("was", "now", "has_moved"),
    [
        ({}, HERE, False),
        ({"device": 1, "is_mount": True}, HERE, False),
        ({"device": 2, "is_mount": True}, HERE, True),
        ({"device": 1, "is_mount": True}, {"device": 1, "is_mount": False}, True),
        ({"device": 1, "is_mount": False}, HERE, False),
        ({"is_mount": None}, {"device": 1, "is_mount": False}, False),
    ],
)
def test_a_source_that_has_moved(was: dict[str, Any], now: dict[str, Any], has_moved: bool) -> None:
    """Is on another device, or where a mount point was and none is; what is not known says nothing."""
    assert state(1, **was).has_moved(now) is has_moved


@pytest.mark.parametrize(
    ("details", "files"),
    [
        ({}, None),
        ({"media": {}}, None),
        ({"media": {"files": 3}}, 3),
        ({"media": {"files": 1, "tree": {"files": 7}}}, 7),
        ({"media": {"files": True}}, None),
        ({"media": {"files": "3"}}, None),
    ],
)
def test_what_a_manifest_says_of_a_source(details: dict[str, Any], files: int | None) -> None:
    """Of the whole tree, where the archive has a part of it alone."""
    manifest = Manifest(
        backup_id="one", type="media", timestamp="", components=(), hostname="", db_name="", details=details
    )
    found = SourceState.of(manifest, MEDIA)
    assert (found.files if found else None) == files
    assert not found or (found.backup_id, found.device, found.is_mount) == ("one", None, None)


def test_the_last_state_is_that_of_the_newest_archive_that_can_be_read(uploads: Uploads) -> None:
    """By when it was written; an archive that says nothing of the source is passed over."""
    repository = Repository(uploads.archives)
    assert last_state(repository, MEDIA) is None
    first = uploads.base()
    os.utime(uploads.archive(first.backup_id), (1, 1))
    uploads.write("more")
    second = uploads.base()
    found = last_state(repository, MEDIA)
    assert found is not None
    assert (found.files, found.backup_id) == (4, second.backup_id)
    assert {"device": found.device, "is_mount": found.is_mount} == place_of(uploads.root)
    assert last_state(repository, AUDIT_LOGS) is None
    broken = "media_20300101_000000_abcdef"
    uploads.archive(broken).write_bytes(packed(broken, b"[]"))
    uploads.archive("copy").write_bytes(b"garbage")
    assert last_state(repository, MEDIA) == found
    uploads.archive(second.backup_id).write_bytes(b"garbage")
    found = last_state(repository, MEDIA)
    assert found is not None
    assert (found.files, found.backup_id) == (3, first.backup_id)


def test_how_many_bytes_a_tree_has(tmp_path: Path) -> None:
    """All its files, but for what is passed over: rollback data at the top, and excluded directories anywhere."""
    for path, size in (
        ("a", 1),
        ("b/c", 10),
        (f"{RESTORE_DIRECTORY}/d", 100),
        (f"b/{RESTORE_DIRECTORY}/e", 1_000),
        ("b/out/f", 10_000),
    ):
        (tmp_path / "tree" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / path).write_bytes(bytes(size))
    (tmp_path / "tree" / "link").symlink_to("a")
    excluded = frozenset([identity(tmp_path / "tree" / "b" / "out")])
    assert tree_bytes(tmp_path / "tree") == 11_011
    assert tree_bytes(tmp_path / "tree", excluded) == 1_011
    assert tree_bytes(tmp_path / "tree" / "b" / "c", excluded) == 10
    with FileTree(root=tmp_path / "tree", prefix="media", excluded=excluded) as tree:
        found = list(tree.items())
    assert [(path, kind) for (path, kind, _), _ in found] == [
        ("media", "directory"),
        ("media/a", "file"),
        ("media/link", "symlink"),
        ("media/b", "directory"),
        ("media/b/c", "file"),
        (f"media/b/{RESTORE_DIRECTORY}", "directory"),
        (f"media/b/{RESTORE_DIRECTORY}/e", "file"),
    ]
    assert sum(size for _, size in found) == 1_011
    with FileTree(root=tmp_path / "tree" / "a", prefix="audit") as single:
        assert list(single.items()) == [(("audit/a", "file", ""), 1)]


def test_what_is_no_tree(tmp_path: Path) -> None:
    """Neither directory nor file is refused, with the variables that name it."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(SourceError, match=f"{tmp_path}/fifo is neither a directory nor a file") as caught:
        open_root(tmp_path / "fifo")
    assert "PORTAL_UPLOAD_DIR or PORTAL_AUDIT_DIR" in caught.value.hint


@pytest.mark.parametrize(("letter", "size"), [("a", 1), ("é", 2)])
def test_the_longest_path_of_a_directory(letter: str, size: int) -> None:
    """Counts in bytes."""
    check_length(letter * (32_768 // size))
    with pytest.raises(SourceError, match="longer than 32,768 bytes: "):
        check_length(letter * (32_768 // size) + "a")


@pytest.mark.parametrize(
    ("path", "parts"),
    [("", ()), (".", ()), ("a", (b"a",)), ("./a//b/", (b"a", b"b")), ("é", ("é".encode(),)), ("\udcff", (b"\xff",))],
)
def test_the_names_of_a_path(path: str, parts: tuple[bytes, ...]) -> None:
    """Without those that say nothing."""
    assert parts_of(path) == parts


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/a", "is no path in the uploads"),
        ("a/../b", "is no path in the uploads"),
        ("..", "is no path in the uploads"),
        ("a\0", "is no path in the uploads"),
        ("\ud800", "is no name that a file can have"),
    ],
)
def test_a_path_that_cannot_be(path: str, said: str) -> None:
    """Is wrong usage."""
    with pytest.raises(ConfigurationError, match=said) as caught:
        parts_of(path)
    assert caught.value.hint
