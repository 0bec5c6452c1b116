"""What a server offers for a restore, and which grant is missing: by the facts alone, without a server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from portal.ops.errors import (
    AccessDeniedError,
    BusyError,
    ClientToolError,
    OpsError,
    RestoreError,
    UnsupportedError,
)
from portal.ops.postgres.client_tools import ClientTool
from portal.ops.postgres.dump_contents import STATISTICS
from portal.ops.postgres.pg_restore import Restorer
from portal.ops.postgres.server import DatabaseFacts, Me, Session
from portal.ops.postgres.surroundings import Surroundings
from portal.ops.postgres.toc import Entry, Section
from portal.ops.restore.database.means import (
    Inside,
    Means,
    creation_obstacles,
    database_absent,
    decide,
    drill_obstacles,
    in_place_obstacles,
    least_grants,
    missing_psql,
    swap_obstacles,
)
from portal.ops.restore.database.model import RestoreMode
from portal.ops.settings.database_url import DatabaseTarget
from tests.support.fake_runner import FakeRunner, Script

SWAP, IN_PLACE, AUTO = RestoreMode.SWAP, RestoreMode.IN_PLACE, RestoreMode.AUTO
TARGET = DatabaseTarget(host="db", port=5433, name="dojo", user="app")
ADMINISTRATOR = Me(name="app", superuser=True, creates_databases=True)
MEEK = Me(name="app", superuser=False, creates_databases=False)
LIVE = DatabaseFacts(
    oid=1,
    name="dojo",
    owner="boss",
    encoding="UTF8",
    collate="C",
    ctype="C",
    provider="c",
    locale=None,
    icu_rules=None,
    tablespace="pg_default",
    allows_connections=True,
    size_bytes=1,
)
NOTHING = Surroundings(
    missing_roles=(), missing_tablespaces=(), missing_extensions=(), untrusted=(), trusted=("citext",)
)
REFUSED = AccessDeniedError("no entry in pg_hba.conf")


def means(**changes: Any) -> Means:
    """A server on which a user may do everything that a restore needs."""
    facts: dict[str, Any] = {
        "target": TARGET,
        "me": Me(name="app", superuser=False, creates_databases=True),
        "live": LIVE,
        "owned": True,
        "is_outside": True,
        "beside": None,
        "in_recovery": False,
        "sessions": (),
        "around": NOTHING,
        "locks": 64,
        "inside": Inside(),
        "entries": (),
    }
    return Means(**(facts | changes))


def session(pid: int, *, can_be_ended: bool) -> Session:
    return Session(pid=pid, application=f"app {pid}", user="boss", state="idle", can_be_ended=can_be_ended)


def entry(number: int, kind: str, name: str, **facts: Any) -> Entry:
    return Entry(number=number, kind=kind, name=name, **facts)


def restorer(major: int = 17, server_major: int = 17, *scripts: Script) -> Restorer:
    tool = ClientTool(path=Path("/fake/pg_restore"), version=f"{major}.2", major=major)
    runner = FakeRunner({"psql": list(scripts)} if scripts else {})
    return Restorer(tool=tool, server_major=server_major, runner=runner, bin_dir=Path("/fake"))


def in_place(found: Means, rows: dict[str, int] | None = None, large_objects: int = 0) -> list[OpsError]:
    return in_place_obstacles(found, rows or {}, large_objects)


def test_nothing_is_in_the_way_of_who_may_everything() -> None:
    """Neither of a swap nor of a restore in place, a drill or a new database; nor is any grant missing."""
    found = means(sessions=(session(1, can_be_ended=True),))
    assert swap_obstacles(found) == drill_obstacles(found) == in_place(found) == creation_obstacles(found) == []
    assert least_grants(found) == ""


@pytest.mark.parametrize("look", [swap_obstacles, drill_obstacles, in_place])
def test_a_standby_is_in_the_way_of_everything(look: Any) -> None:
    """It cannot be written to."""
    (error,) = look(means(in_recovery=True))
    assert isinstance(error, UnsupportedError)
    assert error.message == "the server at db:5433 is a standby, which cannot be written to"


@pytest.mark.parametrize("look", [swap_obstacles, drill_obstacles, in_place])
def test_an_extension_that_is_not_installed_is_in_the_way_of_everything(look: Any) -> None:
    """Each one is named."""
    errors = look(means(around=replace(NOTHING, missing_extensions=("postgis", "vector"))))
    assert [type(error) for error in errors] == [RestoreError] * 2
    assert [error.message for error in errors] == [
        f"the backup needs extension {name}, which this server does not have" for name in ("postgis", "vector")
    ]


class TestCreating:
    """Databases that a user may not create or rename."""

    def test_beside_a_live_one(self) -> None:
        """The smallest grant is told, with the other mode; a drill has no other mode."""
        found = means(me=MEEK)
        (error,) = swap_obstacles(found)
        assert error.hint == 'as an administrator: ALTER ROLE "app" CREATEDB; or restore with --mode in-place'
        assert error.message == "user app may not create databases"
        (error,) = drill_obstacles(found)
        assert error.hint == 'as an administrator: ALTER ROLE "app" CREATEDB'
        (error,) = creation_obstacles(found)
        assert "CREATEDB" in error.hint
        assert least_grants(found) == 'ALTER ROLE "app" CREATEDB'

    def test_where_there_is_none(self) -> None:
        """An administrator creates that very one."""
        found = means(me=MEEK, live=None)
        for look in (swap_obstacles, drill_obstacles, creation_obstacles):
            (error,) = look(found)
            assert error.message == "user app may not create database dojo"
            assert error.hint == 'as an administrator: CREATE DATABASE "dojo" OWNER "app"'

    def test_one_that_belongs_to_somebody_else(self) -> None:
        """It is not renamed without membership; a drill renames nothing, and nobody else creates it."""
        found = means(owned=False)
        (error,) = swap_obstacles(found)
        assert error.message == "user app may not rename database dojo, boss owns it"
        assert error.hint == 'as an administrator: GRANT "boss" TO "app"; or restore with --mode in-place'
        assert drill_obstacles(found) == creation_obstacles(found) == []
        assert least_grants(found) == 'GRANT "boss" TO "app"'

    def test_both_at_once(self) -> None:
        """Both grants are told; of a drill's only the one that it needs."""
        found = means(me=MEEK, owned=False)
        assert len(swap_obstacles(found)) == len(creation_obstacles(found)) == 2
        assert len(drill_obstacles(found)) == 1
        assert least_grants(found) == 'ALTER ROLE "app" CREATEDB; GRANT "boss" TO "app"'

    def test_where_there_is_none_nobody_owns_it(self) -> None:
        """Nothing is in the way of who may create it."""
        assert swap_obstacles(means(live=None, owned=False)) == []
        assert least_grants(means(live=None, owned=False)) == ""

    def test_an_absent_database_has_its_command(self) -> None:
        """Who may not create it is not told the option."""
        assert database_absent(TARGET).message == "the server at db:5433 has no database dojo"
        assert database_absent(TARGET).hint.startswith("restore with --create-database, or create it: createdb ")
        assert database_absent(TARGET, may_create=False).hint.startswith("as an administrator create it: createdb ")


