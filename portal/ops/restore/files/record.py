"""The record of a file restore, kept in a directory at the top of the restored tree.

.kekkai-restore/<restore_id>/
    restore.json     the record and its state
    stage/           staged files, until they are in place; again after a rollback
    journal.jsonl    the steps, from the moment that they are begun
    rollback/        the previous data, under its own paths
    kept/            what others had written and was in the way
"""

from __future__ import annotations

import json
import os
import stat
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from portal.ops.codec import decode, encode
from portal.ops.errors import RestoreError
from portal.ops.filesystem.attributes import Attributes  # noqa: TC001  (the codec reads the annotations)
from portal.ops.filesystem.tree import Tree, give_away, remove_tree
from portal.ops.filesystem.xattrs import drop_default_list
from portal.ops.hints import Advice
from portal.ops.model import RESTORE_DIRECTORY, Component
from portal.ops.repository.durable import write_durably
from portal.ops.repository.locks import locked_alone
from portal.ops.restore.files.journal import Places

if TYPE_CHECKING:
    from collections.abc import Iterator

_RECORD: Final = "restore.json"
_PARTS: Final = ("stage", "rollback", "kept")


class FilesState(StrEnum):
    """The states of a file restore."""

    STAGING = "staging"
    STAGED = "staged"
    APPLYING = "applying"
    APPLIED = "applied"
    UNDOING = "undoing"
    ROLLED_BACK = "rolled_back"


@dataclass(frozen=True, kw_only=True)
class FilesRecord:
    """The record of one file restore.

    Arguments:
        restore_id: the restore.
        component: the restored component.
        target: the target as it was given.
        started: the start time, in the format of the manifest.
        state: the state of the restore.
        created: directories created for it, outermost first.
        root: attributes of the tree's top before.
        attributes: attributes of staged directories that the archive describes.
        figures: counts for the report.
        warnings: warnings for the report.
    """

    restore_id: str
    component: Component
    target: str
    started: str
    state: FilesState = FilesState.STAGING
    created: tuple[str, ...] = ()
    root: Attributes
    attributes: dict[str, Attributes] = field(default_factory=dict)
    figures: dict[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @classmethod
    def decode(cls, text: str) -> FilesRecord:
        """Decode a record from JSON."""
        return decode(cls, json.loads(text))


class RestoreDirectory:
    """The directory of one restore.

    Arguments:
        root: the top of the restored tree.
        name: the restore's id, which names its directory.
    """

    def __init__(self, root: str, name: str) -> None:
        self.root = root
        self.path = Path(root) / RESTORE_DIRECTORY / name
        self.journal = self.path / "journal.jsonl"

    def exists(self) -> bool:
        """True if the restore has a directory."""
        return (self.path / _RECORD).exists()

    def is_complete(self) -> bool:
        """True if the directory has everything that belongs in it."""
        return all((self.path / part).exists() for part in _PARTS)

    def read(self) -> FilesRecord:
        """Read the record.

        Raises:
            RestoreError: the record is missing or damaged.
        """
        try:
            return FilesRecord.decode((self.path / _RECORD).read_text("ascii"))
        except FileNotFoundError as error:
            raise RestoreError(
                f"there is no restore {self.path.name} in {self.root}",
                hint=f"{Advice.LIST_ROLLBACKS} lists the restores that can be rolled back.",
            ) from error
        except (ValueError, TypeError, KeyError) as error:
            raise RestoreError(
                f"the record of the restore {self.path.name} in {self.root} is damaged",
                hint=f"What was live before is in {self.path}/rollback, under its own paths.",
            ) from error

    def write(self, record: FilesRecord) -> FilesRecord:
        """Replace the record; return it."""
        write_durably(self.path / _RECORD, json.dumps(encode(record), separators=(",", ":")).encode("ascii"))
        return record

    def advance(self, record: FilesRecord, state: FilesState, **values: Any) -> FilesRecord:
        """Replace the record by one with another state; return that."""
        return self.write(replace(record, state=state, **values))

    def make(self) -> None:
        """Create the directory and its subdirectories, accessible to us alone."""
        with suppress(FileNotFoundError):
            remove_tree(self.path)  # it has no record: creating it was interrupted
        for path in (self.path.parent, self.path, *(self.path / part for part in _PARTS)):
            path.mkdir(mode=0o700, exist_ok=path == self.path.parent)
            drop_default_list(str(path))
        owner = os.stat(self.root)
        for place in (self.path / "rollback", self.path / "kept"):
            _give(place, owner)

    def hand_over(self) -> None:
        """Give the directory of a restore that is in place to the owner of the tree.

        Root made it closed to everybody else, so that nobody could change the stage. From now on the owner restores,
        rolls back and discards as well.
        """
        owner = os.stat(self.root)
        if os.geteuid() != 0 or owner.st_uid == 0:
            return
        with Tree(str(self.path / "stage")) as stage:
            for path, found in stage.below(""):
                if stat.S_ISDIR(found.st_mode):
                    give_away(stage.directory(path), owner)
        for place in (self.path / "stage", self.journal, self.path / _RECORD, self.path, self.path.parent):
            _give(place, owner)

    @contextmanager
    def places(self) -> Iterator[Places]:
        """The trees between which steps move entries."""
        stage, rollback, kept = (str(self.path / part) for part in _PARTS)
        with Tree(self.root) as live, Tree(stage) as staged, Tree(rollback) as old, Tree(kept) as others:
            yield Places(live=live, stage=staged, rollback=old, kept=others)

    def locked(self) -> AbstractContextManager[None]:
        """Keep other processes from working on restores of this tree.

        Raises:
            BusyError: another process works on one.
        """
        return locked_alone(self.path.parent, f"another process restores files in {self.root}")

    def remove(self) -> None:
        """Remove the directory, the record last; the top of the tree keeps its time."""
        before = os.stat(self.root)
        for part in _PARTS:
            with suppress(FileNotFoundError):
                remove_tree(self.path / part)
        self.journal.unlink(missing_ok=True)
        remove_tree(self.path)
        self.remove_parent()
        os.utime(self.root, ns=(before.st_atime_ns, before.st_mtime_ns))

    def remove_parent(self) -> None:
        """Remove the directory of all this tree's restores if it is empty."""
        with suppress(OSError):
            self.path.parent.rmdir()

    def held_bytes(self) -> int:
        """The bytes of content that it holds."""
        with Tree(str(self.path)) as tree:
            return sum(found.st_size for _, found in tree.below("") if not stat.S_ISDIR(found.st_mode))


def _give(path: Path, owner: os.stat_result) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        give_away(descriptor, owner)
    finally:
        os.close(descriptor)
