"""Runs pg_restore: the right version, the documented options, and explained errors.

pg_restore executes only what the dump contains. If tables have to be dropped in the same transaction, or the server
lacks a setting that pg_restore makes, it writes a script for psql, which drops them first, and leaves the setting out.
COMMIT is the last command, so if either program ends early, nothing has changed. Keep both up to date: since August
2025, psql executes none of its own commands hidden in names of a dump.

The SQL in a dump runs with all rights of the role that restores it, and is not checked here. A dump is as trustworthy
as its archive.
"""

from __future__ import annotations

import os
import re
import signal
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Final

from portal.ops.errors import (
    AccessDeniedError,
    BusyError,
    ClientToolError,
    ConnectionFailedError,
    DiskFullError,
    NotIntactError,
    OpsError,
    RestoreError,
)
from portal.ops.hints import another_archive
from portal.ops.postgres.client_tools import find_client
from portal.ops.postgres.connection import conninfo, libpq_environment, silencing_options
from portal.ops.postgres.dump_file import not_a_dump
from portal.ops.postgres.dump_format import start_decoding
from portal.ops.postgres.environment import client_environment
from portal.ops.runtime.process import DEVNULL, PIPE
from portal.ops.runtime.unnamed_file import unnamed_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from psycopg.sql import Composed

    from portal.ops.postgres.client_tools import ClientTool
    from portal.ops.postgres.toc import Entry
    from portal.ops.runtime.process import ProcessRunner, RunningProcess
    from portal.ops.settings.database_url import DatabaseTarget

OPTIONS: Final = ("--clean", "--if-exists", "--no-owner", "--exit-on-error")
"""Options that the guide promises for every restore."""

# A scratch database lost in a crash is made again, so it need not be flushed; the commit of the swap flushes all.
# Each connection builds its index alone: the number of connections is what the portal's server can spare.
_STAGE_SETTINGS: Final = "-c synchronous_commit=off -c maintenance_work_mem=256MB -c max_parallel_maintenance_workers=0"
# A database is often made read-only before it is restored over; that must not end the restore.
_WRITES: Final = "-c default_transaction_read_only=off"
_LAST_CHARACTERS: Final = 600
_OLDER_SERVER_NEEDS: Final = 17
_UNKNOWN_SETTING: Final = 'could not execute query: ERROR:  unrecognized configuration parameter "transaction_timeout"'
_REFUSAL: Final = re.compile("ERROR:|FATAL:|PANIC:")
_UNKNOWN_SETTING_LINE: Final = b"SET transaction_timeout = 0;\n"
_ERROR: Final = re.compile(r"^pg_restore: error: (.*)", re.MULTILINE)
# psql's format: psql:<stdin>:12: ERROR:  cannot drop table public.finding because other objects depend on it
_PSQL_ERROR: Final = re.compile(r"^psql: error: (.*)|^psql:\S+:\d+: (?!WARNING|NOTICE|INFO)(.*)", re.MULTILINE)
_IGNORED: Final = re.compile(r"errors ignored on restore: (\d+)")
# The script begins a transaction too: within ours that is a warning, and its COMMIT ends both.
_PROLOGUE: Final = b"""\
SET client_encoding = 'UTF8';
SET client_min_messages = error;
SET statement_timeout = 0;
SET lock_timeout = 0;
BEGIN;
"""


@dataclass(frozen=True, kw_only=True)
class _Cause:
    phrase: re.Pattern[str]
    error: type[OpsError]
    hint: str


def _cause(phrase: str, error: type[OpsError], hint: str) -> _Cause:
    return _Cause(phrase=re.compile(phrase), error=error, hint=hint)


_CAUSES: Final = (
    _cause("unsupported version", ClientToolError, "install the client programs of the version that made the dump"),
    _cause(
        "valid archive|magic string|corrupt|end of file|could not read from input|could not uncompress|out of range|"
        "unexpected (block|section|data)|invalid (dumpId|compression)|toc\\.",
        NotIntactError,
        another_archive(),
    ),
    _cause("No space left on device|could not extend", DiskFullError, "free space on the server's disk, and try again"),
    _cause(
        "permission denied|must be (owner|superuser|able)",
        AccessDeniedError,
        "restore as a user that may do this, such as the server's administrator, or have an administrator install the "
        "extension that is named",
    ),
    _cause(
        'could not connect to server "',
        RestoreError,
        "a foreign server that the backup names cannot be reached from the database's server: fix that, or drop it",
    ),
    _cause(
        r"does not exist[\s\S]*CONTEXT: +(PL/pgSQL|SQL) function",
        RestoreError,
        "a function of the backup finds other objects by its search_path, which is empty in a restore: the context in "
        "the server's log names it; in the source: ALTER FUNCTION … SET search_path = public, and back up again",
    ),
    _cause(
        "terminating connection|server closed the connection|connection to server|SSL SYSCALL|could not receive data",
        ConnectionFailedError,
        "the server went away: see its log, and try again when it is up",
    ),
    _cause(
        "out of shared memory|max_locks_per_transaction",
        RestoreError,
        "raise max_locks_per_transaction in the server's configuration, or restore with --mode swap",
    ),
    _cause("deadlock|lock timeout", BusyError, "stop what uses the database, and try again"),
    _cause(
        "other objects depend on it",
        RestoreError,
        "newer objects use what the backup replaces: restore with --mode swap, or drop them first",
    ),
    _cause("is not available|could not open extension control file", RestoreError, "install the extension's package"),
    _cause("", RestoreError, "the reason is in the program's own words; the server's log may say more"),
)


