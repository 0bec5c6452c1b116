"""Restores the portal's database in a way that can be rolled back.

    plan      examine the server and say what would be done; changes nothing
    stage     swap: fill and check a second database next to the live one. In place: read the dump to its end
    apply     swap: exchange the two names in one transaction. In place: make a safety dump, then restore in one
    rollback  swap: exchange the names again. In place: restore the safety dump in one transaction

At every instant the live name belongs completely to the old or completely to the new database. After a crash at any
instant, the server (in place: with the safety dump) shows how far a restore is: see `state`. `finish` and `undo` do the
rest, and can be repeated. A kept database is closed to connections, so that no portal uses it by accident; ``ALTER
DATABASE … ALLOW_CONNECTIONS true`` opens it for inspection.

The SQL in a dump runs with the rights of the user that restores it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from portal.ops.errors import RestoreError
from portal.ops.hints import Advice
from portal.ops.postgres.database_names import LONGEST_NAME, Marked, Names, Role
from portal.ops.postgres.removal import drop_old
from portal.ops.postgres.server import (
    OldDatabase,
    Session,
    end_orphans,
    find_database,
    list_marked,
    list_old_databases,
    maintenance,
)
from portal.ops.restore.database.in_place import no_safety_dump
from portal.ops.restore.database.live_swap import LiveSwap
from portal.ops.restore.database.means import choose_mode
from portal.ops.restore.database.model import DatabasePlan, DatabaseReport, DatabaseState, RestoreMode
from portal.ops.restore.database.newcomer import Newcomer
from portal.ops.restore.database.plan import BackedUp, Request, make_plan
from portal.ops.restore.database.replacement import Replacement
from portal.ops.restore.database.stage import stage

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from portal.ops.postgres.dump_file import Dump
    from portal.ops.postgres.identity import DatabaseIdentity
    from portal.ops.restore.database.object_check import SourceObjects
    from portal.ops.restore.database.replacement import Replaced
    from portal.ops.restore.database.swap import Exchanged
    from portal.ops.runtime.process import ProcessRunner
    from portal.ops.settings.database_url import DatabaseTarget

__all__ = [
    "LONGEST_NAME",
    "DatabasePlan",
    "DatabaseReport",
    "DatabaseRestore",
    "DatabaseState",
    "Marked",
    "OldDatabase",
    "RestoreMode",
    "Role",
    "Session",
    "drop_old",
    "list_old_databases",
    "state",
]


class DatabaseRestore:
    """One restore of one database.

    Arguments:
        target: the configured database.
        runner: starts pg_restore and pg_dump.
        bin_dir: the only directory to look for them in; None looks everywhere.
        jobs: the number of connections.
        restore_id: such as ``restore_20260102_030405_ab12cd``; it names what the restore leaves on the server.
        mode: how to replace the live database.
        target_database: restore into this database instead of the configured one.
        create_database: create the database if there is none.
        safety_dump: the file from which a restore in place is rolled back, as large as the database.
        owner: the owner of the database and everything in it; None for the owner of the live database, or else the
            owner that the backup names.
    """

    def __init__(
        self,
        target: DatabaseTarget,
        *,
        runner: ProcessRunner,
        bin_dir: Path | None,
        jobs: int,
        restore_id: str,
        mode: RestoreMode,
        target_database: str | None = None,
        create_database: bool = False,
        safety_dump: Path | None = None,
        owner: str | None = None,
    ) -> None:
        # This application name identifies our sessions after a crash, and tells them apart from those that block us.
        options = {**target.options, "application_name": restore_id}
        self.target = replace(target, name=target_database or target.name, options=options)
        self.restore_id = restore_id
        self._names = Names.of(self.target.name, restore_id)
        self._runner = runner
        self._bin_dir = bin_dir
        self._jobs = jobs
        self._mode = mode
        self._create_database = create_database
        self._safety_dump = safety_dump
        self.owner = owner
        self._newcomer = Newcomer(
            path=safety_dump.with_name(f"{safety_dump.stem}.database.json") if safety_dump else None,
            restore_id=restore_id,
        )
        self._swap = LiveSwap(self.target, self._names, self._newcomer, create_database=create_database, owner=owner)
        self._replacement = Replacement(
            self.target,
            restore_id,
            safety_dump,
            runner=runner,
            bin_dir=bin_dir,
            jobs=jobs,
            create_database=create_database,
            owner=owner,
        )
        self._identity: DatabaseIdentity | None = None
        self._dump: Dump | None = None
        self._rows: Mapping[str, int] = {}
        self._warnings: tuple[str, ...] = ()

    def plan(
        self,
        *,
        dump_major: int | None,
        dump_bytes: int,
        row_counts: Mapping[str, int],
        backed_up: BackedUp | None = None,
    ) -> DatabasePlan:
        """Say what would be done, and list the obstacles; changes nothing.

        Arguments:
            dump_major: the major version of the pg_dump that wrote the dump; None if it is no dump.
            dump_bytes: the size of the dump, uncompressed.
            row_counts: rows by table in the manifest; may be empty.
            backed_up: the archive's other facts about the database.

        Raises:
            SourceError: the server cannot be reached, or refuses the user.
        """
        plan = make_plan(
            Request(
                target=self.target,
                mode=self._mode,
                create_database=self._create_database,
                dump_major=dump_major,
                dump_bytes=dump_bytes,
                row_counts=row_counts,
                backed_up=backed_up or BackedUp(),
                owner=self.owner,
                runner=self._runner,
                bin_dir=self._bin_dir,
            )
        )
        self._mode = plan.mode
        return plan

    def stage(
        self,
        dump: Dump,
        row_counts: Mapping[str, int],
        identity: DatabaseIdentity | None = None,
        objects: SourceObjects | None = None,
    ) -> None:
        """Prepare everything possible without changing the live database, and read the dump to its end.

        Arguments:
            dump: the dump; in place, it is written to its file, which must stay until `apply` has returned.
            row_counts: rows by table in the manifest; may be empty.
            identity: the manifest's facts about the database itself.
            objects: its facts about indexes, constraints and triggers; differences become warnings.

        Raises:
            NotIntactError: it is no dump, cannot be decoded to its end, or (swap only, which counts the rows) differs
                from the manifest. Nothing of the stage remains.
            OpsError: the server or pg_restore failed. Nothing of the stage remains.
        """
        mode = self._decide()
        restorer = self._replacement.restorer(dump.major())
        self._rows, self._identity = row_counts, identity
        if mode is RestoreMode.SWAP:
            staged = stage(
                self.target,
                self._names,
                dump,
                row_counts,
                restorer=restorer,
                jobs=self._jobs,
                identity=identity,
                owner=self.owner,
                objects=objects,
            )
            self._rows, self._warnings = staged.row_counts, staged.warnings
        else:
            dump.save()
            self._dump = dump
            restorer.decode(dump.path)

    def apply(self) -> DatabaseReport:
        """Replace the live database with the stage; does nothing if that was done already.

        Raises:
            BusyError: a session in the live database cannot be ended; the live database is unchanged.
            RestoreError: nothing was staged.
            OpsError: the server failed; the live database is unchanged.
        """
        found, in_place = self.state(), self._replacement.before() is not None
        if found is DatabaseState.APPLIED:
            kept = None if in_place or self.replaced_nothing else self._names.name(Role.BEFORE)
            return self._report(RestoreMode.IN_PLACE if in_place else RestoreMode.SWAP, 0.0, kept=kept)
        if found is DatabaseState.STAGED and not in_place:
            return self._swapped(self._swap.swap_in(), None if self.replaced_nothing else Role.BEFORE)
        if self._decide() is RestoreMode.IN_PLACE and self._dump is not None:
            return self._replaced(self._replacement.replace(self._dump, self._rows, self._identity))
        raise RestoreError("nothing is staged", hint="start the restore again from the archive")

    def state(self) -> DatabaseState:
        """The state of this restore.

        Raises:
            SourceError: the server cannot be queried.
        """
        found = state(self.target, self.restore_id)
        if found is DatabaseState.NOTHING and self.replaced_nothing:
            with maintenance(self.target) as connection:
                live = find_database(connection, self.target.name)
            is_ours = live is not None and live.oid == self._newcomer.number()
            return DatabaseState.APPLIED if is_ours else DatabaseState.NOTHING
        before = self._replacement.before()
        if found is not DatabaseState.NOTHING or before is None:
            return found
        return DatabaseState.APPLIED if before.is_replaced(self.target) else DatabaseState.STAGED

    def finish(self) -> DatabaseReport:
        """Apply what was staged before a crash; does nothing if it was applied. Raises the same errors as `apply`."""
        end_orphans(self.target, self.restore_id)
        return self.apply()

    def undo(self) -> None:
        """Remove what was staged, and roll back what was applied; does nothing if there is neither.

        Raises:
            OpsError: the server failed; `undo` can be repeated.
        """
        end_orphans(self.target, self.restore_id)
        found = self.state()
        if found is DatabaseState.APPLIED:
            self.rollback()
        elif found in (DatabaseState.STAGING, DatabaseState.STAGED):
            self._drop_stage()

    def rollback(self) -> DatabaseReport:
        """Make the previous database live again; does nothing if that was done already.

        The restored database is kept: it may hold newer data.

        Raises:
            RestoreError: there is nothing to go back to.
            OpsError: the server failed; the live database is unchanged.
        """
        end_orphans(self.target, self.restore_id)
        found = self.state()
        if found is DatabaseState.ROLLED_BACK:
            return self._report(RestoreMode.SWAP, 0.0, kept=self._names.name(Role.UNDONE))
        if found is not DatabaseState.APPLIED:
            raise no_safety_dump() if self._replacement.before() else self._nothing_kept()
        if self._replacement.before():
            return self._replaced(self._replacement.replace_back())
        return self._swapped(self._swap.swap_back(), Role.UNDONE)

    @property
    def replaced_nothing(self) -> bool:
        """True if there was no live database, so none is kept."""
        return self._newcomer.number() is not None

    def _drop_stage(self) -> None:
        """Drop the scratch database."""
        self._swap.drop_stage()
        before = self._replacement.before()
        if before is not None:
            before.remove()

    def _decide(self) -> RestoreMode:
        """Decide once what ``auto`` means."""
        if self._mode is RestoreMode.AUTO:
            self._mode = choose_mode(self.target)
        return self._mode

    def _swapped(self, done: Exchanged, kept_as: Role | None) -> DatabaseReport:
        kept = self._names.name(kept_as) if kept_as else None
        return self._report(RestoreMode.SWAP, done.downtime_seconds, kept=kept, warnings=done.warnings)

    def _replaced(self, done: Replaced) -> DatabaseReport:
        return self._report(RestoreMode.IN_PLACE, done.downtime_seconds, warnings=done.warnings)

    def _report(
        self, mode: RestoreMode, downtime_seconds: float, *, kept: str | None = None, warnings: tuple[str, ...] = ()
    ) -> DatabaseReport:
        return DatabaseReport(
            database=self.target.name,
            mode=mode,
            downtime_seconds=downtime_seconds,
            kept_database=kept,
            safety_dump=self._safety_dump if mode is RestoreMode.IN_PLACE else None,
            row_counts=self._rows,
            warnings=(*self._warnings, *warnings),
        )

    def _nothing_kept(self) -> RestoreError:
        return RestoreError(
            f"the server has no database that {self.restore_id} has kept: it was not applied, or it was dropped since",
            hint=f"{Advice.LIST_ROLLBACKS} lists the restores that can be rolled back",
        )


def state(target: DatabaseTarget, restore_id: str) -> DatabaseState:
    """The state of a restore by the names of the server's databases, which do not show a restore in place.

    Raises:
        SourceError: the server cannot be queried.
    """
    with maintenance(target) as connection:
        roles = {marked.role for marked in list_marked(connection, target.name) if marked.restore_id == restore_id}
    order = (
        (Role.UNDONE, DatabaseState.ROLLED_BACK),
        (Role.STAGED, DatabaseState.STAGED),
        (Role.RESTORING, DatabaseState.STAGING),
        (Role.BEFORE, DatabaseState.APPLIED),
    )
    return next((found for role, found in order if role in roles), DatabaseState.NOTHING)
