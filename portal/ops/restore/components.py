"""The parts of a restore: each component of an archive and its target.

A part can be planned, staged, applied and rolled back. Before `apply` it can be undone without a trace; after that it
can be finished. `restoration.py` and `history.py` take all parts of a restore through these steps together.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from portal.ops.archive.damage import is_below
from portal.ops.archive.index import MemberType
from portal.ops.errors import DiskFullError, NotIntactError
from portal.ops.hints import another_archive
from portal.ops.model import RESTORE_DIRECTORY, Component
from portal.ops.postgres.database_names import Names, Role
from portal.ops.postgres.dump_format import HEAD_BYTES, dump_major
from portal.ops.repository.durable import make_hidden
from portal.ops.restore.database.model import DatabaseState, RestoreMode
from portal.ops.restore.dump_source import backed_up, dump_content, dump_of, identity_of, objects_of, rows_of
from portal.ops.restore.files.free_space import room
from portal.ops.restore.files.restore import FileRestore, discard_rollback_data, list_restores
from portal.ops.runtime.progress import available_cores
from portal.ops.units import human_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from portal.ops.archive.index import Member
    from portal.ops.archive.protocol import Archive
    from portal.ops.manifest import Manifest
    from portal.ops.postgres.toc import Contents
    from portal.ops.restore.config import RestoreConfig
    from portal.ops.restore.database.model import DatabaseReport
    from portal.ops.restore.database.restore import DatabaseRestore
    from portal.ops.restore.plan import PartPlan
    from portal.ops.runtime.process import ProcessRunner
    from portal.ops.runtime.progress import Advance
    from portal.ops.settings.database_url import DatabaseTarget


@dataclass(frozen=True, kw_only=True)
class PlannedPart:
    """The plan for one component, with everything that later steps need.

    Arguments:
        part: the part that made the plan.
        plan: the plan for people.
        manifest: the archive's manifest.
        stage_place: the directory of the stage, or the closest existing one above it.
        stage_bytes: the bytes that the stage takes there.
        content_bytes: the bytes of content that staging will report as progress.
        record: the facts that `PartMaker.from_record` needs.
    """

    part: Part
    plan: PartPlan
    manifest: Manifest
    stage_place: Path
    stage_bytes: int
    content_bytes: int
    record: Mapping[str, Any]

    @property
    def component(self) -> Component:
        """The component."""
        return self.part.component


class Part(Protocol):
    """One component of a restore."""

    component: Component

    def plan(self, archive: Archive, manifest: Manifest) -> PlannedPart:
        """Examine everything; change nothing."""

    def stage(self, planned: PlannedPart, archive: Archive, advance: Advance) -> None:
        """Write the component next to the live data.

        Arguments:
            planned: the result of `plan`.
            advance: called with the number of content bytes after each write.
        """

    def apply(self) -> dict[str, Any]:
        """Replace the live data by the stage; return figures and names for the report."""

    def finish(self) -> dict[str, Any]:
        """Apply what another process has staged, or continue it; does nothing if that is done."""

    def is_begun(self) -> bool:
        """True if live data was changed and not rolled back yet."""

    def undo(self) -> None:
        """Roll back what was applied and remove what was staged; does nothing if there is neither."""

    def roll_back(self) -> dict[str, Any]:
        """Put the previous data back; may be interrupted and repeated while `is_begun` is true."""

    def record(self) -> dict[str, Any]:
        """The facts from which `PartMaker.from_record` recreates the part."""

    def kept(self, *, rolled_back: bool) -> str:
        """A description of the rollback data, if any; from the record, without asking a server."""

    def discard(self) -> tuple[str, ...]:
        """Remove the rollback data, if any; return warnings about data of others that goes with it."""


class DatabasePart:
    """The database: its dump goes from the archive straight to the server or, in place, through a file.

    Arguments:
        restore: performs the restore on the server.
        directory: the directory for the dump and for rollback data, if restored in place.
        mode: how to replace the database; a plan decides what ``auto`` means.
        create_database: create the database if there is none.
        jobs: how many threads decompress.
    """

    component = Component.DATABASE

    def __init__(
        self, restore: DatabaseRestore, directory: Path, *, mode: RestoreMode, create_database: bool, jobs: int
    ) -> None:
        self._restore = restore
        self._directory = directory
        self._dump = directory / "database.dump"
        self._mode = mode
        self._create_database = create_database
        self._jobs = jobs
        self._head: tuple[bytes, Contents] | None = None

    def plan(self, archive: Archive, manifest: Manifest) -> PlannedPart:
        """The plan for the database.

        In place, the repository needs room for the dump during the restore, and for a safety dump of the live database,
        of about the same size, as long as the restore can be rolled back.
        """
        with dump_content(archive, 1) as (member, content):
            head = bytes(next(content, memoryview(b""))[:HEAD_BYTES])
        major = dump_major(head)
        self._head = None if major is None else dump_of(archive, manifest, self._dump, jobs=1).head()
        plan = self._restore.plan(
            dump_major=major,
            dump_bytes=member.size,
            row_counts=rows_of(manifest),
            backed_up=None if self._head is None else backed_up(manifest, self._head[1]),
        )
        return PlannedPart(
            part=self,
            plan=plan,
            manifest=manifest,
            stage_place=self._directory,
            stage_bytes=member.size * (2 if plan.mode is RestoreMode.IN_PLACE else 0),
            content_bytes=member.size,
            record={**self.record(), "mode": plan.mode.value},
        )

    def stage(self, planned: PlannedPart, archive: Archive, advance: Advance) -> None:
        """Fill and check a database next to the live one (swap), or read the dump to its end (in place)."""
        self._make_directory()
        manifest = planned.manifest
        dump = dump_of(archive, manifest, self._dump, jobs=self._jobs, advance=advance, head=self._head)
        self._restore.stage(dump, rows_of(manifest), identity_of(manifest), objects_of(manifest))

    def apply(self) -> dict[str, Any]:
        """Swap, or replace in one transaction."""
        return self._applied(self._restore.apply())

    def finish(self) -> dict[str, Any]:
        """Swap, unless that was done already."""
        return self._applied(self._restore.finish())

    def is_begun(self) -> bool:
        """True if the live name belongs to the restored database."""
        return self._restore.state() is DatabaseState.APPLIED

    def undo(self) -> None:
        """Drop the scratch database, or swap it with the previous one again."""
        self._restore.undo()
        shutil.rmtree(self._directory, ignore_errors=True)

    def roll_back(self) -> dict[str, Any]:
        """Make the previous database live again."""
        return _facts(self._restore.rollback())

    def record(self) -> dict[str, Any]:
        """The database, its server, and how it is replaced."""
        target = self._restore.target
        return {
            "database": target.name,
            "host": target.host,
            "port": target.port,
            "mode": self._mode.value,
            "create_database": self._create_database,
            "owner": self._restore.owner,
        }

    def kept(self, *, rolled_back: bool) -> str:
        """The name of the kept database, or of the directory with the safety dump."""
        if self._mode is RestoreMode.IN_PLACE:
            return "" if rolled_back else f"the safety dump in {self._directory}"
        if self._restore.replaced_nothing and not rolled_back:
            return ""
        role = Role.UNDONE if rolled_back else Role.BEFORE
        target = self._restore.target
        name = Names.of(target.name, self._restore.restore_id).name(role)
        return f"database {name} on {target.host}:{target.port}"

    def discard(self) -> tuple[str, ...]:
        """Drop the kept database and remove the safety dump; return warnings."""
        from portal.ops.restore.database.restore import drop_old, list_old_databases

        said: list[str] = []
        if self._mode is not RestoreMode.IN_PLACE:
            for old in list_old_databases(self._restore.target):
                if old.marked.restore_id == self._restore.restore_id:
                    said += drop_old(self._restore.target, old.marked.name)
        shutil.rmtree(self._directory, ignore_errors=True)
        return tuple(said)

    def _make_directory(self) -> None:
        """Create the restore's directory in the repository."""
        make_hidden(self._directory.parent)
        make_hidden(self._directory)

    def _applied(self, report: DatabaseReport) -> dict[str, Any]:
        self._dump.unlink(missing_ok=True)
        with suppress(OSError):  # an in-place restore keeps its safety dump there
            self._directory.rmdir()
        return _facts(report)


