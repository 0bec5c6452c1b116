"""Filling a database that nobody uses yet from a dump that is nowhere on the disk.

    1 the start of the dump goes into a file, as far as its table of contents: that is all that pg_restore needs for
    2 what comes before the rows: types, tables, functions
    3 the rows come through a pipe, while they are decompressed
    4 what comes after them, over several connections: indexes, constraints, privileges, materialized views

Where several tables are large, several programs load rows at once, each its share of the tables; every one of them is
given the whole dump, and passes over the rest.
"""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from portal.ops.errors import NotIntactError
from portal.ops.postgres.dump_contents import privileges, share_out
from portal.ops.postgres.pg_restore import not_a_dump

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Future

    from portal.ops.postgres.dump_file import Dump
    from portal.ops.postgres.pg_restore import Restorer
    from portal.ops.runtime.process import RunningProcess
    from portal.ops.settings.database_url import DatabaseTarget

_FIRST_LOOK: Final = 1 << 18
"""So many bytes of a dump are enough for the table of contents of most; each further look is at twice as many."""


def fill(restorer: Restorer, dump: Dump, target: DatabaseTarget, *, jobs: int, role: str | None) -> None:
    """Restore into a database that nobody uses yet, with several connections at once.

    Arguments:
        jobs: number of connections.
        role: who is to own everything; nothing means the user of the connection.

    Raises:
        NotIntactError: the archive is damaged, or what it holds is no dump.
        OpsError: pg_restore failed. In each case the database is worth nothing.
    """
    options = [f"--role={role}"] if role else []
    with tempfile.NamedTemporaryFile(suffix=".dump") as file:
        contents = _write_head(restorer, dump, file)
        head = Path(file.name)
        restorer.stage(target, [*options, "--section=pre-data", "--no-privileges"], head)
        _Loading(restorer, dump, target, options).run(share_out(contents, dump.weights, jobs))
        last = [*restorer.list(head, "--section=post-data"), *privileges(contents)]
        with _listed(last) as wanted:
            restorer.stage(target, [*options, wanted, f"--jobs={jobs}"], head)


def _write_head(restorer: Restorer, dump: Dump, file: IO[bytes]) -> list[str]:
    """Write as much of a dump as holds its table of contents, and return the lines of that."""
    written, enough = 0, _FIRST_LOOK
    with dump.open() as content:
        for piece in content:
            written += file.write(piece)
            if written < enough:
                continue
            file.flush()
            with suppress(NotIntactError):  # it goes on behind what is there
                return restorer.list(Path(file.name), "--verbose")
            enough = 2 * written
    file.flush()
    if not written:
        raise not_a_dump()
    return restorer.list(Path(file.name), "--verbose")


class _Loading:
    """The rows on their way, by as many programs as there are shares."""

    def __init__(self, restorer: Restorer, dump: Dump, target: DatabaseTarget, options: Sequence[str]) -> None:
        self._restorer = restorer
        self._dump = dump
        self._target = target
        self._options = options

    def run(self, shares: Sequence[Sequence[str]]) -> None:
        """Load each share, and read the dump to its end, whatever is wanted of it."""
        with ExitStack() as opened:
            first, *others = [self._start(share, opened) for share in shares]
            # This thread starts all of them, since they end with it; further ones feed all but the first.
            threads = opened.enter_context(ThreadPoolExecutor(max(1, len(others)), thread_name_prefix="load"))
            opened.callback(_kill, [first, *others])  # before the threads are waited for
            fed = [threads.submit(self._feed, process, []) for process in others]
            self._feed(first, fed, is_first=True)
            for future in fed:
                future.result()
            for process in (first, *others):
                self._restorer.finish(process)

    def _start(self, share: Sequence[str], opened: ExitStack) -> RunningProcess:
        wanted = opened.enter_context(_listed(share))
        options = [*self._options, "--section=data", "--no-privileges", wanted]
        process = self._restorer.start_stage(self._target, options)
        opened.callback(process.kill)
        return process

    def _feed(self, process: RunningProcess, others: Sequence[Future[None]], *, is_first: bool = False) -> None:
        """Give a program the whole dump, or as much of it as it takes."""
        with self._dump.open() as content:
            for piece in content:
                for future in others:
                    if future.done():
                        future.result()  # which raises what went wrong there
                if is_first:
                    self._dump.advance(len(piece))
                if process.stdin.closed:
                    continue
                try:
                    process.stdin.write(piece)
                except BrokenPipeError:
                    # It has what it wants, or failed. The first one's dump is read to its end all the same: only there
                    # is its digest seen.
                    with suppress(BrokenPipeError):
                        process.stdin.close()
                    self._restorer.finish(process)
                    if not is_first:
                        return
        with suppress(BrokenPipeError):
            process.stdin.close()


@contextmanager
def _listed(lines: Sequence[str]) -> Iterator[str]:
    """An option of pg_restore that has it restore some entries and no others."""
    with tempfile.NamedTemporaryFile("w", suffix=".list") as chosen:
        chosen.write("".join(f"{line}\n" for line in lines))
        chosen.flush()
        yield f"--use-list={chosen.name}"


def _kill(processes: Sequence[RunningProcess]) -> None:
    for process in processes:
        process.kill()