@dataclass(frozen=True, kw_only=True)
class Restorer:
    """A pg_restore that fits a dump and a server.

    Arguments:
        server_major: the server's major version.
        bin_dir: the only directory to look for psql in; None looks everywhere.
    """

    tool: ClientTool
    server_major: int
    runner: ProcessRunner
    bin_dir: Path | None = None

    @property
    def trips_over_server(self) -> bool:
        """True if it sets a setting that the older server does not have, and counts the refusal as an error."""
        return self.tool.major >= _OLDER_SERVER_NEEDS > self.server_major

    def decode(self, dump: Path) -> None:
        """Read a dump to its end, discarding the result.

        Raises:
            NotIntactError: the dump cannot be decoded.
        """
        process = start_decoding(self.tool, runner=self.runner, dump=dump)
        try:
            _finish(process)
        except RestoreError as error:
            if (process.returncode or 0) < 0:
                raise
            raise NotIntactError(
                error.message, hint=another_archive()
            ) from error  # no server is involved that could be at fault

    def find_psql(self) -> ClientTool:
        """Find the psql that can run the script of this pg_restore.

        Raises:
            ClientToolError: there is none.
        """
        return find_client("psql", self.tool.major, runner=self.runner, bin_dir=self.bin_dir)

    def stage(self, target: DatabaseTarget, options: Sequence[str], dump: Path) -> None:
        """Restore a part of a dump into a database that is not in use yet.

        Arguments:
            options: the options that select the part.
            dump: a file with the dump's table of contents, and the rows if they are wanted.

        Raises:
            OpsError: pg_restore failed; the database must be dropped.
        """
        self.finish(self.start_stage(target, options, dump))

    def start_stage(self, target: DatabaseTarget, options: Sequence[str], dump: Path | None = None) -> RunningProcess:
        """Start what `stage` does; without a file, the program reads the dump from its standard input."""
        base = [option for option in OPTIONS if option != "--exit-on-error" or not self.trips_over_server]
        return self._start([*base, *options], dump, target, _STAGE_SETTINGS)

    def finish(self, process: RunningProcess) -> None:
        """Wait for a pg_restore; raises OpsError if it failed."""
        _finish(process, accepts_unknown_setting=self.trips_over_server)

    def replace(
        self,
        dump: Path,
        target: DatabaseTarget,
        *,
        role: str | None,
        contents: Iterable[Entry],
        drop: Composed | None = None,
    ) -> None:
        """Restore over the contents of a database in one transaction: everything or nothing.

        Arguments:
            contents: the entries to restore, in the order of the dump.
            drop: a statement to execute first, as the connected user.

        Raises:
            OpsError: pg_restore or psql failed, and the database is unchanged.
        """
        with listed(contents) as wanted:
            options = [*OPTIONS, "--single-transaction", wanted]
            options += [f"--role={role}"] if role else []
            if drop is None and not self.trips_over_server:
                self.finish(self._start(options, dump, target))
            else:
                self._run_by_psql(options, dump, target, drop)

    def _start(
        self, options: Sequence[str], dump: Path | None, target: DatabaseTarget, settings: str = ""
    ) -> RunningProcess:
        where = conninfo(target, options=f"{settings} {_WRITES} {silencing_options(target)}".strip())
        command = [str(self.tool.path), "--format=custom", "--no-password", *options, f"--dbname={where}"]
        command += [] if dump is None else [str(dump)]
        stdin = PIPE if dump is None else DEVNULL
        return self.runner.start(command, environment=libpq_environment(target), stdin=stdin, stdout=DEVNULL)

    def _run_by_psql(self, options: Sequence[str], dump: Path, target: DatabaseTarget, drop: Composed | None) -> None:
        """Let psql execute a statement, if there is one, and then the script of pg_restore, in one transaction."""
        psql = [str(self.find_psql().path), "--no-psqlrc", "--no-password", "--quiet", "--set=ON_ERROR_STOP=1"]
        where = f"--dbname={conninfo(target, options=f'{_WRITES} {silencing_options(target)}'.strip())}"
        command = [str(self.tool.path), "--format=custom", *options, "--file=-", str(dump)]
        writing = self.runner.start(command, environment=client_environment())
        try:
            with ExitStack() as opened:
                with writing.stdout as script:
                    first = b"" if drop is None else drop.as_bytes(None) + b";\n"
                    head = _known_settings(script) if self.trips_over_server else b""
                    prologue = opened.enter_context(unnamed_file(_PROLOGUE + first + head))
                    psql += [where, f"--file={prologue}", "--file=-"]
                    environment = libpq_environment(target)
                    running = self.runner.start(psql, environment=environment, stdin=script, stdout=DEVNULL)
                _finish(running, program="psql")
        except OpsError:
            if not _lost_its_reader(writing):
                _finish(writing)  # psql saw the end of the script too early
            raise
        else:
            _finish(writing)
        finally:
            writing.kill()


