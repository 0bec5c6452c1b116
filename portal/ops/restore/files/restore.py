"""Restores a tree of files: uploads in place, an audit log next to the live one.

    plan       count what would be new, replaced or left; changes nothing
    stage      write the archive's files inside the target's own file system
    apply      write the journal, then rename
    rollback   go through the journal backwards

Until `apply`, nothing live is changed, and `undo` leaves no trace. From then on, whatever the instant of a crash, the
restore can be continued or rolled back: see `journal.py`. An audit log is never overwritten: the restored one is put
next to it as `<name>.restored-<restore_id>`.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from portal.ops.archive.damage import is_below
from portal.ops.archive.protocol import is_indexed_archive
from portal.ops.errors import ConfigurationError, OpsError, RestoreError
from portal.ops.filesystem.attributes import Attributes
from portal.ops.filesystem.tree import Tree
from portal.ops.hints import Advice
from portal.ops.model import RESTORE_DIRECTORY, Component, timestamp
from portal.ops.restore.audit_chain import ChainReport, check_logs
from portal.ops.restore.files.changes import Changes, protected_paths
from portal.ops.restore.files.journal import (
    Do,
    Places,
    Tally,
    read_attributes,
    read_backward,
    read_forward,
    write_journal,
)
from portal.ops.restore.files.plan import Comparison
from portal.ops.restore.files.record import FilesRecord, FilesState, RestoreDirectory
from portal.ops.restore.files.refusals import explained
from portal.ops.restore.files.report import FilesPlan, FilesReport, FilesRestore
from portal.ops.restore.files.selection import Selection, choose, selected
from portal.ops.restore.files.stage import Stage, StageReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from portal.ops.archive.index import Member
    from portal.ops.archive.protocol import Archive
    from portal.ops.runtime.progress import Advance

__all__ = [
    "FileRestore",
    "FilesPlan",
    "FilesReport",
    "FilesRestore",
    "FilesState",
    "StageReport",
    "discard_rollback_data",
    "list_restores",
]

_BEGUN: Final = (FilesState.APPLYING, FilesState.APPLIED, FilesState.UNDOING)


@dataclass(frozen=True)
class FileRestore:
    """One restore of a component that consists of files; any process can continue what another has begun.

    Arguments:
        target: the directory of the uploads, or the audit log's directory or file. It need not exist; if it is a
            symlink, its target is restored.
        restore_id: the id of the restore.
        component: the component of the archive.
        exact: move entries that the backup does not have to the rollback data.
        patterns: restore only matching files; see `selection.matches`.
        protected: directories that are never moved, such as the repository, wherever they are.
        allow_outside_links: restore symlinks that lead out of the tree. The portal writes none, and data written
            through one later would land outside, so they are refused by default.

    Raises:
        ConfigurationError: the arguments contradict each other.
    """

    target: Path
    _: KW_ONLY
    restore_id: str
    component: Component
    exact: bool = False
    patterns: Sequence[str] = ()
    protected: Iterable[Path] = ()
    allow_outside_links: bool = False

    def __post_init__(self) -> None:
        if self.exact and self.patterns:
            raise ConfigurationError(
                "an exact restore of some files would move all others aside",
                hint="Leave out either --exact or --path.",
            )
        if self.component is Component.DATABASE or "/" in self.restore_id or self.restore_id in ("", ".", ".."):
            raise ConfigurationError(
                f"{self.component.value} cannot be restored as files under the name {self.restore_id!r}",
                hint="Name a component of files, and the restore without a slash.",
            )

    # -- the four verbs ---------------------------------------------------------------------------------------------

    def plan(self, members: Iterable[Member]) -> FilesPlan:
        """Compare the archive with the target; changes nothing.

        Arguments:
            members: the archive's members, all or the component's; with patterns they are iterated twice.

        Raises:
            ConfigurationError: the patterns match nothing.
            NotIntactError: the archive is damaged. Members that no portal's tree can hold are blockers of the plan.
        """
        prefix, (root, top) = self.component.member, self._root()
        comparison = Comparison(
            root=root,
            prefix=prefix,
            top=top,
            exact=self.exact,
            partial=self._is_partial(),
            protected=[os.path.realpath(path) for path in self.protected],
            allow_outside_links=self.allow_outside_links,
        )
        wanted: Iterable[Member]
        if self.patterns:
            selection = Selection(prefix, self.patterns)
            selection.prepare(members)
            wanted = filter(None, map(selection.take, members))
        else:
            wanted = (member for member in members if is_below(member.path, prefix))
        return comparison.plan(wanted, Path(root, top) if top else self.target)

    def stage_from(self, archive: Archive, jobs: int, advance: Advance = lambda _: None) -> StageReport:
        """Stage the selection; with patterns, only its frames are read from an archive with an index.

        Arguments:
            jobs: threads that decompress or, for many files, the most helper processes.
            advance: called with the number of content bytes after each write, or when they are passed to a helper.

        Raises:
            OpsError: as `stage`.
        """
        choice = choose(archive, self.component.member, self.patterns)
        if not is_indexed_archive(archive):
            return self.stage(selected(archive, choice, jobs), advance)
        return self._stage(lambda stage: stage.fill_from(archive.layers(), choice, jobs), advance)

    def stage(
        self, contents: Iterator[tuple[Member, Iterator[memoryview]]], advance: Advance = lambda _: None
    ) -> StageReport:
        """Write the members of the component to the stage; everything is on the disk when this returns.

        After a failure, the stage is removed.

        Raises:
            NotIntactError: the archive is damaged or hostile.
            DiskFullError: the disk is full.
            AccessDeniedError: the target cannot be written.
            RestoreError: the operating system refused for another reason, or a restore of that id exists.
        """
        return self._stage(lambda stage: stage.fill(contents), advance)

    def apply(self) -> FilesReport:
        """Put the stage in place, or continue to; does nothing if that is done.

        Raises:
            OpsError: it failed, and the previous data is in place again.
        """
        directory = self._directory()
        record = directory.read()
        if record.state is FilesState.APPLIED:
            return self._report(record)
        if record.state not in (FilesState.STAGED, FilesState.APPLYING):
            raise RestoreError(
                f"the restore {self.restore_id} is {record.state.value.replace('_', ' ')}, and cannot be applied",
                hint="Start a new restore.",
            )
        with directory.locked():
            try:
                record = self._apply(directory, record)
            except (OSError, OpsError) as error:
                self._give_up(directory)
                if isinstance(error, OSError):
                    raise explained(error, "to put the files in place", directory.root) from error
                raise
        return self._report(record)

    def rollback(self) -> FilesReport:
        """Roll the restore back, or continue to, and remove its directory.

        If others have changed what was restored, or have written what stood in the way, their data stays in the
        restore's directory. A directory created for the restore is removed if it is empty.

        Raises:
            OpsError: it failed, and can be repeated.
        """
        directory = self._directory()
        if not directory.exists():  # an earlier rollback was complete but for some removals
            if directory.path.exists():
                directory.remove()
            directory.remove_parent()
            return FilesReport(place=self.target, restore_id=self.restore_id, state=FilesState.ROLLED_BACK)
        record = directory.read()
        with directory.locked():
            record, tally = _take_back(directory, record)
            if not _holds_work_of_others(directory):
                directory.remove()
                _remove_created(record.created)
        return self._report(record, tally)

    # -- after a crash ----------------------------------------------------------------------------------------------

    def is_begun(self) -> bool:
        """True if live data was changed."""
        directory = self._directory()
        return directory.exists() and directory.read().state in _BEGUN

    def undo(self) -> None:
        """Leave no trace of the restore: roll back what was applied, and remove the stage."""
        directory = self._directory()
        if not directory.path.exists():
            directory.remove_parent()
            return
        if directory.exists():
            with directory.locked():
                _take_back(directory, directory.read())
        self._remove(directory)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _root(self) -> tuple[str, str]:
        """The top of the tree to work in, and the name in it to restore: empty for the whole tree."""
        real = os.path.realpath(self.target)
        if self.component is Component.AUDIT_LOGS:
            return os.path.dirname(real), f"{os.path.basename(real)}.restored-{self.restore_id}"
        return real, ""

    def _directory(self) -> RestoreDirectory:
        """The restore's directory. An audit log may lie in the uploads, and both then have their directories there."""
        suffix = "" if self.component is Component.MEDIA else f".{self.component.value}"
        return RestoreDirectory(self._root()[0], f"{self.restore_id}{suffix}")

    def _is_partial(self) -> bool:
        return bool(self.patterns) or self.component is not Component.MEDIA

    def _begin(self, root: str, created: Sequence[str]) -> FilesRecord:
        """Create the target if it is missing, and the restore's directory in it."""
        os.makedirs(root, mode=0o755, exist_ok=True)
        record = FilesRecord(
            restore_id=self.restore_id,
            component=self.component,
            target=str(self.target),
            started=timestamp(datetime.now(UTC)),
            created=tuple(created),
            root=Attributes.at(root),
        )
        directory = self._directory()
        directory.make()
        return directory.write(record)

    def _stage(self, fill: Callable[[Stage], StageReport], advance: Advance) -> StageReport:
        root, top = self._root()
        if self._directory().exists():
            raise RestoreError(
                f"there is a restore {self.restore_id} in {root} already", hint="Give this one another name."
            )
        created = _missing(root)
        try:
            record = self._begin(root, created)
            with self._directory().locked():
                return self._fill(record, fill, top, advance)
        except BaseException as error:
            self.undo()
            _remove_created(created)
            if isinstance(error, OSError):
                raise explained(error, "to stage the files", root) from error
            raise

    def _fill(
        self, record: FilesRecord, fill: Callable[[Stage], StageReport], top: str, advance: Advance
    ) -> StageReport:
        directory = self._directory()
        with Tree(str(directory.path / "stage")) as tree:
            stage = Stage(
                tree=tree,
                prefix=self.component.member,
                top=top,
                allow_outside_links=self.allow_outside_links,
                advance=advance,
            )
            report = fill(stage)
            if top and _is_file(os.path.realpath(self.target), has_directory=top in stage.attributes):
                _flatten(tree, top)
            directory.advance(record, FilesState.STAGED, attributes=stage.attributes, warnings=report.warnings)
        return report

    def _apply(self, directory: RestoreDirectory, record: FilesRecord) -> FilesRecord:
        with directory.places() as places:
            if record.state is FilesState.STAGED:
                changes = self._changes(places, record)
                write_journal(directory.journal, changes.steps())
                figures = {
                    "new": changes.new,
                    "replaced": changes.replaced,
                    "same": changes.same,
                    "aside": changes.aside,
                    "placed_bytes": changes.bytes_placed,
                }
                record = directory.advance(record, FilesState.APPLYING, figures=figures)  # live data changes now
            _forward(directory, places)
            places.live.sync()
        record = directory.advance(record, FilesState.APPLIED)
        directory.hand_over()
        return record

    def _changes(self, places: Places, record: FilesRecord) -> Changes:
        return Changes(
            live=places.live,
            stage=places.stage,
            attributes=record.attributes,
            root=record.root,
            exact=self.exact and self.component is Component.MEDIA,
            partial=self._is_partial(),
            protected=protected_paths(places.live.top, map(os.path.realpath, self.protected)),
        )

    def _give_up(self, directory: RestoreDirectory) -> None:
        """After a failure: put everything back, and leave no trace."""
        _take_back(directory, directory.read())
        self._remove(directory)

    def _remove(self, directory: RestoreDirectory) -> None:
        record = directory.read() if directory.exists() else None
        if record and record.state not in _BEGUN:
            os.utime(directory.root, ns=(record.root.mtime_ns, record.root.mtime_ns))
        directory.remove()
        _remove_created(record.created if record else ())

    def _report(self, record: FilesRecord, tally: Tally | None = None) -> FilesReport:
        root, top = self._root()
        tally = tally or Tally()
        return FilesReport(
            place=Path(root, top) if top else self.target,
            restore_id=record.restore_id,
            state=record.state,
            **record.figures,
            taken_back=tally.moved,
            kept=tuple(tally.kept),
            changed=tuple(tally.changed),
            warnings=record.warnings,
            chains=self._chains(record.state, Path(root, top)),
        )

    def _chains(self, state: FilesState, place: Path) -> tuple[ChainReport, ...]:
        if self.component is not Component.AUDIT_LOGS or state is not FilesState.APPLIED or not place.exists():
            return ()
        return tuple(check_logs(place, Path(os.path.realpath(self.target))))


