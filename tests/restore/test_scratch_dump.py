"""The dump that never goes to the disk: read from the start again while that is kept, and told where it fails."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from portal.ops.errors import ClientToolError, DumpFailedError, OpsError
from portal.ops.postgres.connection import connect
from portal.ops.restore import scratch_dump
from portal.ops.restore.scratch_dump import RowCounts, ScratchDump
from portal.ops.settings.database_url import DatabaseTarget
from tests.support.fake_runner import FakeRunner, Script

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager


TARGET = DatabaseTarget(host="/run/scratch", port=1, name="dojo", user="postgres")
PIECE = 1 << 18
CONTENT = bytes(range(256)) * (5 * PIECE // 256) + b"end"
VERSION = Script(stdout=b"pg_dump (PostgreSQL) 17.2\n")


class Runner(FakeRunner):
    """Plays scripts of pg_dump."""

    def __init__(self, *scripts: Script) -> None:
        super().__init__({"pg_dump": [VERSION, *scripts]})

    @property
    def dumps(self) -> list[list[str]]:
        """The commands that dump."""
        return self.commands[1:]


@pytest.fixture(autouse=True)
def answering(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a server, its encoding is known."""
    monkeypatch.setattr(scratch_dump, "connect", lambda target: nullcontext() if target is TARGET else connect(target))
    monkeypatch.setattr(scratch_dump, "encoding_options", lambda _: ["--encoding=LATIN1"])


def scratch(runner: Runner, major: int = 17) -> ScratchDump:
    return ScratchDump(TARGET, major, runner=runner, bin_dir=Path("/fake"))


def opened(made: ScratchDump) -> AbstractContextManager[Iterator[memoryview]]:
    return made.dump(Path("/unused"), lambda _: None).open()


def test_it_is_read_from_the_start_again() -> None:
    """By one program, as long as its start is kept; the whole of it, however much was read before."""
    runner = Runner(Script(stdout=CONTENT))
    with scratch(runner) as made:
        for count in (0, 1, 3):
            with opened(made) as pieces:
                assert b"".join(next(pieces) for _ in range(count)) == CONTENT[: count * PIECE]
        for _ in range(2):
            with opened(made) as pieces:
                assert b"".join(pieces) == CONTENT
    assert len(runner.dumps) == 1
    assert runner.dumps[0][1:4] == ["--format=custom", "--compress=0", "--no-password"]
    assert "--encoding=LATIN1" in runner.dumps[0]
    assert "dbname=dojo" in runner.dumps[0][-1]


def test_what_is_not_kept_is_dumped_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """When more was read than is kept; each program is ended."""
    monkeypatch.setattr(scratch_dump, "_KEPT_BYTES", 2 * PIECE)
    runner = Runner(Script(stdout=CONTENT))
    with scratch(runner) as made:
        for count in (2, 2, 3, 3):
            with opened(made) as pieces:
                assert b"".join(next(pieces) for _ in range(count)) == CONTENT[: count * PIECE]
    assert len(runner.dumps) == 2
    assert all(process.stdout.closed for process in runner.processes[1:])


def test_two_at_a_time() -> None:
    """Each has a program of its own; what is left is kept for the next."""
    runner = Runner(Script(stdout=CONTENT))
    with scratch(runner) as made:
        with opened(made) as one, opened(made) as other:
            assert next(one) == next(other)
            assert b"".join(other) == CONTENT[PIECE:]
        with opened(made) as again:
            assert b"".join(again) == CONTENT
    assert len(runner.dumps) == 2
    assert all(process.stdout.closed for process in runner.processes[1:])


@pytest.mark.parametrize("kept", [1 << 30, 10])
def test_a_dump_that_fails_is_told(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its end, with what the program said."""
    monkeypatch.setattr(scratch_dump, "_KEPT_BYTES", kept)
    runner = Runner(Script(stdout=CONTENT, stderr="pg_dump: error: out of luck", returncode=1))
    with scratch(runner) as made, opened(made) as pieces, pytest.raises(OpsError, match="out of luck"):
        list(pieces)


@pytest.mark.parametrize("major", [17, 18])
def test_the_program_fits_the_server(major: int) -> None:
    """An older one is refused before anything is recovered for nothing."""
    if major == 17:
        with scratch(Runner(), major) as made:
            assert made
    else:
        with pytest.raises(ClientToolError), scratch(Runner(), major):
            pass


def test_rows_that_cannot_be_counted() -> None:
    """Whoever asks for them is told, as often as he asks."""
    rows = RowCounts(DatabaseTarget(host="127.0.0.1", port=1, name="dojo", user="x"))
    for ask in (len, list, lambda found: found["a"]):
        with pytest.raises(DumpFailedError, match="the rows of the recovered database cannot be counted"):
            ask(rows)


def test_a_fault_of_ours_is_no_count() -> None:
    """An error that nobody expects is told as well: a database without rows would look the same."""
    with pytest.raises(DumpFailedError, match="cannot be counted: 'NoneType' object"):
        len(RowCounts(TARGET))
