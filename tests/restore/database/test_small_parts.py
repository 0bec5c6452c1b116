"""What a restore of a database decides by itself: room, names, what was replaced, whether to try again."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from portal.ops.errors import (
    BusyError,
    ConfigurationError,
    DatabaseAbsentError,
    DiskFullError,
    RepositoryError,
    RestoreError,
    SourceError,
)
from portal.ops.postgres.row_counts import list_tables
from portal.ops.postgres.server import maintenance
from portal.ops.restore.database import plan as database_plan
from portal.ops.restore.database import swap
from portal.ops.restore.database.in_place import Before
from portal.ops.restore.database.model import DatabaseState
from portal.ops.restore.database.plan import BackedUp, free_bytes, is_local
from portal.ops.restore.database.swap import Exchange, exchange
from portal.ops.settings.database_url import DatabaseTarget
from tests.support.database_restores import IN_PLACE, SWAP, new_database, plan_of
from tests.support.restoring import Bench, bench, execute, identity
from tests.support.sessions import session

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from demo.postgres import EmbeddedPostgres

MB = 1_000_000


@pytest.fixture
def small(postgres: EmbeddedPostgres, tmp_path: Path) -> Iterator[Bench]:
    """A database of two tables, and its dump."""
    target = new_database(postgres)
    execute(target, "CREATE TABLE a AS SELECT 1 AS n", "CREATE TABLE b ()")
    with bench(target, postgres.bin_dir, tmp_path) as made:
        yield made
    postgres.drop_database(target.name)


class TestRoom:
    """What a second copy takes, and whether there is room for it."""

    def needed(self, made: Bench, dump_bytes: int, database_bytes: int = 0, **options: Any) -> int:
        """What the plan says."""
        backed_up = BackedUp(database_bytes=database_bytes)
        found = made.restore(**options).plan(
            dump_major=17, dump_bytes=dump_bytes, row_counts=made.rows, backed_up=backed_up
        )
        return found.needed_bytes

    def test_by_the_source(self, small: Bench) -> None:
        """A tenth more than that, or what the dump makes necessary."""
        assert self.needed(small, 0, 100 * MB) == 110 * MB
        assert self.needed(small, 100 * MB, 100 * MB) == 138 * MB

    def test_by_the_dump_or_the_live_one(self, small: Bench) -> None:
        """Of an older release's archive the source is not known."""
        assert self.needed(small, 1000 * MB) == 1308 * MB
        execute(small.target, "CREATE TABLE large AS SELECT n FROM generate_series(1, 100000) AS n")
        with maintenance(small.target) as connection:
            row = connection.execute("SELECT pg_database_size(%s)", [small.target.name]).fetchone()
        assert row is not None
        grown = replace(small.target, name=f"{small.target.name}_absent")
        assert self.needed(small, 0, target=grown, create_database=True) == 8 * MB
        assert self.needed(small, 0) == row[0] > 8 * MB

    def test_to_the_byte(self, small: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """A disk with just enough room is enough; one that cannot be seen is no obstacle."""
        for free, is_short in ((1308 * MB, False), (1308 * MB - 1, True), (None, False)):
            monkeypatch.setattr(database_plan, "free_bytes", lambda *_, free=free: free)
            found = small.restore().plan(dump_major=17, dump_bytes=1000 * MB, row_counts=small.rows)
            assert [type(error) for error in found.blockers] == ([DiskFullError] if is_short else [])
            assert found.free_bytes == free

    @pytest.mark.parametrize(
        ("host", "expected"),
        [("/run/postgresql", True), ("localhost", True), ("127.0.0.1", True), ("::1", True), ("db", False)],
    )
    def test_whose_disk_it_is(self, host: str, expected: bool) -> None:
        """This machine's, by the address."""
        assert is_local(DatabaseTarget(host=host, port=1, name="", user="")) is expected

    def test_only_the_same_server_shows_its_disk(self, small: Bench) -> None:
        """Its directory has a file with its port; elsewhere nothing is known."""
        with maintenance(small.target) as connection:
            assert (free_bytes(connection, small.target) or 0) > 0
            assert free_bytes(connection, replace(small.target, port=1)) is None
            assert free_bytes(connection, replace(small.target, host="db")) is None


class TestPlan:
    """What else a plan warns of."""

    def warnings(self, made: Bench, backed_up: BackedUp, **options: Any) -> list[str]:
        """What it says of a database that is not there."""
        target = replace(made.target, name=f"{made.target.name}_absent")
        restore = made.restore(target=target, create_database=True, **options)
        found = restore.plan(dump_major=17, dump_bytes=1, row_counts=made.rows, backed_up=backed_up)
        return list(found.warnings)

    def test_an_owner_that_is_no_role_here(self, small: Bench) -> None:
        """Who will own it all is said, and how to have it otherwise; another owner may be named."""
        lost = BackedUp(
            identity=identity(owner="gone", privileges=(("lost", "CONNECT", False), (None, "CONNECT", False)))
        )
        first, second = self.warnings(small, lost)
        assert first.startswith("the owner gone is no role of this server, so everything will belong to postgres; ")
        assert 'CREATE ROLE "gone" LOGIN' in first
        assert second.startswith(
            "lost: no such role on this server, and the database's privileges and settings name it"
        )
        (only,) = self.warnings(small, lost, owner="postgres")
        assert only.startswith("lost: no such role")
        assert self.warnings(small, BackedUp(identity=identity())) == []
        assert self.warnings(small, BackedUp()) == []

    def test_of_a_live_database_the_owner_stays(self, small: Bench) -> None:
        """The backup's is not asked for."""
        found = small.restore().plan(
            dump_major=17, dump_bytes=1, row_counts=small.rows, backed_up=BackedUp(identity=identity(owner="gone"))
        )
        assert found.warnings == ()

    def test_in_place_the_portal_has_to_stop(self, small: Bench) -> None:
        """What it writes meanwhile could not be rolled back; its default privileges are added."""
        execute(small.target, "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO pg_monitor")
        first, second = plan_of(small, mode=IN_PLACE).warnings
        assert first.startswith("the live database's default privileges")
        assert second.startswith("stop the portal: ")
        assert plan_of(small, mode=SWAP).warnings == ()

    @pytest.mark.parametrize(("mode", "says"), [(SWAP, "go with the old database"), (IN_PLACE, "stay as they are")])
    def test_tables_that_are_newer(self, small: Bench, mode: Any, says: str) -> None:
        """All are named; of a backup without counts nothing is known, which is said."""
        execute(small.target, "CREATE TABLE z ()", "CREATE TABLE c ()")
        assert f"tables that are newer than the backup {says}: public.c, public.z" in plan_of(small, mode=mode).warnings
        found = small.restore(mode=mode).plan(dump_major=17, dump_bytes=1, row_counts={})
        assert "the manifest does not say how many rows there were: nothing is held against it" in found.warnings
        assert not any("newer" in warning for warning in found.warnings)


class TestBefore:
    """The state before a restore in place."""

    def before(self, made: Bench, *restored: str, **changes: int) -> Before:
        """The tables as they are, with others' numbers for some."""
        with session(made.target) as connection:
            tables = {table.name: table.oid for table in list_tables(connection)}
        tables |= {f"public.{name}": number for name, number in changes.items()}
        names = frozenset(f"public.{name}" for name in restored)
        return Before(restore_id="r", dump=made.dump, tables=tables, restored=names)

    def test_what_was_replaced(self, small: Bench) -> None:
        """All tables that both have are other ones; where the backup's are not known, one is enough."""
        target = small.target
        assert not self.before(small, "a", "b").is_replaced(target)
        assert not self.before(small, "a", "b", a=1).is_replaced(target)
        assert self.before(small, "a", "b", a=1, b=1).is_replaced(target)
        assert self.before(small, "a", a=1).is_replaced(target)
        assert not self.before(small, "a", b=1).is_replaced(target)
        assert not self.before(small).is_replaced(target)
        assert self.before(small, a=1).is_replaced(target)

    def test_where_nothing_was_of_it(self, small: Bench) -> None:
        """What it has brought shows."""
        only_new = self.before(small, "new")
        assert only_new.brought == {"public.new"}
        assert not only_new.is_replaced(small.target)
        execute(small.target, "CREATE TABLE new ()")
        assert only_new.is_replaced(small.target)

    def test_it_is_that_of_its_own_restore(self, small: Bench, tmp_path: Path) -> None:
        """Without the dump there is none; one that makes no sense is an error."""
        dump = tmp_path / "before.dump"
        record = tmp_path / "before.dump.tables.json"
        record.write_text(json.dumps({"restore_id": "r", "tables": {'"public".a': 1}, "restored": ["public.b"]}))
        assert Before.load(dump, "r") is None
        dump.touch()
        found = Before.load(dump, "r")
        assert found is not None
        assert (dict(found.tables), set(found.restored)) == ({"public.a": 1}, {"public.b"})
        assert Before.load(dump, "other") is None
        found.remove()
        assert not dump.exists()
        assert not record.exists()
        found.remove()
        dump.touch()
        for text in (None, "{", "{}"):
            if text is not None:
                record.write_text(text)
            with pytest.raises(RepositoryError, match=f"cannot read {record}"):
                Before.load(dump, "r")

    def test_a_place_that_cannot_be_written(self, small: Bench, tmp_path: Path) -> None:
        """It is an error of the repository, before anything is changed; so is none at all."""
        (tmp_path / "file").touch()
        restore = small.restore(mode=IN_PLACE, safety_dump=tmp_path / "file" / "safety.dump")
        restore.stage(small.source(), small.rows)
        with pytest.raises(RepositoryError, match="cannot write the safety dump"):
            restore.apply()
        restore = small.restore(mode=IN_PLACE, safety_dump=None)
        restore.stage(small.source(), small.rows)
        with pytest.raises(ConfigurationError, match="needs a path for its safety dump"):
            restore.apply()

    def test_without_one_there_is_no_way_back(self, small: Bench) -> None:
        """It is said what there is instead."""
        restore = small.restore(mode=IN_PLACE)
        with pytest.raises(RestoreError, match="has kept: it was not applied, or it was dropped since"):
            restore.rollback()
        restore.stage(small.source(), small.rows)
        restore.apply()
        small.dump.with_name("safety.dump").unlink()
        assert restore.state() is DatabaseState.NOTHING
        with pytest.raises(RestoreError):
            restore.rollback()


class TestExchange:
    """A transaction that cannot be done now is tried again."""

    @pytest.fixture
    def pauses(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """How long was waited."""
        made: list[float] = []
        monkeypatch.setattr(swap, "time", SimpleNamespace(sleep=made.append, monotonic=time.monotonic))
        return made

    def failing(self, monkeypatch: pytest.MonkeyPatch, times: int, error: Exception) -> list[None]:
        """Have the first attempts fail."""
        tried: list[None] = []
        run = swap._Attempt.run

        def fails(attempt: swap._Attempt) -> None:
            tried.append(None)
            attempt.seconds = 1.0
            if len(tried) <= times:
                raise error
            run(attempt)

        monkeypatch.setattr(swap._Attempt, "run", fails)
        return tried

    @pytest.mark.parametrize("times", [0, 1, 6])
    def test_until_it_can(self, small: Bench, times: int, pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
        """With longer pauses each time; the time that nobody could connect is all of it."""
        restore = small.restore()
        restore.stage(small.source(), small.rows)
        self.failing(monkeypatch, times, psycopg.errors.ObjectInUse())
        report = restore.apply()
        assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2][:times]
        assert times <= report.downtime_seconds < times + 60
        assert restore.state() is DatabaseState.APPLIED

    @pytest.mark.parametrize(("setting", "found"), [("off", "on"), ("local", "local")])
    def test_it_waits_for_the_disk(self, small: Bench, setting: str, found: str) -> None:
        """What was filled without waiting is there for good once it is live; waits for locks have a limit."""
        wanted = Exchange(live=small.target.name, kept_as="x", incoming=None, inherits=False)
        with maintenance(small.target) as connection, connection.transaction():
            connection.execute(f"SET LOCAL synchronous_commit = {setting}".encode())
            swap._Attempt(connection, connection, wanted, None)._prepare()
            assert connection.execute("SHOW synchronous_commit").fetchone() == (found,)
            assert connection.execute("SHOW lock_timeout").fetchone() != ("0",)

    def test_or_not(self, small: Bench, pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
        """After the seventh time it is an error that names who is there; any other error is one at once."""
        wanted = Exchange(live=small.target.name, kept_as="x", incoming=None, inherits=False)
        tried = self.failing(monkeypatch, 99, psycopg.errors.LockNotAvailable())
        with pytest.raises(BusyError, match="is in use by somebody who came and went"):
            exchange(small.target, wanted)
        assert (len(tried), len(pauses)) == (7, 6)
        tried = self.failing(monkeypatch, 99, psycopg.errors.UndefinedObject("there is none"))
        with pytest.raises(SourceError, match="there is none"):
            exchange(small.target, wanted)
        assert (len(tried), len(pauses)) == (1, 6)


def test_a_database_that_went_away_since(small: Bench, postgres: EmbeddedPostgres) -> None:
    """What was staged is not put in place of nothing, unless that was asked for; then it is ours."""
    restore = small.restore()
    restore.stage(small.source(), small.rows)
    postgres.drop_database(small.target.name)
    with pytest.raises(DatabaseAbsentError):
        restore.apply()
    created = small.restore(restore_id=restore.restore_id, create_database=True)
    assert created.state() is DatabaseState.STAGED
    report = created.apply()
    assert (report.kept_database, created.state()) == (None, DatabaseState.APPLIED)
    assert created.apply().kept_database is None
    created.rollback()
    assert created.state() is DatabaseState.ROLLED_BACK