def list_restores(target: Path) -> list[FilesRestore]:
    """The restores whose directories are in the tree of a target, newest first.

    Raises:
        RestoreError: a record is damaged.
    """
    found = [
        FilesRestore(
            restore_id=record.restore_id,
            started=record.started,
            state=record.state,
            held_bytes=directory.held_bytes(),
        )
        for directory, record in _remembered(target)
    ]
    return sorted(found, key=lambda one: (one.started, one.restore_id), reverse=True)


def discard_rollback_data(target: Path, restore_id: str) -> int:
    """Remove everything kept for a restore, which can no longer be rolled back; return the number of bytes freed.

    Raises:
        RestoreError: there is no such restore, or it is unfinished.
    """
    for directory, record in _remembered(target):
        if record.restore_id != restore_id:
            continue
        if record.state in (FilesState.APPLYING, FilesState.UNDOING):
            raise RestoreError(
                f"the restore {restore_id} was interrupted",
                hint=f"Finish it or roll it back first: {Advice.FINISH_RESTORE}.",
            )
        with directory.locked():
            freed = directory.held_bytes()
            directory.remove()
            return freed
    raise RestoreError(
        f"there is no restore {restore_id} in {target}",
        hint=f"{Advice.LIST_ROLLBACKS} lists the restores.",
    )


