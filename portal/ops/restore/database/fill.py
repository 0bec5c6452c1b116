"""Fills a database that is not in use yet from the dump in an archive.

    1 the start of the dump goes into a file up to the end of its table of contents, which is all that step 2 needs
    2 what precedes the rows: types, tables, functions; meanwhile the whole dump goes into a file, if it fits
    3 the rows, over several connections: from that file, together with 4; or through a pipe while it is decompressed
    4 what follows the rows, over several connections: indexes and constraints; then privileges
    5 materialized views, one by one: one that cannot be filled stays empty, with a warning
    6 after the rows have been counted: event triggers, publications, subscriptions, which act by themselves

From a file, pg_restore builds the indexes of one table while it loads the rows of another. Through a pipe, if several
tables are large, several programs load rows at once, each its share of the tables; each of them receives the whole dump
and skips the rest. Everything is created as the future owner. A superuser creates the objects that only a superuser may
create, and loads the rows, since some are in tables of extensions.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg.sql import SQL, Identifier

from portal.ops.errors import RestoreError
from portal.ops.postgres.connection import connect
from portal.ops.postgres.dump_contents import divide, share_out, split_after, statements_without
from portal.ops.postgres.pg_restore import listed
from portal.ops.postgres.public_schema import without_comment_on_public
from portal.ops.postgres.server import read_me, restoring_errors
from portal.ops.postgres.surroundings import look_around
from portal.ops.postgres.table_names import table_name
from portal.ops.runtime.unnamed_file import unnamed_file
from portal.ops.units import first_line, system_reason

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from portal.ops.postgres.connection import Connection
    from portal.ops.postgres.dump_contents import Division, Run
    from portal.ops.postgres.dump_file import Dump
    from portal.ops.postgres.pg_restore import Restorer
    from portal.ops.postgres.surroundings import Surroundings
    from portal.ops.postgres.toc import Entry
    from portal.ops.runtime.process import RunningProcess
    from portal.ops.settings.database_url import DatabaseTarget

_NAMED: Final = 3


@contextmanager
def filling(
    restorer: Restorer,
    dump: Dump,
    target: DatabaseTarget,
    *,
    jobs: int,
    role: str | None,
    without: Collection[str] = (),
) -> Iterator[Filling]:
    """Prepare to restore into a database that is not in use yet.

    Arguments:
        jobs: the number of connections.
        role: the owner of everything; None for the user of the connection.
        without: kinds of dump entries to leave out.

    Raises:
        NotIntactError: the archive's dump is not a dump.
        SourceError: the server cannot be queried.
    """
    start, contents = dump.head()
    with connect(target) as connection, restoring_errors(target):
        me, around = read_me(connection), look_around(connection, contents.entries)
        entries = without_comment_on_public(connection, contents.entries, role or me.name)
    division = divide(entries, missing_roles=around.missing_roles, trusted=around.trusted, without=without)
    with unnamed_file(start) as head:
        yield Filling(
            restorer=restorer,
            dump=dump,
            head=head,
            target=target,
            jobs=jobs,
            role=None if role == me.name else role,
            is_superuser=me.superuser,
            division=division,
            around=around,
            entries=contents.entries,
        )


class Filling:
    """The restore into one database; made by `filling`.

    Arguments:
        head: a file with the start of the dump, up to the end of its table of contents.
        around: what the dump needs and the server does not have.
        entries: the dump's table of contents.
    """

    def __init__(
        self,
        *,
        restorer: Restorer,
        dump: Dump,
        head: Path,
        target: DatabaseTarget,
        jobs: int,
        role: str | None,
        is_superuser: bool,
        division: Division,
        around: Surroundings,
        entries: Sequence[Entry],
    ) -> None:
        self._restorer = restorer
        self._dump = dump
        self._head = head
        self._target = target
        self._jobs = jobs
        self._role = role
        self._is_superuser = is_superuser
        self._division = division
        self._around = around
        self.entries = entries
        self.statistics = division.statistics
        self.warnings: list[str] = []

    def fill(self) -> None:
        """Restore everything but the entries that act by themselves; see `finish`.

        Raises:
            NotIntactError: the archive is damaged, or its dump is not a dump; the database must be dropped.
            OpsError: pg_restore failed; the database must be dropped.
        """
        division = self._division
        if self._jobs > 1 and self._dump.fits():
            self._fill_from_file()
        else:
            self._run_each(division.before)
            _Loading(self._restorer, self._dump, self._target, self._options(as_administrator=True)).run(
                share_out(division.rows, self._dump.weights, self._jobs)
            )
            self._run(division.after, f"--jobs={self._jobs}")
        self._run(division.privileges, as_administrator=True)
        if division.roleless or division.views:
            with connect(self._target) as connection, restoring_errors(self._target):
                self._grant_the_rest(connection)
                self._fill_views(connection)

    def finish(self) -> None:
        """Restore event triggers, publications and subscriptions, after the rows have been counted.

        Raises:
            OpsError: pg_restore failed; the database must be dropped.
        """
        self._run_each(self._division.last)
        self.warnings += self._around.warnings()

    def _fill_from_file(self) -> None:
        """Load rows and build indexes together; then make what has to wait for all rows."""
        division = self._division
        at_once, waiting = split_after(division.after)
        try:
            with ThreadPoolExecutor(1, thread_name_prefix="save-dump") as thread:
                saving = thread.submit(self._dump.save)  # this thread starts programs: they end with it
                self._run_each(division.before)
                try:
                    saving.result()
                except OSError as error:
                    raise RestoreError(
                        f"cannot write the dump to {self._dump.path}: {system_reason(error)}",
                        hint="make room in the repository, and start the restore again",
                    ) from error
            jobs = f"--jobs={self._jobs}"
            self._run([*division.rows, *at_once], jobs, as_administrator=True, file=self._dump.path)
        finally:
            self._dump.path.unlink(missing_ok=True)
        self._run(waiting)

    def _run_each(self, runs: Iterable[Run]) -> None:
        for run in runs:
            self._run(run.entries, as_administrator=run.as_administrator)

    def _run(
        self, entries: Sequence[Entry], *options: str, as_administrator: bool = False, file: Path | None = None
    ) -> None:
        if not entries:
            return
        with listed(entries) as wanted:
            self._restorer.stage(
                self._target, [*self._options(as_administrator=as_administrator), wanted, *options], file or self._head
            )

    def _options(self, *, as_administrator: bool = False) -> list[str]:
        options = ["--no-tablespaces"] if self._around.missing_tablespaces else []
        if self._role and not (as_administrator and self._is_superuser):
            options.append(f"--role={self._role}")
        return options

    def _grant_the_rest(self, connection: Connection) -> None:
        """Grant all privileges but those for missing roles, and name these."""
        lost: list[str] = []
        for entry in self._division.roleless:
            possible, impossible = statements_without(entry, self._around.missing_roles)
            lost += impossible
            for statement in possible:
                connection.execute(statement.encode())
        if lost:
            more = f"; and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
            self.warnings.append(f"left out, for want of the role: {'; '.join(lost[:_NAMED])}{more}")

    def _fill_views(self, connection: Connection) -> None:
        """Fill the materialized views in the order of the dump, which respects their dependencies."""
        connection.execute("SELECT set_config('search_path', '', false)")
        if self._role:
            connection.execute(SQL("SET ROLE {}").format(Identifier(self._role)))
        for entry in self._division.views:
            name = table_name(entry.schema, entry.name)
            try:
                connection.execute(SQL("REFRESH MATERIALIZED VIEW {}").format(Identifier(entry.schema, entry.name)))
            except psycopg.Error as error:
                if connection.closed:
                    raise
                self.warnings.append(
                    f"materialized view {name} is there, and empty: {_reason(error)}; when that is fixed: "
                    f"REFRESH MATERIALIZED VIEW {name}"
                )


def _reason(error: psycopg.Error) -> str:
    return error.diag.message_primary or first_line(str(error))


class _Loading:
    """Loads the rows with one program for each share of the tables."""

    def __init__(self, restorer: Restorer, dump: Dump, target: DatabaseTarget, options: Sequence[str]) -> None:
        self._restorer = restorer
        self._dump = dump
        self._target = target
        self._options = options

    def run(self, shares: Sequence[Sequence[Entry]]) -> None:
        """Load all shares, and read the dump to its end even if nobody needs the rest."""
        with ExitStack() as opened:
            first, *others = [self._start(share, opened) for share in shares]
            # This thread starts all programs, since they end with it; other threads feed all but the first.
            threads = opened.enter_context(ThreadPoolExecutor(max(1, len(others)), thread_name_prefix="load"))
            opened.callback(_kill, [first, *others])  # before joining the threads
            fed = [threads.submit(self._feed, process, []) for process in others]
            self._feed(first, fed, is_first=True)
            for future in fed:
                future.result()
            for process in (first, *others):
                self._restorer.finish(process)

    def _start(self, share: Sequence[Entry], opened: ExitStack) -> RunningProcess:
        wanted = opened.enter_context(listed(share))
        process = self._restorer.start_stage(self._target, [*self._options, "--section=data", wanted])
        opened.callback(process.kill)
        return process

    def _feed(self, process: RunningProcess, others: Sequence[Future[None]], *, is_first: bool = False) -> None:
        """Send a program the dump, until its end or until the program stops reading."""
        with self._dump.open() as content:
            for piece in content:
                for future in others:
                    if future.done():
                        future.result()  # raises the error of that program
                if is_first:
                    self._dump.advance(len(piece))
                if process.stdin.closed:
                    continue
                try:
                    process.stdin.write(piece)
                except BrokenPipeError:
                    # It has all it needs, or failed. The first program's dump is read to the end in any case:
                    # its digest is checked only there.
                    with suppress(BrokenPipeError):
                        process.stdin.close()
                    self._restorer.finish(process)
                    if not is_first:
                        return
        with suppress(BrokenPipeError):
            process.stdin.close()


def _kill(processes: Sequence[RunningProcess]) -> None:
    for process in processes:
        process.kill()
