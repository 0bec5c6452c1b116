"""Running pg_restore: the version that fits, the documented options, and what its last words mean.

pg_restore runs nothing but what is in the dump. Where tables have to go in the same transaction, it writes its commands
for psql, which drops them first. The COMMIT is the last command: if either program ends early, nothing has happened.
Both should be up to date: since August 2025, psql obeys no command of its own that hides in a name of the dump.

The SQL in a dump runs with all the rights of the role that restores it. A dump is to be trusted as far as the archive
that it came in: nothing here looks at what it does.
"""

from __future__ import annotations

import re
import signal
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

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

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from psycopg.sql import Composed

    from portal.ops.postgres.client_tools import ClientTool
    from portal.ops.postgres.toc import Entry
    from portal.ops.runtime.process import ProcessRunner, RunningProcess
    from portal.ops.settings.database_url import DatabaseTarget

OPTIONS: Final = ("--clean", "--if-exists", "--no-owner", "--exit-on-error")
"""What the guide promises of every restore."""

# A stage that a crash loses is done again, so it need not wait for the disk; the commit of the swap waits for it all.
# Each connection builds its index alone: the number of connections is what the portal's server can spare.
_STAGE_SETTINGS: Final = "-c synchronous_commit=off -c maintenance_work_mem=256MB -c max_parallel_maintenance_workers=0"
_LAST_CHARACTERS: Final = 600
_OLDER_SERVER_NEEDS: Final = 17
_UNKNOWN_SETTING: Final = 'unrecognized configuration parameter "transaction_timeout"'
_ERROR: Final = re.compile(r"^pg_restore: error: (.*)", re.MULTILINE)
# One of psql: psql:<stdin>:12: ERROR:  cannot drop table public.finding because other objects depend on it
_PSQL_ERROR: Final = re.compile(r"^psql: error: (.*)|^psql:\S+:\d+: (?!WARNING|NOTICE|INFO)(.*)", re.MULTILINE)
_IGNORED: Final = re.compile(r"errors ignored on restore: (\d+)")
# The script begins a transaction too: inside of this one that is a warning, and its COMMIT ends both.
_PROLOGUE: Final = """\
SET client_encoding = 'UTF8';
SET client_min_messages = error;
SET statement_timeout = 0;
SET lock_timeout = 0;
BEGIN;
{};
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
        "a foreign server that the backup names cannot be reached from the database's server: mend that, or drop it",
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
        server_major: major version of the server that it is for.
        bin_dir: the only directory to look for psql in; nothing looks everywhere.
    """

    tool: ClientTool
    server_major: int
    runner: ProcessRunner
    bin_dir: Path | None = None

    @property
    def trips_over_server(self) -> bool:
        """True if it starts with a setting that the older server does not know, and counts that as an error."""
        return self.tool.major >= _OLDER_SERVER_NEEDS > self.server_major

    def decode(self, dump: Path) -> None:
        """Read a dump to its end, and throw the result away.

        Raises:
            NotIntactError: it cannot be decoded.
        """
        process = start_decoding(self.tool, runner=self.runner, dump=dump)
        try:
            _finish(process)
        except RestoreError as error:
            if (process.returncode or 0) < 0:
                raise
            raise NotIntactError(
                error.message, hint=another_archive()
            ) from error  # there is no server whose fault it could be

    def find_psql(self) -> ClientTool:
        """Find the psql that runs what this pg_restore writes.

        Raises:
            ClientToolError: there is none.
        """
        return find_client("psql", self.tool.major, runner=self.runner, bin_dir=self.bin_dir)

    def stage(self, target: DatabaseTarget, options: Sequence[str], dump: Path) -> None:
        """Restore a part of a dump into a database that nobody uses yet.

        Arguments:
            options: which part, and how.
            dump: a file that has the dump's table of contents, and the rows that are wanted.

        Raises:
            OpsError: pg_restore failed, and the database is worth nothing.
        """
        self.finish(self.start_stage(target, options, dump))

    def start_stage(self, target: DatabaseTarget, options: Sequence[str], dump: Path | None = None) -> RunningProcess:
        """Start what `stage` does; without a file the dump is read from the standard input of the program."""
        base = [option for option in OPTIONS if option != "--exit-on-error" or not self.trips_over_server]
        return self._start([*base, *options], dump, target, _STAGE_SETTINGS)

    def finish(self, process: RunningProcess) -> None:
        """Wait for a pg_restore. Raises OpsError where it failed."""
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
        """Restore over what a database holds, in one transaction: all of it, or nothing.

        Arguments:
            contents: the entries that are wanted, in the order of the dump.
            drop: a statement that comes before all others, as the user of the connection.

        Raises:
            OpsError: pg_restore or psql failed, and the database is as it was.
        """
        with listed(contents) as wanted:
            options = [*OPTIONS, "--single-transaction", wanted]
            options += [f"--role={role}"] if role else []
            if drop is None:
                self.finish(self._start(options, dump, target))
            else:
                self._run_by_psql(options, dump, target, drop)

    def _start(
        self, options: Sequence[str], dump: Path | None, target: DatabaseTarget, settings: str = ""
    ) -> RunningProcess:
        where = conninfo(target, options=f"{settings} {silencing_options(target)}".strip())
        command = [str(self.tool.path), "--format=custom", "--no-password", *options, f"--dbname={where}"]
        command += [] if dump is None else [str(dump)]
        stdin = PIPE if dump is None else DEVNULL
        return self.runner.start(command, environment=libpq_environment(target), stdin=stdin, stdout=DEVNULL)

    def _run_by_psql(self, options: Sequence[str], dump: Path, target: DatabaseTarget, drop: Composed) -> None:
        """Let psql run one statement, and then what pg_restore writes, in the transaction of both."""
        psql = [str(self.find_psql().path), "--no-psqlrc", "--no-password", "--quiet", "--set=ON_ERROR_STOP=1"]
        with tempfile.NamedTemporaryFile("w", suffix=".sql", encoding="utf-8") as prologue:
            prologue.write(_PROLOGUE.format(drop.as_string(None)))
            prologue.flush()
            where = conninfo(target, options=silencing_options(target))
            psql += [f"--dbname={where}", f"--file={prologue.name}", "--file=-"]
            command = [str(self.tool.path), "--format=custom", *options, "--file=-", str(dump)]
            writing = self.runner.start(command, environment=client_environment())
            try:
                with writing.stdout as script:
                    environment = libpq_environment(target)
                    running = self.runner.start(psql, environment=environment, stdin=script, stdout=DEVNULL)
                _finish(running, program="psql")
            except OpsError:
                if not _lost_its_reader(writing):
                    _finish(writing)  # psql came to an end of the commands that is none
                raise
            else:
                _finish(writing)
            finally:
                writing.kill()


