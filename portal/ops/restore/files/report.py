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
"""So many paths are named to a person; the result has all."""


@dataclass(frozen=True, kw_only=True)
class FilesPlan:
    """The plan of a file restore to a directory.

    Arguments:
        place: where the files go.
        new: how many would be new, and `new_bytes` of content.
        replaced: how many would take the place of others, by type, size, time, mode or owner.
        same: how many are there already, as far as that can be told without reading them.
        left: how many files are in the directory and not in the backup.
        exact: whether those are moved aside instead of left.
        stage_bytes: what the stage takes; `free_bytes` is what there is.
        content_bytes: the content of everything that would be staged.
        examples: a few names of files that would be new or replaced.
        in_the_way: paths where something of another kind is.
        warnings: what should be known.
        blockers: what makes it impossible.
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
        place: where the files went.
        restore_id: what takes it back.
        state: how far the restore is now.
        new: how many files were new.
        replaced: how many took the place of others.
        same: how many were there already, compared byte by byte.
        aside: how many entries that the backup does not have were moved aside.
        placed_bytes: the content of what was put in its place.
        taken_back: how many entries a rollback has moved.
        kept: paths that others have written since, and that a rollback has left or put into `kept/`.
        changed: paths that the restore had placed, others have written to, and a rollback has taken into the stage.
        warnings: what should be known.
        chains: for an audit log, what is to be said of its hash chain, file by file.
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
        """The report in the types of JSON."""
        found = encode(self)
        return {"path": found.pop("place"), **found}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> FilesReport:
        """The report that `to_dict` has put into the types of JSON."""
        return decode(cls, {"place" if name == "path" else name: value for name, value in facts.items()})


@dataclass(frozen=True, kw_only=True)
class FilesRestore:
    """A restore that is remembered in a tree.

    Arguments:
        restore_id: its name.
        started: when, as the manifest writes it.
        state: how far it is.
        held_bytes: what `discard_rollback_data` would free.
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
