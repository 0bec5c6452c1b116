"""The parts of a restore: each component of an archive, and where it goes.

A part can be planned, staged, applied, and rolled back; until it is applied it can be undone without a trace, and from
then on finished. `restore.py` drives all parts of a restore through these steps together.
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
        part: what does it.
        plan: for people.
        manifest: what the archive says of itself.
        stage_place: where the stage will lie, or a directory above.
        stage_bytes: how many bytes it takes there.
        content_bytes: how many bytes of content the stage will tell of.
        record: what `PartMaker.from_record` needs.
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
        """Which component."""
        return self.part.component


class Part(Protocol):
    """One component on its way to its place."""

    component: Component

    def plan(self, archive: Archive, manifest: Manifest) -> PlannedPart:
        """Look at everything, touch nothing."""

    def stage(self, planned: PlannedPart, archive: Archive, advance: Advance) -> None:
        """Put the component beside the live data.

        Arguments:
            planned: what `plan` found.
            advance: called with every number of bytes of content that was written.
        """

    def apply(self) -> dict[str, Any]:
        """Let it take the place of what is live; figures and names for the report."""

    def finish(self) -> dict[str, Any]:
        """Apply what another process has staged, or go on with what it has begun; harmless where that is done."""

    def is_begun(self) -> bool:
        """True if anything live was touched, and not yet rolled back."""

    def undo(self) -> None:
        """Take back what was applied, remove what was staged; harmless where there is nothing."""

    def roll_back(self) -> dict[str, Any]:
        """Put back the previous data; can be interrupted and called again as long as `is_begun`."""

    def record(self) -> dict[str, Any]:
        """The facts from which `PartMaker.from_record` makes it again."""

    def kept(self, *, rolled_back: bool) -> str:
        """In words, what is kept of the restore, if anything; says it without looking."""

    def discard(self) -> tuple[str, ...]:
        """Remove what is kept; harmless where there is nothing. What others may miss of it, in words."""


class DatabasePart:
    """The database: its dump goes from the archive into the server; in place, by way of the disk.

    Arguments:
        restore: what knows the server.
        directory: what a restore in place puts there: the dump, and what it needs to be rolled back.
        mode: how the database is replaced; a plan settles what ``auto`` means.
        create_database: make it where there is none.
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

    def plan(self, archive: Archive, manifest: Manifest) -> PlannedPart:
        """The plan for the database.

        In place, the dump lies in the repository for a while; one of the live database, about as large, stays.
        """
        with dump_content(archive, 1) as (member, content):
            head = bytes(next(content, memoryview(b""))[:HEAD_BYTES])
        major = dump_major(head)
        plan = self._restore.plan(
            dump_major=major,
            dump_bytes=member.size,
            row_counts=rows_of(manifest),
            backed_up=None if major is None else backed_up(archive, manifest, self._dump),
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
        """Fill and check a database beside the live one, where the mode is swap."""
        self._make_directory()
        dump = dump_of(archive, planned.manifest, self._dump, jobs=self._jobs, advance=advance)
        manifest = planned.manifest
        self._restore.stage(dump, rows_of(manifest), identity_of(manifest), objects_of(manifest))

    def apply(self) -> dict[str, Any]:
        """Swap, or replace in one transaction."""
        return self._applied(self._restore.apply())

    def finish(self) -> dict[str, Any]:
        """Swap, or find that it was done."""
        return self._applied(self._restore.finish())

    def is_begun(self) -> bool:
        """True if the live name means the restored database."""
        return self._restore.state() is DatabaseState.APPLIED

    def undo(self) -> None:
        """Drop the database that was being filled, or let it change places again with what was live before."""
        self._restore.undo()
        shutil.rmtree(self._directory, ignore_errors=True)

    def roll_back(self) -> dict[str, Any]:
        """Make live again what was live before."""
        return _facts(self._restore.rollback())

    def record(self) -> dict[str, Any]:
        """Which database on which server, and how it is replaced."""
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
        """The name of a database, or a directory."""
        if self._mode is RestoreMode.IN_PLACE:
            return "" if rolled_back else f"the safety dump in {self._directory}"
        if self._restore.replaced_nothing and not rolled_back:
            return ""
        role = Role.UNDONE if rolled_back else Role.BEFORE
        target = self._restore.target
        name = Names.of(target.name, self._restore.restore_id).name(role)
        return f"database {name} on {target.host}:{target.port}"

    def discard(self) -> tuple[str, ...]:
        """Drop the database that is kept, and remove the safety dump; what others may miss, in words."""
        from portal.ops.restore.database.restore import drop_old, list_old_databases

        said: list[str] = []
        if self._mode is not RestoreMode.IN_PLACE:
            for old in list_old_databases(self._restore.target):
                if old.marked.restore_id == self._restore.restore_id:
                    said += drop_old(self._restore.target, old.marked.name)
        shutil.rmtree(self._directory, ignore_errors=True)
        return tuple(said)

    def _make_directory(self) -> None:
        """Make the restore's directory in the repository, for what has to lie on a disk."""
        make_hidden(self._directory.parent)
        make_hidden(self._directory)

    def _applied(self, report: DatabaseReport) -> dict[str, Any]:
        self._dump.unlink(missing_ok=True)
        with suppress(OSError):  # the safety dump of a restore in place stays in it
            self._directory.rmdir()
        return _facts(report)


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

    def plan(self, archive: Archive, manifest: Manifest) -> PlannedPart:
        """Which files would be new, replaced, left; the stage lies in the tree itself.

        Raises:
            NotIntactError: the archive does not hold what its manifest says.
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
        """Put the files into the stage."""
        self._restore.stage_from(archive, self._jobs, advance)

    def apply(self) -> dict[str, Any]:
        """Exchange by renames. What is doubtful about the chain of an audit log is among the warnings."""
        report = self._restore.apply()
        doubts = (warning for chain in report.chains for warning in chain.warnings())
        return report.to_dict() | {"warnings": [*report.warnings, *doubts]}

    def finish(self) -> dict[str, Any]:
        """Go on with the renames."""
        return self.apply()

    def is_begun(self) -> bool:
        """True if a file has been renamed."""
        return self._restore.is_begun()

    def undo(self) -> None:
        """Rename everything back, and remove the stage."""
        self._restore.undo()

    def roll_back(self) -> dict[str, Any]:
        """Rename everything back; what was to be known of the restore is of no use any more."""
        return self._restore.rollback().to_dict() | {"warnings": []}

    def record(self) -> dict[str, Any]:
        """The place, and what was asked for."""
        return {
            "path": os.path.realpath(self._restore.target),
            "exact": self._restore.exact,
            "patterns": list(self._restore.patterns),
        }

    def kept(self, *, rolled_back: bool) -> str:
        """A directory in the tree."""
        target = Path(os.path.realpath(self._restore.target))
        root = target.parent if self.component is Component.AUDIT_LOGS else target
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
    """Makes the parts of one restore, also of one that another process has begun.

    Arguments:
        restore_id: which restore.
        directory: the restore's own, in the repository.
        repository: never touched by a restore of files, wherever it lies.
        database_part: makes the database's part; another one where that comes from no archive.
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
        """The parts of a restore that was recorded, with what `Part.record` said of each.

        User and password are those of today; they are in no record.
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
        from portal.ops.restore.database.restore import DatabaseRestore  # late: it brings the database driver

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
    """The disks that have no room for all that the stages put on them; of files alone their plan says it."""
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
    """The members of an archive, as often as they are asked for; those of a component are counted on the way.

    Arguments:
        manifest: what their number is held against.
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
        """Compare.

        Raises:
            NotIntactError: they are not what the manifest says.
        """
        what = self._component.value
        if not self._members:
            raise NotIntactError(f"the manifest lists {what}, but the archive holds none", hint=another_archive())
        if self._expected not in (None, self._files):
            raise NotIntactError(
                f"{what} has {self._files} files, and the manifest says {self._expected}", hint=another_archive()
            )
