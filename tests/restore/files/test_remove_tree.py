"""What was restored for a while is removed whole, whatever rights the directories were given, by users of no rights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from portal.ops.drill.scratch import Scratch
from portal.ops.filesystem.tree import remove_tree
from portal.ops.restore.files.record import RestoreDirectory
from portal.ops.settings.database_url import DatabaseTarget
from tests.support.unprivileged import done_by_nobody

if TYPE_CHECKING:
    from collections.abc import Callable

DRILL = "drill_20260101_000000_abcdef"
RESTORE = Path(".kekkai-restore") / "restore_1"


def throw_drill_away() -> None:
    Scratch(drill_id=DRILL, directory=Path(DRILL)).throw_away(
        DatabaseTarget(host="", port=5432, name="portal", user="")
    )


def forget_restore() -> None:
    RestoreDirectory(".", "restore_1").remove()


def make_again() -> None:
    RestoreDirectory(".", "restore_1").make()
    RestoreDirectory(".", "restore_1").remove()


@pytest.mark.parametrize(
    ("place", "work"),
    [
        (Path(DRILL) / "files", throw_drill_away),
        (RESTORE / "rollback", forget_restore),
        (RESTORE / "rollback", make_again),
        (Path("tree"), lambda: remove_tree(Path("tree"))),
    ],
)
@pytest.mark.parametrize("mode", [0o555, 0o000])
def test_closed_directories_are_removed(tmp_path: Path, place: Path, work: Callable[[], None], mode: int) -> None:
    """Directories that may not be written, or not even be looked into, do not stay; what links name does."""
    other = tmp_path / "other"
    other.mkdir(mode=0o555)
    inner = tmp_path / place / "media" / "inner"
    inner.mkdir(parents=True)
    (inner / "file").write_text("content")
    (inner / "link").symlink_to(other)
    for path in (inner, inner.parent, tmp_path / place):
        path.chmod(mode)
    done_by_nobody(tmp_path, work)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    assert other.stat().st_mode & 0o777 == 0o555
