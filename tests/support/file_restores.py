"""Restores of files that need no portal around them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from portal.ops.archive.open import open_archive
from portal.ops.model import RESTORE_DIRECTORY, Component
from portal.ops.restore.files.restore import FileRestore, FilesReport
from tests.support.archives import Tree, tree_on_disk

if TYPE_CHECKING:
    from pathlib import Path

OLD_NS = 1_700_000_000_000_000_001


def put(path: Path, text: str) -> None:
    """A file of an earlier day."""
    path.write_text(text)
    path.chmod(0o600)
    os.utime(path, ns=(OLD_NS, OLD_NS))


def restore_of(
    target: Path,
    *,
    restore_id: str = "restore_1",
    exact: bool = False,
    patterns: tuple[str, ...] = (),
    protected: tuple[Path, ...] = (),
) -> FileRestore:
    """A restore of the uploads."""
    return FileRestore(
        target,
        restore_id=restore_id,
        component=Component.MEDIA,
        exact=exact,
        patterns=patterns,
        protected=protected,
    )


def run(restore: FileRestore, archive: Path) -> FilesReport:
    """Stage and apply."""
    opened = open_archive(archive)
    try:
        restore.stage_from(opened, 2)
    finally:
        opened.close()
    return restore.apply()


def live_tree(root: Path) -> Tree:
    """The tree without what restores keep in it."""
    ours = RESTORE_DIRECTORY.encode()
    return {name: entry for name, entry in tree_on_disk(root).items() if name.split(b"/")[0] != ours}