class FilesPart:
    """A tree of files: the uploads, or the audit log.

    Arguments:
        restore: performs the restore in the target directory.
        jobs: how many threads decompress.
    """

    def __init__(self, restore: FileRestore, jobs: int) -> None:
        self.component = restore.component
        self._restore = restore
        self._jobs = jobs

    def plan(self, archive: Archive, manifest: Manifest) -> PlannedPart:
        """Count files that would be new, replaced or left; the stage is inside the tree.

        Raises:
            NotIntactError: the archive does not hold what its manifest lists.
        """
        members = _Counted(archive, self.component, manifest)
        plan = self._restore.plan(members)
        members.check()
        return PlannedPart(
            part=self,
            plan=plan,
            manifest=manifest,
            stage_place=self._restore.target,
            stage_bytes=plan.stage_bytes,
            content_bytes=plan.content_bytes,
            record=self.record(),
        )

    def stage(self, planned: PlannedPart, archive: Archive, advance: Advance) -> None:  # noqa: ARG002 - the index says it
        """Write the files to the stage."""
        self._restore.stage_from(archive, self._jobs, advance)

    def apply(self) -> dict[str, Any]:
        """Exchange the files by renames. Doubts about the chain of an audit log become warnings."""
        report = self._restore.apply()
        doubts = (warning for chain in report.chains for warning in chain.warnings())
        return report.to_dict() | {"warnings": [*report.warnings, *doubts]}

    def finish(self) -> dict[str, Any]:
        """Continue the renames."""
        return self.apply()

    def is_begun(self) -> bool:
        """True if a file has been renamed."""
        return self._restore.is_begun()

    def undo(self) -> None:
        """Reverse all renames and remove the stage."""
        self._restore.undo()

    def roll_back(self) -> dict[str, Any]:
        """Reverse all renames and clear the report's figures."""
        return self._restore.rollback().to_dict() | {"warnings": []}

    def record(self) -> dict[str, Any]:
        """The target and the options."""
        return {
            "path": os.path.realpath(self._restore.target),
            "exact": self._restore.exact,
            "patterns": list(self._restore.patterns),
        }

    def kept(self, *, rolled_back: bool) -> str:
        """The restore's directory in the tree; a rollback removes it unless it holds work of others."""
        target = Path(os.path.realpath(self._restore.target))
        root = target.parent if self.component is Component.AUDIT_LOGS else target
        if rolled_back and not os.path.lexists(root / RESTORE_DIRECTORY / self._restore.restore_id):
            return ""
        what = "what was restored" if rolled_back else "what was replaced"
        return f"{what} of {target}, in {root / RESTORE_DIRECTORY}"

    def discard(self) -> tuple[str, ...]:
        """Remove the restore's directory in the tree."""
        target = self._restore.target
        if any(one.restore_id == self._restore.restore_id for one in list_restores(target)):
            discard_rollback_data(target, self._restore.restore_id)
        return ()


