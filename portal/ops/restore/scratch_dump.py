"""Streams the dump of a database on a scratch server into the database that will be swapped in.

The dump never goes to the disk. A restore opens a dump several times: for its version, its table of contents, its rows.
So the start of the stream is kept, and pg_dump continues where it was.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, Self

from portal.ops.errors import DumpFailedError
from portal.ops.postgres.client_tools import find_client
from portal.ops.postgres.connection import connect, conninfo, libpq_environment
from portal.ops.postgres.dump import encoding_options, statistics_options
from portal.ops.postgres.dump_file import Dump
from portal.ops.postgres.explained import explained_errors
from portal.ops.postgres.failures import explain_dump_failure
from portal.ops.postgres.row_counts import count_rows, list_tables

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from portal.ops.postgres.client_tools import ClientTool
    from portal.ops.runtime.process import ProcessRunner, RunningProcess
    from portal.ops.runtime.progress import Advance
    from portal.ops.settings.load import DatabaseTarget

_PIECE_BYTES: Final = 1 << 18
_KEPT_BYTES: Final = 32 << 20


class ScratchDump:
    """Dumps one database of a server that nobody else uses; a context manager.

    Arguments:
        target: the database.
        major: the server's major version.
        runner: starts pg_dump, in the thread that opens the dump.
    """

    def __init__(self, target: DatabaseTarget, major: int, *, runner: ProcessRunner, bin_dir: Path | None) -> None:
        self._target = target
        self._major = major
        self._runner = runner
        self._bin_dir = bin_dir
        self._tool: ClientTool | None = None
        self._rewindable: _Stream | None = None

    def __enter__(self) -> Self:
        self._tool = find_client("pg_dump", self._major, runner=self._runner, bin_dir=self._bin_dir)
        return self

    def __exit__(self, *_: object) -> None:
        if self._rewindable:
            self._rewindable.close()

    def dump(self, path: Path, advance: Advance) -> Dump:
        """The dump as a restore reads it.

        Arguments:
            path: the file for the dump, if a file is needed.
            advance: called with the number of bytes after each read; bytes that are read again do not count.
        """
        return Dump(open=self._open, path=path, advance=advance)

    @contextmanager
    def _open(self) -> Iterator[Iterator[memoryview]]:
        stream, self._rewindable = self._rewindable or self._start(), None
        try:
            yield stream.pieces()
        finally:
            if stream.can_rewind and self._rewindable is None:
                self._rewindable = stream
            else:
                stream.close()

    def _start(self) -> _Stream:
        assert self._tool is not None
        command = [str(self._tool.path), "--format=custom", "--compress=0", "--no-password"]
        with connect(self._target) as connection:
            command += encoding_options(connection)
        command += [*statistics_options(self._tool, self._major), f"--dbname={conninfo(self._target)}"]
        return _Stream(self._runner.start(command, environment=libpq_environment(self._target)))


class _Stream:
    """The output of one pg_dump, which can be read again from the start while little of it was read."""

    def __init__(self, process: RunningProcess) -> None:
        self._process = process
        self._kept: list[memoryview] = []
        self._kept_bytes = 0
        self._has_ended = False
        self.can_rewind = True

    def pieces(self) -> Iterator[memoryview]:
        """Everything from the start; raises an error if the dump was incomplete."""
        yield from list(self._kept)
        while not self._has_ended and (data := self._process.stdout.read(_PIECE_BYTES)):
            piece = memoryview(data)
            if self.can_rewind:
                self._kept.append(piece)
                self._kept_bytes += len(piece)
                self.can_rewind = self._kept_bytes <= _KEPT_BYTES
                if not self.can_rewind:
                    self._kept.clear()
            yield piece
        self._has_ended = True
        if code := self._process.wait():
            raise explain_dump_failure(code, self._process.stderr_tail())

    def close(self) -> None:
        with suppress(OSError):
            self._process.stdout.close()
        self._process.kill()


class RowCounts(Mapping[str, int]):
    """The row counts of every table of a database that nobody writes to, counted in the background.

    Reading it waits for the end of the count.

    Arguments:
        target: the database.
    """

    def __init__(self, target: DatabaseTarget) -> None:
        self._target = target
        self._found: Mapping[str, int] = {}
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._count, name="row-count", daemon=True)
        self._thread.start()

    def __getitem__(self, table: str) -> int:
        return self._counted()[table]

    def __iter__(self) -> Iterator[str]:
        return iter(self._counted())

    def __len__(self) -> int:
        return len(self._counted())

    def _counted(self) -> Mapping[str, int]:
        self._thread.join()
        if self._failure:
            raise DumpFailedError(
                f"the rows of the recovered database cannot be counted: {self._failure}", hint="Try again."
            ) from self._failure
        return self._found

    def _count(self) -> None:
        try:
            with connect(self._target) as connection, explained_errors(self._target):
                connection.execute("SET max_parallel_workers_per_gather = 0")
                self._found = count_rows(connection, list_tables(connection))
        except Exception as error:  # told to whoever asks: no rows at all would look like a count
            self._failure = error