@contextmanager
def listed(entries: Iterable[Entry]) -> Iterator[str]:
    """An option of pg_restore that has it restore some entries and no others."""
    with tempfile.NamedTemporaryFile("w", suffix=".list") as chosen:
        chosen.write("".join(f"{entry.number};\n" for entry in entries))
        chosen.flush()
        yield f"--use-list={chosen.name}"


def _lost_its_reader(writing: RunningProcess) -> bool:
    """True if a program ended because nobody read on."""
    return writing.wait() == -signal.SIGPIPE or "Broken pipe" in writing.stderr_tail()


def _finish(process: RunningProcess, *, program: str = "pg_restore", accepts_unknown_setting: bool = False) -> None:
    """Wait for the end of a program, and raise what it complains about."""
    try:
        returncode = process.wait()
    finally:
        process.kill()
    words = process.stderr_tail()
    if returncode != 0 and not (accepts_unknown_setting and _only_unknown_setting(returncode, words)):
        raise explain_failure(returncode, words, program)


def find_restorer(server_major: int, major: int | None, *, runner: ProcessRunner, bin_dir: Path | None) -> Restorer:
    """Find the pg_restore that reads the dump and suits the server.

    Arguments:
        major: version of the pg_dump that wrote the dump; nothing where it is no dump.

    Raises:
        NotIntactError: it is no dump.
        ClientToolError: there is no pg_restore that can read it.
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
    """Return the error for a pg_restore, or the psql that it writes for, that ended with something other than 0.

    Arguments:
        returncode: its exit code, negative for a signal.
        stderr: the end of what it wrote there.
    """
    if returncode < 0:
        return RestoreError(
            f"{program} was ended by {signal.Signals(-returncode).name}",
            hint="a user ended it, or the kernel did because memory was short: see dmesg",
        )
    cause = next(cause for cause in _CAUSES if cause.phrase.search(stderr))
    return cause.error(f"{program} failed: {_reason(stderr) or f'exit code {returncode}'}", hint=cause.hint)


def _only_unknown_setting(returncode: int, stderr: str) -> bool:
    """True if an older server's refusal of one setting is all that went wrong."""
    errors, ignored = _ERROR.findall(stderr), _IGNORED.search(stderr)
    expected = all(_UNKNOWN_SETTING in error for error in errors)
    # Those of its further connections are reported, but not counted.
    return returncode == 1 and expected and ignored is not None and int(ignored[1]) <= len(errors)


def _reason(stderr: str) -> str:
    """The first error: what follows comes of it."""
    errors = _ERROR.findall(stderr) or [first or second for first, second in _PSQL_ERROR.findall(stderr)]
    text: str = errors[0] if errors else stderr.strip()[-_LAST_CHARACTERS:]
    return text.removeprefix("could not execute query: ").removeprefix("ERROR:").strip()[:_LAST_CHARACTERS]
