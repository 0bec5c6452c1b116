"""Restoring the portal's database, so that it can be taken back.

    plan      look at the server, and say what would be done; touches nothing
    stage     swap: fill and check a second database beside the live one. In place: decode the dump to its end
    apply     swap: the two change names in one transaction. In place: a safety dump, then one transaction
    rollback  swap: the names change back. In place: the safety dump is restored, in one transaction

The live name is at every instant either wholly the old or wholly the new database. Killed at any instant, the server
alone (in place: and the safety dump) tells how far a restore is: `state`; `finish` and `undo` do the rest, and can be
repeated. A database that is kept, before or undone, is closed to everybody, so that no portal gets into it by accident;
``ALTER DATABASE … ALLOW_CONNECTIONS true`` opens it for a look.

The SQL in a dump runs with the rights of the user that restores it.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from portal.ops.errors import ConfigurationError, OpsError, RestoreError
from portal.ops.hints import Advice
from portal.ops.postgres.database_names import LONGEST_NAME, Marked, Names, Role
from portal.ops.postgres.dump_file import read_dump_major
from portal.ops.postgres.identity import give_identity
from portal.ops.postgres.pg_restore import find_restorer
from portal.ops.postgres.removal import disabled_subscriptions, drop_old, remove_database
from portal.ops.postgres.server import (
    OldDatabase,
    Session,
    create_like,
    end_orphans,
    find_database,
    list_marked,
    list_old_databases,
    maintenance,
    read_me,
)
from portal.ops.restore.database.in_place import Before, no_safety_dump, replace_contents, roll_back
from portal.ops.restore.database.means import choose_mode, database_absent
from portal.ops.restore.database.model import DatabasePlan, DatabaseReport, DatabaseState, RestoreMode
from portal.ops.restore.database.newcomer import Newcomer
from portal.ops.restore.database.plan import BackedUp, Request, make_plan
from portal.ops.restore.database.stage import check, known_owner, settle, stage
from portal.ops.restore.database.swap import Exchange, Exchanged, exchange

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from portal.ops.postgres.dump_file import Dump
    from portal.ops.postgres.identity import DatabaseIdentity
    from portal.ops.postgres.pg_restore import Restorer
    from portal.ops.restore.database.object_check import SourceObjects
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
        runner: what starts pg_restore and pg_dump.
        bin_dir: the only directory to look for them in; nothing looks everywhere.
        jobs: connections that work at once.
        restore_id: such as ``restore_20260102_030405_ab12cd``; what the restore leaves on the server is named after it.
        mode: how to replace the live database.
        target_database: restore into this database instead of the configured one.
        create_database: create the database where there is none.
        safety_dump: where a restore in place puts what it needs to be taken back: a file, as large as the database.
        owner: who is to own the database and everything in it; nothing means who owns the live one, or else the owner
            that the backup names.
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
        # By this name what a crash has left on the server can be found, and what stands in the restore's way.
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
        """Say what would be done, and what is in the way; touches nothing.

        Arguments:
            dump_major: version of the pg_dump that wrote the dump; nothing where it is no dump.
            dump_bytes: size of the dump, uncompressed.
            row_counts: the manifest's number of rows by table; empty where it has none.
            backed_up: what else the archive says of the database.

        Raises:
            SourceError: the server cannot be reached, or does not want the user.
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
        """Prepare all that can be prepared without touching the live database, and read the dump to its end.

        Arguments:
            dump: the dump; in place, it is put in its file, which has to stay until `apply` has returned.
            row_counts: the manifest's number of rows by table; empty where it has none.
            identity: what the manifest says of the database itself.
            objects: what it says of indexes, constraints and triggers; where they differ, that is a warning.

        Raises:
            NotIntactError: the dump is none, cannot be decoded to its end, or (swap only, where it is counted) does not
                hold what the manifest says.
            OpsError: the server or pg_restore does not do it. In each case nothing of the stage is left.
        """
        mode = self._decide()
        restorer = self._restorer(dump.major())
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
        """Replace the live database by what was staged; harmless where that was done already.

        Raises:
            BusyError: a session in the live database cannot be ended.
            RestoreError: nothing was staged.
            OpsError: the server does not do it. In each case the live database is as it was.
        """
        found, in_place = self.state(), self._is_in_place()
        if found is DatabaseState.APPLIED:
            kept = None if in_place or self.replaced_nothing else self._names.name(Role.BEFORE)
            return self._report(RestoreMode.IN_PLACE if in_place else RestoreMode.SWAP, 0.0, kept=kept)
        if found is DatabaseState.STAGED and not in_place:
            return self._swap_in()
        if self._decide() is RestoreMode.IN_PLACE and self._dump is not None:
            return self._replace(self._dump)
        raise RestoreError("nothing is staged", hint="start the restore again from the archive")

    def state(self) -> DatabaseState:
        """How far this restore is.

        Raises:
            SourceError: the server cannot be asked.
        """
        found = state(self.target, self.restore_id)
        if found is DatabaseState.NOTHING and self.replaced_nothing:
            with maintenance(self.target) as connection:
                live = find_database(connection, self.target.name)
            is_ours = live is not None and live.oid == self._newcomer.number()
            return DatabaseState.APPLIED if is_ours else DatabaseState.NOTHING
        before = self._before()
        if found is not DatabaseState.NOTHING or before is None:
            return found
        return DatabaseState.APPLIED if before.is_replaced(self.target) else DatabaseState.STAGED

    def finish(self) -> DatabaseReport:
        """Apply what a crash has left staged; harmless where it was applied. Raises what `apply` raises."""
        end_orphans(self.target, self.restore_id)
        return self.apply()

    def undo(self) -> None:
        """Remove what a crash has left, and take back what was applied; harmless where there is nothing.

        Raises:
            OpsError: the server does not do it; it can be tried again.
        """
        end_orphans(self.target, self.restore_id)
        found = self.state()
        if found is DatabaseState.APPLIED:
            self.rollback()
        elif found in (DatabaseState.STAGING, DatabaseState.STAGED):
            self._drop_stage()

    def rollback(self) -> DatabaseReport:
        """Make live again what was live before; harmless where that was done already.

        What the restore had made live is kept: it may hold what was written since.

        Raises:
            RestoreError: there is nothing to go back to.
            OpsError: the server does not do it; the live database is as it was.
        """
        end_orphans(self.target, self.restore_id)
        found = self.state()
        if found is DatabaseState.ROLLED_BACK:
            return self._report(RestoreMode.SWAP, 0.0, kept=self._names.name(Role.UNDONE))
        if found is not DatabaseState.APPLIED:
            raise no_safety_dump() if self._is_in_place() else self._nothing_kept()
        if self._is_in_place():
            return self._replace_back()
        done = self._exchange(Role.UNDONE, None if self.replaced_nothing else Role.BEFORE, inherits=False)
        return self._report(
            RestoreMode.SWAP, done.downtime_seconds, kept=self._names.name(Role.UNDONE), warnings=done.warnings
        )

    # -- swap -------------------------------------------------------------------------------------------------------

    @property
    def replaced_nothing(self) -> bool:
        """Whether there was no live database, so that none is kept."""
        return self._newcomer.number() is not None

    def _swap_in(self) -> DatabaseReport:
        self._note_newcomer()
        done = self._exchange(Role.BEFORE, Role.STAGED, inherits=True)
        kept = None if self.replaced_nothing else self._names.name(Role.BEFORE)
        warnings = (*done.warnings, *disabled_subscriptions(self.target))
        return self._report(RestoreMode.SWAP, done.downtime_seconds, kept=kept, warnings=warnings)

    def _exchange(self, kept_as: Role, incoming: Role | None, *, inherits: bool) -> Exchanged:
        names = self._names
        return exchange(
            self.target,
            Exchange(
                live=names.live,
                kept_as=names.name(kept_as),
                incoming=None if incoming is None else names.name(incoming),
                inherits=inherits,
                owner=self.owner,
            ),
        )

    def _note_newcomer(self) -> None:
        """Where there is no live database, note which one is about to be."""
        with maintenance(self.target) as connection:
            if find_database(connection, self.target.name):
                self._newcomer.forget()
                return
            if not self._create_database:
                raise database_absent(self.target)
            staged = find_database(connection, self._names.name(Role.STAGED))
        if staged is not None:
            self._newcomer.note(staged.oid)

    def _drop_stage(self) -> None:
        """Drop the scratch database."""
        with maintenance(self.target) as connection:
            for role in (Role.RESTORING, Role.STAGED):
                remove_database(connection, self.target, self._names.name(role))
        self._newcomer.forget()
        before = self._before()
        if before is not None:
            before.remove()

    # -- in place ---------------------------------------------------------------------------------------------------

    def _replace(self, dump: Dump) -> DatabaseReport:
        if self._safety_dump is None:
            raise ConfigurationError("a restore in place needs a path for its safety dump", hint="give safety_dump")
        self._create_where_absent()
        before = Before.save(
            self.target,
            self._safety_dump,
            self._rows,
            restore_id=self.restore_id,
            runner=self._runner,
            bin_dir=self._bin_dir,
        )
        started = time.monotonic()
        try:
            restorer = self._restorer(dump.major())
            replace_contents(self.target, dump.path, restorer=restorer, restore_id=self.restore_id)
        except OpsError:
            if not self._came_through(before):
                raise
        downtime = time.monotonic() - started
        warnings = (*self._differences(settle(self.target, self._jobs)), *disabled_subscriptions(self.target))
        return self._report(RestoreMode.IN_PLACE, downtime, warnings=warnings)

    def _came_through(self, before: Before) -> bool:
        """Whether the server has committed although its client failed: it can be lost between the two."""
        with suppress(OpsError):
            end_orphans(self.target, self.restore_id)
            return before.is_replaced(self.target)
        return False

    def _replace_back(self) -> DatabaseReport:
        before = self._before()
        if before is None:
            raise no_safety_dump()
        started = time.monotonic()
        restorer = self._restorer(read_dump_major(before.dump))
        roll_back(self.target, before, restorer=restorer, restore_id=self.restore_id)
        downtime = time.monotonic() - started
        settle(self.target, self._jobs)
        before.remove()
        return self._report(RestoreMode.IN_PLACE, downtime)

    def _create_where_absent(self) -> None:
        with maintenance(self.target) as connection:
            if find_database(connection, self.target.name) is not None:
                return
            if not self._create_database:
                raise database_absent(self.target)
            owner = self.owner or known_owner(connection, self._identity) or read_me(connection).name
            self._warnings += create_like(connection, self.target.name, self._identity, owner)
            if self._identity is not None:
                name = self.target.name
                self._warnings += give_identity(connection, self._identity, name, shown_as=name, owner=owner)

    def _differences(self, found: Mapping[str, int]) -> tuple[str, ...]:
        """What the portal may have written since, or a table that was not filled as the manifest says."""
        known = {table: rows for table, rows in found.items() if table in self._rows}
        checked = check(self.target, known, self._rows)
        return (*checked.wrong, *checked.warnings())

    # -- both -------------------------------------------------------------------------------------------------------

    def _decide(self) -> RestoreMode:
        """Settle what ``auto`` means, once."""
        if self._mode is RestoreMode.AUTO:
            self._mode = choose_mode(self.target)
        return self._mode

    def _is_in_place(self) -> bool:
        return self._before() is not None

    def _before(self) -> Before | None:
        return None if self._safety_dump is None else Before.load(self._safety_dump, self.restore_id)

    def _restorer(self, dump_major: int | None) -> Restorer:
        with maintenance(self.target) as connection:
            server_major = connection.info.server_version // 10000
        return find_restorer(server_major, dump_major, runner=self._runner, bin_dir=self._bin_dir)

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
            hint=f"{Advice.LIST_ROLLBACKS} shows what can be rolled back",
        )


def state(target: DatabaseTarget, restore_id: str) -> DatabaseState:
    """How far a restore is, told by the names of the server's databases; of a restore in place they tell nothing.

    Raises:
        SourceError: the server cannot be asked.
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