@dataclass(frozen=True, kw_only=True)
class PartMaker:
    """Makes the parts of a restore, new or begun by another process.

    Arguments:
        restore_id: the restore.
        directory: the restore's own directory in the repository.
        repository: the repository, which a restore of files never changes, wherever it is.
        database_part: makes the database part; replaced if the database does not come from an archive.
    """

    config: RestoreConfig
    runner: ProcessRunner
    restore_id: str
    directory: Path
    repository: Path
    database_part: Callable[..., DatabasePart] = DatabasePart

    def parts(self, components: Iterable[Component]) -> list[Part]:
        """The parts of a new restore."""
        config = self.config
        places = {Component.MEDIA: config.media_path, Component.AUDIT_LOGS: config.audit_log_path}
        made: list[Part] = []
        for component in components:
            if component is Component.DATABASE:
                made.append(
                    self._database(
                        replace(config.database, name=config.target_database or config.db_name),
                        RestoreMode(config.mode),
                        create_database=config.create_database,
                        owner=config.owner,
                    )
                )
            else:
                place = places[component]
                assert place is not None
                made.append(self._files(component, Path(place), exact=config.exact, patterns=config.patterns))
        return made

    def from_record(self, parts: Mapping[str, Mapping[str, Any]]) -> list[Part]:
        """Recreate the parts of a recorded restore from what `Part.record` returned.

        User and password come from the present configuration; records contain neither.
        """
        made: list[Part] = []
        for name, facts in parts.items():
            component = Component(name)
            if component is Component.DATABASE:
                place = {"name": facts["database"], "host": facts["host"], "port": facts["port"]}
                target = replace(self.config.database, **place)
                made.append(
                    self._database(
                        target,
                        RestoreMode(facts["mode"]),
                        create_database=facts["create_database"],
                        owner=facts.get("owner"),
                    )
                )
            else:
                patterns = tuple(facts["patterns"])
                made.append(self._files(component, Path(facts["path"]), exact=facts["exact"], patterns=patterns))
        return made

    def _files(self, component: Component, place: Path, *, exact: bool, patterns: tuple[str, ...]) -> FilesPart:
        restore = FileRestore(
            place,
            restore_id=self.restore_id,
            component=component,
            exact=exact,
            patterns=patterns,
            protected=[self.repository],
            allow_outside_links=self.config.allow_outside_links,
        )
        return FilesPart(restore, self._jobs)

    def _database(
        self, target: DatabaseTarget, mode: RestoreMode, *, create_database: bool, owner: str | None
    ) -> DatabasePart:
        from portal.ops.restore.database.restore import DatabaseRestore  # imported late: it loads the database driver

        restore = DatabaseRestore(
            target,
            runner=self.runner,
            bin_dir=Path(self.config.pg_bin_dir) if self.config.pg_bin_dir else None,
            jobs=self._jobs,
            restore_id=self.restore_id,
            mode=mode,
            create_database=create_database,
            owner=owner,
            safety_dump=self.directory / "before.dump",
        )
        return self.database_part(restore, self.directory, mode=mode, create_database=create_database, jobs=self._jobs)

    @property
    def _jobs(self) -> int:
        return self.config.jobs or available_cores()


