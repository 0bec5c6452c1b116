"""Indexes, constraints and triggers that were restored are held against the dump, and against what the source had."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from portal.ops.postgres.dump import open_dump
from portal.ops.postgres.source_facts import read_source_facts
from portal.ops.restore.database.object_check import ObjectCheck, SourceObjects, check_objects
from tests.support.restoring import execute
from tests.support.sessions import session

if TYPE_CHECKING:
    from tests.support.restoring import Bench

SPOILED = "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'finding_pkey'::regclass"


def source_of(made: Bench) -> SourceObjects:
    """What a backup would note of the database as it is."""
    with session(made.target) as connection:
        facts = read_source_facts(connection)
        version = connection.info.parameter_status("server_version") or ""
    return SourceObjects(
        counts=facts.counts,
        invalid_indexes=frozenset(facts.invalid_indexes),
        unvalidated=frozenset(facts.unvalidated),
        server_version=version,
    )


def checked(made: Bench, source: SourceObjects | None) -> ObjectCheck:
    """The database as it is, held against its dump."""
    _, contents = made.source().head()
    with session(made.target) as connection:
        return check_objects(connection, contents.entries, source)


def test_a_database_as_it_was(rich: Bench) -> None:
    """Everything that the dump lists is found by its name, whatever the name, and the numbers are equal."""
    assert checked(rich, source_of(rich)).wrong == ()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("DROP INDEX finding_title", "index finding_title in schema public is missing"),
        ("ALTER TABLE finding DROP CONSTRAINT finding_pkey CASCADE", "constraint finding finding_pkey in schema"),
        (SPOILED, "index public.finding_pkey is not valid"),
        ("ALTER TABLE note ADD CONSTRAINT later CHECK (true) NOT VALID", "constraint later of public.note is not"),
    ],
)
def test_what_is_not_as_it_was(portal: Bench, change: str, what: str) -> None:
    """It is named."""
    execute(portal.target, "CREATE INDEX IF NOT EXISTS finding_title ON finding (id)")
    made = redumped(portal)
    source = source_of(made)
    execute(made.target, change)
    assert any(one.startswith(what) for one in checked(made, source).wrong)


def test_what_the_dump_does_not_list(portal: Bench) -> None:
    """The numbers of the source tell of it; those of another major version are not compared."""
    source = source_of(portal)
    more = replace(source, counts={**source.counts, "triggers": source.counts["triggers"] + 1})
    assert any("triggers, not" in one for one in checked(portal, more).wrong)
    assert checked(portal, replace(more, server_version="15.14")).wrong == ()


def test_what_was_invalid_in_the_source(portal: Bench) -> None:
    """It is told, and nothing is wrong."""
    execute(portal.target, SPOILED, "ALTER TABLE note ADD CONSTRAINT later CHECK (true) NOT VALID")
    found = checked(portal, source_of(portal))
    assert found.wrong == ()
    assert [warning.rpartition(": ")[2] for warning in found.warnings] == [
        "public.finding_pkey",
        "later of public.note",
    ]


def test_an_archive_of_an_older_release(portal: Bench) -> None:
    """It does not say what was invalid: an index of a partitioned table may have been, another one may not."""
    execute(
        portal.target,
        "CREATE TABLE event (id integer) PARTITION BY HASH (id)",
        "CREATE TABLE event_0 PARTITION OF event FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
        "CREATE INDEX event_id ON ONLY event (id)",
    )
    assert checked(portal, None).wrong == ()
    execute(portal.target, SPOILED)
    assert checked(portal, None).wrong == ("index public.finding_pkey is not valid",)


def test_a_swap_names_what_is_not_as_it_was(portal: Bench) -> None:
    """The restore is done, and its report has a warning for each difference."""
    source = source_of(portal)
    more = replace(source, counts={**source.counts, "indexes": 999})
    restore = portal.restore()
    restore.stage(portal.source(), portal.rows, None, more)
    assert any("indexes, not 999 as in the source" in warning for warning in restore.apply().warnings)


def redumped(made: Bench) -> Bench:
    """The bench with a dump of what is live now."""
    with open_dump(made.target, runner=made.runner, bin_dir=made.bin_dir, timeout_seconds=60) as source:
        made.dump.write_bytes(source.stdout.read())
        return replace(made, rows=source.finish().row_counts)