class TestBeside:
    """Other databases that a user is not let into."""

    def test_from_which_to_rename(self) -> None:
        """A swap needs the maintenance database; a drill does not."""
        (error,) = swap_obstacles(means(is_outside=False))
        assert error.message.startswith("user app may connect neither to database postgres nor to template1")
        assert error.hint.endswith("; or restore with --mode in-place")
        assert drill_obstacles(means(is_outside=False)) == []

    def test_which_is_to_be_filled(self) -> None:
        """The rule to allow is told, to a restore with the other mode."""
        (of_swap,), (of_drill,) = swap_obstacles(means(beside=REFUSED)), drill_obstacles(means(beside=REFUSED))
        assert of_swap.message == of_drill.message
        assert of_swap.message.endswith("database beside dojo: no entry in pg_hba.conf")
        assert of_swap.hint.endswith('"/^dojo"; or restore with --mode in-place')
        assert of_drill.hint.endswith('"/^dojo"')


class TestAdministrators:
    """What only a superuser creates."""

    entries = (entry(1, "EXTENSION", "hstore"), *(entry(n, "EVENT TRIGGER", f"t{n}") for n in range(2, 9)))
    around = replace(NOTHING, untrusted=("hstore",))

    def test_a_superuser_creates_it(self) -> None:
        """Nothing is in the way."""
        found = means(me=ADMINISTRATOR, entries=self.entries, around=self.around)
        assert swap_obstacles(found) == drill_obstacles(found) == in_place(found) == []

    def test_others_do_not(self) -> None:
        """Extensions are named one by one, of the other objects the first ones; the extension is not told twice."""
        found = means(entries=self.entries, around=self.around)
        extension, others = swap_obstacles(found)
        assert extension.message.startswith("only an administrator can create extension hstore, which")
        assert others.message == (
            "only an administrator can create event trigger t2, event trigger t3, event trigger t4, event trigger t5, "
            "event trigger t6 and 2 more, which the backup holds"
        )
        assert "--mode in-place" in extension.hint
        assert [error.hint for error in drill_obstacles(found)] == [
            "drill as the server's administrator (DD_DATABASE_USER)"
        ] * 2

    def test_as_many_as_can_be_named_are_named(self) -> None:
        """Nothing is said of more."""
        (error,) = swap_obstacles(means(entries=self.entries[1:6]))
        assert error.message.endswith("event trigger t5, event trigger t6, which the backup holds")

    def test_a_trusted_extension_needs_none(self) -> None:
        """Any user may create it."""
        assert swap_obstacles(means(entries=(entry(1, "EXTENSION", "citext"),))) == []

    def test_in_place_an_extension_that_is_there_need_not_be_created(self) -> None:
        """One that is not there is in the way, with the statement."""
        found = means(entries=self.entries, around=self.around)
        (error,) = in_place(found)
        assert error.hint == 'as an administrator, in database dojo: CREATE EXTENSION "hstore"'
        assert in_place(replace(found, inside=Inside(extensions=frozenset({"hstore"})))) == []


