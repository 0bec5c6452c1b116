"""The plan and the report of a file restore."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003  (the codec reads the annotations)
from typing import TYPE_CHECKING, Any, Final

from portal.ops.codec import decode, encode
from portal.ops.restore.audit_chain import ChainReport  # noqa: TC001  (the codec reads the annotations)
from portal.ops.restore.files.record import FilesState
from portal.ops.units import human_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from portal.ops.errors import OpsError

_MOST_NAMED: Final = 20
"""The most paths shown to a person; the result has all of them."""


@dataclass(frozen=True, kw_only=True)
class FilesPlan:
    """The plan of a file restore to a directory.

    Arguments:
        place: the target directory.
        new: the number of new files; `new_bytes` is the size of their content.
        replaced: the number of files that would replace one of different type, size, time, mode or owner.
        same: the number of files that seem unchanged, judged without reading them.
        left: the number of files in the directory that are not in the backup.
        exact: whether those are moved aside instead of left.
        stage_bytes: the bytes that the stage takes; `free_bytes` are available.
        content_bytes: the content of everything that would be staged.
        examples: some names of new or replaced files.
        in_the_way: paths where there is something of another kind.
        warnings: warnings about the restore.
        blockers: the errors that make it impossible.
    """

    place: Path
    new: int
    new_bytes: int
    replaced: int
    replaced_bytes: int
    same: int
    left: int
    exact: bool
    stage_bytes: int
    free_bytes: int
    content_bytes: int = 0
    examples: tuple[str, ...] = ()
    in_the_way: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    blockers: tuple[OpsError, ...] = ()

    def lines(self) -> list[str]:
        """The plan in plain words."""
        lines = [f"To {self.place}:", f"{self._changes()}."]
        if self.left:
            stay = "stays" if self.left == 1 else "stay"
            what = "would be moved aside, into the rollback data" if self.exact else stay
            lines.append(f"{_files(self.left)} that the backup does not have {what}.")
        lines.append(f"The stage needs {human_bytes(self.stage_bytes)}; {human_bytes(self.free_bytes)} are free.")
        if self.examples:
            lines.append(f"For example: {', '.join(self.examples)}.")
        lines += [f"In the way: {path}." for path in self.in_the_way]
        return lines

    def _changes(self) -> str:
        """How many files would be new, replaced and the same, without those of which there is none."""
        changes = [
            *([f"{_files(self.new)} would be new ({human_bytes(self.new_bytes)})"] if self.new else []),
            *([f"{_files(self.replaced)} replaced ({human_bytes(self.replaced_bytes)})"] if self.replaced else []),
            *([f"{_files(self.same)} as in the backup, by size and time"] if self.same else []),
        ]
        return ", ".join(changes) or "There is no file in the backup"


@dataclass(frozen=True, kw_only=True)
class FilesReport:
    """The report of a file restore, or of its rollback.

    Arguments:
        place: the target directory.
        restore_id: the id for a rollback.
        state: the state of the restore now.
        new: the number of new files.
        replaced: the number of files that replaced another.
        same: the number of unchanged files, compared byte by byte.
        aside: the number of entries missing in the backup that were moved aside.
        placed_bytes: the size of the content that was put in place.
        taken_back: the number of entries that a rollback has moved.
        kept: paths that others have written since, and that a rollback has left or put into `kept/`.
        changed: paths that the restore had placed and others have changed; a rollback has moved them to the stage.
        warnings: warnings about the restore.
        chains: sentences about the hash chain of each audit log.
    """

    place: Path
    restore_id: str
    state: FilesState
    new: int = 0
    replaced: int = 0
    same: int = 0
    aside: int = 0
    placed_bytes: int = 0
    taken_back: int = 0
    kept: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    chains: tuple[ChainReport, ...] = ()

    def lines(self) -> list[str]:
        """The report in plain words."""
        if self.state is FilesState.ROLLED_BACK:
            moved = "1 entry was" if self.taken_back == 1 else f"{self.taken_back:,} entries were"
            lines = [f"{self.place}: as before; {moved} moved back."]
        else:
            lines = [f"{self.place}: {self.new:,} new, {self.replaced:,} replaced, {self.same:,} the same."]
        if self.aside:
            lines.append(f"{_files(self.aside)} or directories that the backup does not have were moved aside.")
        lines += _named("Written by others since, and kept", self.kept)
        lines += _named("Changed by others since, and now in the stage", self.changed)
        return [*lines, *(line for chain in self.chains for line in chain.lines())]

    def to_dict(self) -> dict[str, Any]:
        """The report as types of JSON."""
        found = encode(self)
        return {"path": found.pop("place"), **found}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> FilesReport:
        """The report from the output of `to_dict`."""
        return decode(cls, {"place" if name == "path" else name: value for name, value in facts.items()})


@dataclass(frozen=True, kw_only=True)
class FilesRestore:
    """A restore whose directory is still in a tree.

    Arguments:
        restore_id: the restore.
        started: the start time, in the format of the manifest.
        state: its state.
        held_bytes: the bytes that `discard_rollback_data` would free.
    """

    restore_id: str
    started: str
    state: FilesState
    held_bytes: int


def _named(what: str, paths: tuple[str, ...]) -> list[str]:
    more = len(paths) - _MOST_NAMED
    return [f"{what}: {path}." for path in paths[:_MOST_NAMED]] + ([f"{what}: {more:,} more."] if more > 0 else [])


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count:,} files"