def _remembered(target: Path) -> Iterator[tuple[RestoreDirectory, FilesRecord]]:
    """The restores of a target: those of uploads are inside it, those of an audit log next to it."""
    real = os.path.realpath(target)
    for root in (real, os.path.dirname(real)):
        with suppress(FileNotFoundError, NotADirectoryError):
            names = sorted(os.listdir(os.path.join(root, RESTORE_DIRECTORY)))
            for directory in (RestoreDirectory(root, name) for name in names):
                if directory.exists() and os.path.realpath((record := directory.read()).target) == real:
                    yield directory, record


def _holds_work_of_others(directory: RestoreDirectory) -> bool:
    """True if a restore that was rolled back keeps data that others have written."""
    if not directory.is_complete():  # its removal had begun since it was listed
        return False
    with directory.places() as places:
        if places.kept.names(""):
            return True
        for step in read_forward(directory.journal) if directory.journal.exists() else ():
            found = places.stage.look(step.path) if step.do is Do.PLACE else None
            if found is not None and (found.st_size, found.st_mtime_ns) != (step.size, step.mtime_ns):
                return True
    return False


def _take_back(directory: RestoreDirectory, record: FilesRecord) -> tuple[FilesRecord, Tally]:
    """Move everything back, then update the record; return the findings."""
    tally = Tally()
    if record.state not in _BEGUN:
        return record, tally
    record = directory.advance(record, FilesState.UNDOING)
    try:
        with directory.places() as places:
            _backward(directory, places, tally)
            places.live.sync()
    except OSError as error:
        raise explained(error, "to roll the restore back", directory.root) from error
    return directory.advance(record, FilesState.ROLLED_BACK), tally