@contextmanager
def listed(entries: Iterable[Entry]) -> Iterator[str]:
    """A pg_restore option that selects entries."""
    with unnamed_file(b"".join(b"%d;\n" % entry.number for entry in entries)) as chosen:
        yield f"--use-list={chosen}"


def _known_settings(script: IO[bytes]) -> bytes:
    """Read the head of a script, up to the setting that an older server does not have; return it without that line.

    Not a byte more is read: psql reads on there.
    """
    head = bytearray()
    while not head.endswith(_UNKNOWN_SETTING_LINE):
        byte = os.read(script.fileno(), 1)
        if not byte:
            return bytes(head)
        head += byte
    return bytes(head.removesuffix(_UNKNOWN_SETTING_LINE))


def _lost_its_reader(writing: RunningProcess) -> bool:
    """True if a program ended because its reader stopped reading."""
    return writing.wait() == -signal.SIGPIPE or "Broken pipe" in writing.stderr_tail()


def _finish(process: RunningProcess, *, program: str = "pg_restore", accepts_unknown_setting: bool = False) -> None:
    """Wait for a program to end, and raise its error."""
    try:
        returncode = process.wait()
    finally:
        process.kill()
    words = process.stderr_tail()
    if returncode != 0 and not (accepts_unknown_setting and _only_unknown_setting(returncode, words)):
        raise explain_failure(returncode, words, program)


def find_restorer(server_major: int, major: int | None, *, runner: ProcessRunner, bin_dir: Path | None) -> Restorer:
    """Find the pg_restore that reads the dump and fits the server.

    Arguments:
        major: the major version of the pg_dump that wrote the dump; None if it is no dump.

    Raises:
        NotIntactError: it is no dump.
        ClientToolError: no pg_restore can read it.
    """
    if major is None:
        raise not_a_dump()
    wanted = max(server_major, major)
    try:
        tool = find_client("pg_restore", wanted, runner=runner, bin_dir=bin_dir)
    except ClientToolError:
        if wanted == major:
            raise
        tool = find_client("pg_restore", major, runner=runner, bin_dir=bin_dir)
    return Restorer(tool=tool, server_major=server_major, runner=runner, bin_dir=bin_dir)


def explain_failure(returncode: int, stderr: str, program: str = "pg_restore") -> OpsError:
    """Return the error for a pg_restore, or its psql, with a non-zero exit status.

    Arguments:
        returncode: its exit code, negative for a signal.
        stderr: the end of its standard error.
    """
    if returncode < 0:
        return RestoreError(
            f"{program} was ended by {signal.Signals(-returncode).name}",
            hint="a user ended it, or the kernel did because memory was short: see dmesg",
        )
    cause = next(cause for cause in _CAUSES if cause.phrase.search(stderr))
    return cause.error(f"{program} failed: {_reason(stderr) or f'exit code {returncode}'}", hint=cause.hint)


def _only_unknown_setting(returncode: int, stderr: str) -> bool:
    """True if the only error is an older server's refusal of one setting.

    Parallel processes of pg_restore write at once: what the server has said comes whole, but not the words before it.
    """
    refusals, ignored = stderr.count(_UNKNOWN_SETTING), _IGNORED.search(stderr)
    others = _REFUSAL.search(stderr.replace(_UNKNOWN_SETTING, ""))
    # Refusals on its further connections are reported, but not counted.
    return returncode == 1 and others is None and ignored is not None and int(ignored[1]) <= refusals


def _reason(stderr: str) -> str:
    """The first error that counts; later ones follow from it."""
    stderr = stderr.replace(f"pg_restore: error: {_UNKNOWN_SETTING}", "")
    errors = _ERROR.findall(stderr) or [first or second for first, second in _PSQL_ERROR.findall(stderr)]
    text: str = errors[0] if errors else stderr.strip()[-_LAST_CHARACTERS:]
    return text.removeprefix("could not execute query: ").removeprefix("ERROR:").strip()[:_LAST_CHARACTERS]
