"""A directory that had gone when it was read, although files in it were read: the chain goes on, and restores."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from portal.ops.archive.tree_members import TreeMembers
from tests.support.incrementals import Uploads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from portal.ops.archive.packer import Item

GONE = "media/tenant/scans"


@pytest.fixture
def uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Uploads:
    """Uploads whose second backup has three files of a directory, and not the directory."""
    found = Uploads(directory=tmp_path)
    found.write("tenant/one")
    found.base()
    for name in ("two", "three", "four"):
        found.write(f"tenant/scans/{name}")
    add = TreeMembers.add

    def without_directory(self: TreeMembers, items: Iterable[tuple[Item, int]]) -> None:
        add(self, (item for item in items if item[0][0] != GONE))
        self._tally.vanished.append(GONE)

    with monkeypatch.context() as patched:
        patched.setattr(TreeMembers, "add", without_directory)
        result = found.incremental()
    assert any(f"{GONE} vanished" in warning for warning in result.warnings)
    return found


def replace_by_link(scans: Path) -> None:
    shutil.rmtree(scans)
    scans.symlink_to("one")


def replace_by_file(scans: Path) -> None:
    shutil.rmtree(scans)
    scans.write_bytes(b"a file")


def change(scans: Path) -> None:
    (scans / "two").unlink()
    (scans / "five").write_bytes(b"more")


def leave(scans: Path) -> None:
    """It is as it was."""
    assert scans.is_dir()


@pytest.mark.parametrize("become", [replace_by_link, replace_by_file, shutil.rmtree, change, leave])
@pytest.mark.parametrize("rebuilt", [False, True], ids=["remembered", "read again"])
def test_the_next_incremental_has_the_tree_as_it_is(
    uploads: Uploads, become: Callable[[Path], None], rebuilt: bool
) -> None:
    """Whatever has become of the directory: what was in it goes with it, and a restore gives the uploads."""
    become(uploads.root / "tenant" / "scans")
    if rebuilt:
        uploads.cache.unlink()
    result = uploads.incremental()
    assert uploads.restored(result.backup_id) == uploads.tree()
    assert uploads.incremental().unchanged
