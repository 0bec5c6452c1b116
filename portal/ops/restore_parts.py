"""The parts of a restore: each component of an archive, and where it goes.

A part can be planned, staged, applied, and taken back; until it is applied it can be undone without a trace, and from
then on finished. `restore.py` drives all parts of a restore through these steps together.
"""

from __future__ import annotations

import os
import shutil
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from portal.ops.archive.lanes import available_cores
from portal.ops.archive.plain import PlainArchive
from portal.ops.archive.reader import ArchiveReader
from portal.ops.errors import NotIntactError
from portal.ops.model import Component
from portal.ops.sources.dump_header import HEAD_BYTES, dump_major
from portal.ops.targets.database import DatabaseRestore, DatabaseState, RestoreMode
from portal.ops.targets.files import FileRestore

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from portal.ops.archive.index import Member
    from portal.ops.manifest import Manifest
    from portal.ops.process import ProcessRunner
    from portal.ops.restore_model import PartPlan, RestoreConfig
    from portal.ops.targets.database import DatabaseReport

Archive = ArchiveReader | PlainArchive


class Part(Protocol):
    """One component on its way to its place."""

    component: Component

    def plan(self, archive: Archive, manifest: Manifest) -> PartPlan:
        """Look at everything, touch nothing."""

    def stage(self, archive: Archive, manifest: Manifest) -> None:
        """Put the component beside what is live."""

    def apply(self) -> dict[str, Any]:
        """Let it take the place of what is live; figures and names for the report. Goes on where it was cut off."""

    def is_begun(self) -> bool:
        """Whether `apply` has touched anything live."""

    def undo(self) -> None:
        """Remove what was staged; harmless where there is nothing."""

    def roll_back(self) -> dict[str, Any]:
        """Put back what was live before; can be cut off and called again."""

    def record(self) -> dict[str, Any]:
        """What `PartMaker.from_record` needs."""


class DatabasePart:
    """The database: its dump is put on the disk, and from there into the server.

    Arguments:
        restore: what knows the server.
        directory: for the dump, and what a restore in place needs to be taken back.
        jobs: how many threads decompress.
    """

    component = Component.DATABASE

    def __init__(self, restore: DatabaseRestore, directory: Path, jobs: int) -> None:
        self._restore = restore
        self._dump = directory / "database.dump"
        self._jobs = jobs

    def plan(self, archive: Archive, manifest: Manifest) -> PartPlan:
        """What would become of the database."""
        with _dump_of(archive, 1) as (member, content):
            head = bytes(next(content, memoryview(b""))[:HEAD_BYTES])
        return self._restore.plan(dump_major=dump_major(head), dump_bytes=member.size, row_counts=_rows_of(manifest))

    def stage(self, archive: Archive, manifest: Manifest) -> None:
        """Fill and check a database beside the live one, where the mode is swap."""
        self._dump.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._dump, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with _dump_of(archive, self._jobs) as (_, content), open(descriptor, "wb", buffering=0) as file:
            for piece in content:
                file.write(piece)
        self._restore.stage(self._dump, _rows_of(manifest))

    def apply(self) -> dict[str, Any]:
        """Swap, or replace in one transaction."""
        report = self._restore.apply()
        self._dump.unlink(missing_ok=True)
        return _facts(report)

    def is_begun(self) -> bool:
        """Whether the live name means the restored database."""
        return self._restore.state() is DatabaseState.APPLIED

    def undo(self) -> None:
        """Drop the database that was being filled."""
        self._restore.undo()
        shutil.rmtree(self._dump.parent, ignore_errors=True)

    def roll_back(self) -> dict[str, Any]:
        """Make live again what was live before."""
        return _facts(self._restore.rollback())

    def record(self) -> dict[str, Any]:
        """The name of the database, and how it is replaced."""
        return {"database": self._restore.target.name}