def test_sessions_that_cannot_be_ended_are_in_the_way_of_a_swap() -> None:
    """The first ones are named; in place and in a drill nobody has to leave."""
    sessions = (session(9, can_be_ended=True), *(session(pid, can_be_ended=False) for pid in range(1, 8)))
    found = means(sessions=sessions)
    (error,) = swap_obstacles(found)
    assert isinstance(error, BusyError)
    named = ", ".join(f"process {pid} (app {pid}, user boss, idle)" for pid in range(1, 6))
    assert error.message == f"user app may not end {named}"
    assert drill_obstacles(found) == in_place(found) == []


class TestOwnership:
    """Objects in the live database that belong to somebody else."""

    def test_only_what_is_replaced_has_to_be_owned(self) -> None:
        """What the backup has, by its dump or by its manifest; where neither is known, everything."""
        found = means(inside=Inside(foreign=("public.a", "public.b")))
        (error,) = in_place(found)
        assert error.message == "user app does not own public.a, public.b"
        assert error.hint == "restore as the user that owns them, or as the server's administrator"
        (error,) = in_place(found, {"public.b": 1})
        assert error.message == "user app does not own public.b"
        (error,) = in_place(replace(found, entries=(entry(1, "TABLE", "a", schema="public"),)))
        assert error.message == "user app does not own public.a"
        assert in_place(found, {"public.c": 1}) == []

    @pytest.mark.parametrize("kind", ["FUNCTION", "PROCEDURE", "AGGREGATE"])
    def test_functions_are_known_without_their_arguments(self, kind: str) -> None:
        """A dump names them with these."""
        found = means(
            inside=Inside(foreign=("audit.note", "public.b")),
            entries=(entry(1, kind, "note(integer, text)", schema="audit"), entry(2, "TABLE", "b(x)", schema="public")),
        )
        (error,) = in_place(found)
        assert error.message == "user app does not own audit.note"

    def test_schemas_have_to_be_open(self) -> None:
        """Those of which the backup has objects, with the grant for each."""
        found = means(
            inside=Inside(closed=dict.fromkeys(("provider", "Audit", "unknown"), True)),
            entries=tuple(entry(1, "TABLE", "a", schema=schema) for schema in ("provider", "Audit", "public")),
        )
        assert [error.message for error in in_place(found)] == [
            f"user app may not create objects in schema {name}, and the backup contains some"
            for name in ("Audit", "provider")
        ]
        assert (
            in_place(found)[0].hint == 'as an administrator, in database dojo: GRANT CREATE ON SCHEMA "Audit" TO "app"'
        )
        assert swap_obstacles(found) == []

    def test_membership_of_the_owner_helps(self) -> None:
        """Where somebody else owns the database itself, and there is one."""
        inside = Inside(foreign=("public.a",))
        (error,) = in_place(means(owned=False, inside=inside))
        assert error.hint.endswith('administrator; GRANT "boss" TO "app"')
        (error,) = in_place(means(owned=False, live=None, inside=inside))
        assert error.hint.endswith("administrator")

    def test_something_has_to_be_created_inside(self) -> None:
        """Without that right nothing can be, and the grant is told."""
        (error,) = in_place(means(inside=Inside(may_create=False)))
        assert error.hint == 'as an administrator: GRANT CREATE ON DATABASE "dojo" TO "app"'


