"""The directory that a restore keeps at the top of the tree."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import pytest

from portal.ops.errors import RestoreError
from portal.ops.filesystem.attributes import Attributes
from portal.ops.model import Component
from portal.ops.restore.files import record
from portal.ops.restore.files.record import FilesRecord, RestoreDirectory

if TYPE_CHECKING:
    from pathlib import Path

NOBODY = 0xFFFFFFFF
DEFAULT_LIST = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in [(1, 7, NOBODY), (2, 7, 1234), (4, 5, NOBODY), (0x10, 7, NOBODY), (0x20, 5, NOBODY)]
)


@pytest.fixture
def directory(tmp_path: Path) -> RestoreDirectory:
    """One that was made, with a record and something in each part."""
    made = RestoreDirectory(str(tmp_path), "restore_1")
    made.make()
    root = Attributes.of(tmp_path.stat(), ())
    made.write(FilesRecord(restore_id="restore_1", component=Component.MEDIA, target="x", started="now", root=root))
    for part in ("stage", "rollback", "kept"):
        (made.path / part / "file").write_bytes(b"x")
    made.journal.touch()
    return made


def test_what_the_tree_passes_on_is_not_passed_on_to_it(tmp_path: Path) -> None:
    """A list that gives others access to whatever is new in the tree gives none to what a restore keeps."""
    try:
        os.setxattr(tmp_path, "system.posix_acl_default", DEFAULT_LIST)
    except OSError:
        pytest.skip("this file system has no access lists")
    made = RestoreDirectory(str(tmp_path), "restore_1")
    made.make()
    places = [made.path.parent, made.path, *(made.path / part for part in ("stage", "rollback", "kept"))]
    assert [os.listxattr(place) for place in places if "system.posix_acl_default" in os.listxattr(place)] == []
    assert {place.stat().st_mode & 0o077 for place in places} == {0}


def test_the_record_goes_last(directory: RestoreDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as anything is left to be removed, it is known to which restore it belongs."""
    left: list[set[str]] = []
    remove = record.remove_tree  # type: ignore[attr-defined]

    def removed(path: Path) -> None:
        left.append(set(os.listdir(directory.path)))
        remove(path)

    monkeypatch.setattr(record, "remove_tree", removed)
    before = os.stat(directory.root)
    directory.remove()
    assert left == [
        {"restore.json", "journal.jsonl", "stage", "rollback", "kept"},
        {"restore.json", "journal.jsonl", "rollback", "kept"},
        {"restore.json", "journal.jsonl", "kept"},
        {"restore.json"},
    ]
    assert not directory.path.parent.exists()
    assert os.stat(directory.root).st_mtime_ns == before.st_mtime_ns
    directory.remove_parent()  # it may be gone


def test_what_a_dead_process_had_begun_to_make_is_made_anew(directory: RestoreDirectory) -> None:
    """Nothing of it is left; the directories of other restores are not touched."""
    other = RestoreDirectory(directory.root, "restore_2")
    other.make()
    (other.path / "stage" / "file").write_bytes(b"x")
    assert (directory.exists(), other.exists(), other.is_complete()) == (True, False, True)
    assert directory.held_bytes() > 3
    directory.make()
    assert sorted(path.name for path in directory.path.rglob("*")) == ["kept", "rollback", "stage"]
    assert (directory.held_bytes(), other.held_bytes()) == (0, 1)
    (other.path / "kept").rmdir()
    assert not other.is_complete()
    directory.remove()
    assert other.path.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"restore_id": 1}'])
def test_a_damaged_record_is_told_with_the_place_of_what_was_live(directory: RestoreDirectory, text: str) -> None:
    """Whatever is wrong with it, the old files are named."""
    (directory.path / "restore.json").write_text(text)
    with pytest.raises(RestoreError, match=r"the record of the restore restore_1 in .* is damaged") as caught:
        directory.read()
    assert f"{directory.path}/rollback" in (caught.value.hint or "")