class FilesPart:
    """A tree of files: the uploads, or the audit log.

    Arguments:
        restore: what knows the place.
        jobs: how many threads decompress.
    """

    def __init__(self, restore: FileRestore, jobs: int) -> None:
        self.component = restore.component
        self._restore = restore
        self._jobs = jobs

    def plan(self, archive: Archive, manifest: Manifest) -> PartPlan:  # noqa: ARG002 - the index says it all
        """Which files would be new, replaced, left."""
        return self._restore.plan(_members(archive))

    def stage(self, archive: Archive, manifest: Manifest) -> None:  # noqa: ARG002
        """Put the files into the stage."""
        self._restore.stage_from(archive, self._jobs)

    def apply(self) -> dict[str, Any]:
        """Exchange by renames."""
        return self._restore.apply().to_dict()

    def is_begun(self) -> bool:
        """Whether a file has been renamed."""
        return self._restore.is_begun()

    def undo(self) -> None:
        """Remove the stage."""
        self._restore.undo()

    def roll_back(self) -> dict[str, Any]:
        """Rename everything back."""
        return self._restore.rollback().to_dict()

    def record(self) -> dict[str, Any]:
        """The place."""
        return {"path": str(self._restore.target)}


@dataclass(frozen=True, kw_only=True)
class PartMaker:
    """Makes the parts of one restore, also of one that another process has begun.

    Arguments:
        restore_id: which restore.
        directory: the restore's own, in the repository.
        repository: never touched by a restore of files, wherever it lies.
    """

    config: RestoreConfig
    runner: ProcessRunner
    restore_id: str
    directory: Path
    repository: Path

    def parts(self, components: Iterable[Component]) -> list[Part]:
        """The parts of a new restore; the database first: it alone cannot be put in place bit by bit."""
        places = {Component.MEDIA: self.config.media_path, Component.AUDIT_LOGS: self.config.audit_log_path}
        return [self._part(component, places.get(component)) for component in components]

    def from_record(self, parts: Mapping[str, Mapping[str, Any]]) -> list[Part]:
        """The parts of a restore that was recorded, with what `Part.record` said of each."""
        made: list[Part] = []
        for name, facts in parts.items():
            component = Component(name)
            if component is Component.DATABASE:
                made.append(self._database(str(facts["database"])))
            else:
                made.append(self._part(component, str(facts["path"])))
        return made

    def _part(self, component: Component, place: str | Path | None) -> Part:
        if component is Component.DATABASE:
            return self._database(self.config.target_database)
        assert place is not None
        return FilesPart(
            FileRestore(
                Path(place),
                restore_id=self.restore_id,
                component=component,
                exact=self.config.exact,
                patterns=self.config.patterns,
                protected=[self.repository],
                allow_outside_links=self.config.allow_outside_links,
            ),
            self._jobs,
        )

    def _database(self, name: str | None) -> DatabasePart:
        restore = DatabaseRestore(
            self.config.database,
            runner=self.runner,
            bin_dir=Path(self.config.pg_bin_dir) if self.config.pg_bin_dir else None,
            jobs=self._jobs,
            restore_id=self.restore_id,
            mode=RestoreMode(self.config.mode),
            target_database=name,
            create_database=self.config.create_database,
            safety_dump=self.directory / "before.dump",
        )
        return DatabasePart(restore, self.directory, self._jobs)

    @property
    def _jobs(self) -> int:
        return self.config.jobs or available_cores()


@contextmanager
def _dump_of(archive: Archive, jobs: int) -> Iterator[tuple[Member, Iterator[memoryview]]]:
    """The dump's member, and its content.

    Raises:
        NotIntactError: the archive does not have it.
    """
    contents = archive.contents(jobs, below=Component.DATABASE.member)
    with closing(contents):  # type: ignore[type-var]  # both archives' are generators
        found = next(contents, None)
        if found is None:
            raise NotIntactError(
                f"the archive holds no {Component.DATABASE.member}, although its manifest says so",
                hint="Take another archive.",
            )
        yield found


def _facts(report: DatabaseReport) -> dict[str, Any]:
    return {
        "database": report.database,
        "mode": report.mode.value,
        "downtime_seconds": round(report.downtime_seconds, 3),
        "kept_database": report.kept_database,
        "tables": len(report.row_counts),
        "rows": sum(report.row_counts.values()),
        "warnings": list(report.warnings),
    }


def _members(archive: Archive) -> Iterator[Member]:
    """The members of an archive; one without an index has to be read for them."""
    if isinstance(archive, ArchiveReader):
        yield from archive.members()
    else:
        for member, _ in archive.contents(1):
            yield member


def _rows_of(manifest: Manifest) -> dict[str, int]:
    rows = manifest.details.get(Component.DATABASE.value, {}).get("rows", {})
    return {str(table): int(count) for table, count in rows.items()}