def _forward(directory: RestoreDirectory, places: Places) -> None:
    _open_up(directory, places)
    places.take(read_forward(directory.journal))


def _backward(directory: RestoreDirectory, places: Places, tally: Tally) -> None:
    _open_up(directory, places)
    for step in read_backward(directory.journal):
        if step.do is not Do.ATTRIBUTES:
            places.take_back(step, tally)
    for step in read_attributes(directory.journal):
        places.take_back(step, tally)


def _open_up(directory: RestoreDirectory, places: Places) -> None:
    for step in read_attributes(directory.journal):
        places.open_up(step)


def _is_file(log: str, *, has_directory: bool) -> bool:
    """True if the live log is a file; where there is none, if the one in the archive was.

    Arguments:
        has_directory: whether the archive has an entry for the directory of the logs.
    """
    return not os.path.isdir(log) if os.path.lexists(log) else not has_directory


def _flatten(tree: Tree, top: str) -> None:
    """Put a restored audit log that is a single file at the top of the stage."""
    names = tree.names(top)
    found = tree.look(f"{top}/{names[0]}") if len(names) == 1 else None
    if found is None or not stat.S_ISREG(found.st_mode):
        return
    tree.forget()
    stage = Path(tree.top)
    (stage / top).rename(stage / f"{top}.directory")
    (stage / f"{top}.directory" / names[0]).rename(stage / top)
    (stage / f"{top}.directory").rmdir()


def _missing(path: str) -> tuple[str, ...]:
    """The directories to create for a path, outermost first."""
    if os.path.isdir(path):
        return ()
    return (*_missing(os.path.dirname(path)), path)


def _remove_created(created: Sequence[str]) -> None:
    for path in reversed(created):
        with suppress(OSError):
            os.rmdir(path)