def short_of_room(planned: Iterable[PlannedPart]) -> list[DiskFullError]:
    """Errors for disks without room for all stages together; a part's own plan reports those of a single stage."""
    needed: dict[int, int] = {}
    places: dict[int, list[Path]] = {}
    with_dump: set[int] = set()
    for one in planned:
        above = _existing(one.stage_place)
        device = os.stat(above).st_dev
        needed[device] = needed.get(device, 0) + one.stage_bytes
        places.setdefault(device, []).append(above)
        with_dump |= {device} if one.component is Component.DATABASE and one.stage_bytes else set()
    return [
        _short(places[device], room(str(places[device][0])), needed[device])
        for device in sorted(with_dump)
        if needed[device] > room(str(places[device][0]))
    ]


def _short(places: list[Path], free: int, needed: int) -> DiskFullError:
    return DiskFullError(
        f"the restore needs about {human_bytes(needed)} for a while in {' and '.join(map(str, places))}, and "
        f"{human_bytes(free)} are free there",
        hint="Make room; or set BACKUP_LOCAL_PATH to a directory on a larger disk, and give the archive by its path.",
    )


def _existing(path: Path) -> Path:
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.is_dir())


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


class _Counted:
    """Gives access to the members of an archive and counts those of a component on the way.

    Arguments:
        manifest: states the expected number.
    """

    def __init__(self, archive: Archive, component: Component, manifest: Manifest) -> None:
        self._archive = archive
        self._component = component
        self._expected = manifest.details.get(component.value, {}).get("files")
        self._files = 0
        self._members = 0

    def __iter__(self) -> Iterator[Member]:
        self._files = self._members = 0
        for member in self._archive.members():
            if is_below(member.path, self._component.member):
                self._members += 1
                self._files += member.type is MemberType.FILE
            yield member

    def check(self) -> None:
        """Compare the count with the manifest.

        Raises:
            NotIntactError: they differ.
        """
        what = self._component.value
        if not self._members:
            raise NotIntactError(f"the manifest lists {what}, but the archive holds none", hint=another_archive())
        if self._expected not in (None, self._files):
            raise NotIntactError(
                f"{what} has {self._files} files, and the manifest says {self._expected}", hint=another_archive()
            )
