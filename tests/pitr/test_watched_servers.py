"""Servers that are watched: a base backup that waits for their archiving, and a slot that others make and drop."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from portal.ops.errors import BusyError, DumpFailedError, OpsError
from portal.ops.pitr import archiver_watch, replication
from portal.ops.pitr.archiver_watch import archiver_watched
from portal.ops.pitr.replication import ensure_slot
from portal.ops.settings.database_url import DatabaseTarget
from tests.support.fake_runner import FakeProcess, Script
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

TARGET = DatabaseTarget(host="h", port=1, name="n", user="u")


@pytest.mark.parametrize("error", [OpsError("away"), psycopg.OperationalError("away")])
def test_a_server_that_cannot_be_asked(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """It does not wait, as far as anybody knows; the program itself meets the fault."""

    def away(_: object) -> None:
        raise error

    monkeypatch.setattr(archiver_watch, "maintenance", away)
    assert not archiver_watch._waits(TARGET, "base")


@pytest.mark.parametrize("waits", [True, False])
def test_how_long_it_may_wait(monkeypatch: pytest.MonkeyPatch, waits: bool) -> None:
    """Longer than that, the program is ended, and its error is that of the archiving; otherwise it is its own."""
    asked: list[tuple[str, list[str]]] = []

    def execute(query: str, given: list[str]) -> Any:
        asked.append((query, given))
        return SimpleNamespace(fetchone=lambda: (1,) if waits else None)

    @contextmanager
    def maintenance(_: object) -> Iterator[Any]:
        yield SimpleNamespace(execute=execute)

    monkeypatch.setattr(archiver_watch, "maintenance", maintenance)
    monkeypatch.setattr(archiver_watch, "_PATIENCE_SECONDS", 0.01)
    process = FakeProcess(Script(hangs=True))
    with pytest.raises(DumpFailedError) as caught, archiver_watched(TARGET, "base", process):
        if waits:
            process.wait(60)
        else:
            wait_until(lambda: len(asked) >= 3)
        raise DumpFailedError("its own", hint="")
    assert ("archive_command has not succeeded for 0 s" in caught.value.message) is waits
    assert (process.returncode is not None) is waits
    assert asked[0][1] == ["base"]


class Server:
    """A server whose slot is not usable, and which refuses to make one so many times."""

    def __init__(self, refusals: int, *, has_slot: bool) -> None:
        self._refusals = refusals
        self.has_slot = has_slot
        self.done: list[str] = []

    def execute(self, statement: str, _given: list[str]) -> None:
        """Refuse, or do it."""
        self.done.append(statement.split("(")[0].removeprefix("SELECT "))
        if "create" in statement:
            self._refusals -= 1
            if self._refusals >= 0:
                raise psycopg.errors.DuplicateObject


@pytest.mark.parametrize(("refusals", "has_slot"), [(0, False), (2, True), (99, True)])
def test_a_slot_that_others_make_and_drop(monkeypatch: pytest.MonkeyPatch, refusals: int, has_slot: bool) -> None:
    """It is tried again after a pause, and given up after the twentieth time."""
    pauses: list[float] = []
    server: Any = Server(refusals, has_slot=has_slot)
    monkeypatch.setattr(replication, "time", SimpleNamespace(sleep=pauses.append))
    monkeypatch.setattr(replication, "position", lambda *_: SimpleNamespace(is_usable=False, has_slot=has_slot))
    drop = ["pg_drop_replication_slot"] if has_slot else []
    if refusals > 20:
        with pytest.raises(BusyError, match="the replication slot slot is lost, and another session holds it"):
            ensure_slot(server, "slot")
        assert pauses == [0.05] * 20
    else:
        assert ensure_slot(server, "slot")
        assert pauses == [0.05] * refusals
        assert server.done == [*drop, "pg_create_physical_replication_slot"] * (refusals + 1)