class TestLocks:
    """One transaction locks every object."""

    entries = (
        entry(1, "TABLE", "a"),
        entry(2, "TABLE DATA", "a", section=Section.DATA),
        entry(3, STATISTICS, "a"),
        entry(4, "INDEX", "i", section=Section.POST_DATA),
    )

    def test_rows_and_statistics_take_none(self) -> None:
        """Large objects do, those of now and those of the backup; as many as there is room for are no obstacle."""
        found = means(locks=64, entries=self.entries, inside=Inside(large_objects=30))
        assert in_place(found, large_objects=32) == []
        (error,) = in_place(found, large_objects=33)
        assert isinstance(error, UnsupportedError)
        assert error.message == (
            "in place, one transaction takes about 65 locks (33 large objects in the backup, 30 now), and the server "
            "has room for 64"
        )
        assert "max_locks_per_transaction = 128 " in error.hint

    def test_the_setting_that_is_enough_is_told(self) -> None:
        """In proportion to the present one, which is taken for the default, rounded up."""
        (error,) = in_place(means(locks=6400), large_objects=20_001)
        assert "max_locks_per_transaction = 201 " in error.hint
        (error,) = in_place(means(locks=6400), large_objects=12_900)
        assert "max_locks_per_transaction = 129 " in error.hint

    def test_a_new_database_has_nothing_to_lock(self) -> None:
        """Nobody else is in it."""
        assert in_place(means(live=None, locks=1), large_objects=2) == []


class TestTools:
    """Programs that do not fit."""

    def test_a_new_pg_restore_on_an_old_server(self) -> None:
        """It would trip over a setting in the one transaction, so psql runs its script without that."""
        (error,) = missing_psql({}, [], restorer(17, 16))
        assert error.message == "psql not found in /fake (BACKUP_PG_BIN_DIR)"
        assert missing_psql({}, [], restorer(17, 17)) == []
        assert missing_psql({}, [], restorer(16, 16)) == []

    def test_psql_is_needed_for_what_is_new(self) -> None:
        """Only tables that the live database lacks have to be dropped by a rollback."""
        assert missing_psql({"public.a": 1}, ["public.a", "public.b"], restorer()) == []
        assert missing_psql({"public.a": 1}, [], None) == []
        (error,) = missing_psql({"public.a": 1}, [], restorer())
        assert isinstance(error, ClientToolError)
        found = restorer(17, 17, Script(stdout=b"psql (PostgreSQL) 17.2\n"))
        assert missing_psql({"public.a": 1}, ["public.b"], found) == []


class TestDecision:
    """What ``auto`` means."""

    def test_what_was_asked_for_is_done(self) -> None:
        """Whatever is in the way of it."""
        for mode in (SWAP, IN_PLACE):
            chosen, why = decide(mode, means(), [REFUSED], [REFUSED])
            assert (chosen, why.startswith("as requested; ")) == (mode, True)

    def test_a_swap_is_preferred(self) -> None:
        """Nothing in the way of it is enough, whatever would be in the way in place."""
        chosen, why = decide(AUTO, means(), [], [REFUSED])
        assert chosen is SWAP
        assert why.startswith("user app may create and rename databases; a second database is filled ")

    def test_in_place_otherwise(self) -> None:
        """With the first reason against a swap."""
        chosen, why = decide(AUTO, means(), [REFUSED, BusyError("busy")], [REFUSED])
        assert chosen is IN_PLACE
        assert why.startswith("a swap is not possible here: no entry in pg_hba.conf; the live database is restored ")

    def test_where_there_is_no_database(self) -> None:
        """In place where that is possible, otherwise a swap, whose obstacles are to be told."""
        assert decide(AUTO, means(live=None), [REFUSED], [])[0] is IN_PLACE
        chosen, why = decide(AUTO, means(live=None), [REFUSED], [REFUSED])
        assert (chosen, why.startswith("there is no live database; ")) == (SWAP, True)
