"""Objects that a restore can only make, or drop, in the right order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.database_contents import read_contents
from tests.support.database_restores import IN_PLACE, SWAP, new_database
from tests.support.restoring import bench, execute

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from demo.postgres import EmbeddedPostgres
    from portal.ops.restore.database.restore import RestoreMode
    from tests.support.restoring import Bench

_DESCRIBED = (
    "CREATE TABLE measured (a integer, b integer)",
    "INSERT INTO measured SELECT n % 10, n % 20 FROM generate_series(1, 100) AS n",
    "CREATE STATISTICS measured_both ON a, b FROM measured",
    "COMMENT ON STATISTICS measured_both IS 'found together'",
    "CREATE TABLE ruled (a integer)",
    "CREATE TABLE ruled_log (a integer)",
    "CREATE RULE note AS ON INSERT TO ruled DO ALSO INSERT INTO ruled_log VALUES (NEW.a)",
    "COMMENT ON RULE note ON ruled IS 'kept for auditors'",
    "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$",
)
_VIOLATED = (
    "CREATE DOMAIN amount AS integer",
    "CREATE TABLE bill (total amount)",
    "INSERT INTO bill VALUES (-1)",
    "ALTER DOMAIN amount ADD CONSTRAINT positive CHECK (VALUE > 0) NOT VALID",
    "COMMENT ON CONSTRAINT positive ON DOMAIN amount IS 'from now on'",
    "CREATE TABLE parent (a integer)",
    "CREATE TABLE child () INHERITS (parent)",
    "INSERT INTO child VALUES (-1)",
    "ALTER TABLE parent ADD CONSTRAINT a_positive CHECK (a > 0) NOT VALID",
)
# The names are such that the constraint of the table comes before those of its partitions, and after.
_PARTITIONED = (
    "CREATE TABLE m (id integer, n integer, PRIMARY KEY (id, n)) PARTITION BY RANGE (n)",
    "CREATE TABLE z PARTITION OF m FOR VALUES FROM (0) TO (10) PARTITION BY RANGE (n)",
    "CREATE TABLE a PARTITION OF z FOR VALUES FROM (0) TO (5)",
    "CREATE TABLE zz PARTITION OF z DEFAULT",
    "CREATE TABLE other PARTITION OF m DEFAULT",
    "INSERT INTO m SELECT n, n FROM generate_series(1, 20) AS n",
    "ALTER TABLE m ADD CONSTRAINT n_small CHECK (n < 5) NOT VALID",
    "CREATE TRIGGER refuse BEFORE INSERT ON m FOR EACH ROW EXECUTE FUNCTION refuse()",
    "CREATE TABLE refers (id integer, n integer, FOREIGN KEY (id, n) REFERENCES m)",
    "INSERT INTO refers VALUES (3, 3)",
)
_EXTENSION_ELSEWHERE = (
    "CREATE SCHEMA extensions",
    "CREATE EXTENSION citext SCHEMA extensions",
    "CREATE TABLE person (email extensions.citext PRIMARY KEY)",
    "INSERT INTO person VALUES ('A@example.org')",
    "CREATE SCHEMA reports",
    "CREATE TABLE reports.report (id integer)",
)


@pytest.fixture
def ordered(postgres: EmbeddedPostgres, tmp_path: Path) -> Iterator[Bench]:
    """A database with such objects, and its dump."""
    target = new_database(postgres)
    execute(target, *_DESCRIBED, *_VIOLATED, *_PARTITIONED, *_EXTENSION_ELSEWHERE)
    with bench(target, postgres.bin_dir, tmp_path) as made:
        yield made
    postgres.drop_database(target.name)


@pytest.mark.parametrize(
    ("mode", "from_file"),
    [(SWAP, True), (SWAP, False), (IN_PLACE, True)],
    ids=["swap from a file", "swap through a pipe", "in place"],
)
def test_all_objects_are_restored(ordered: Bench, mode: RestoreMode, from_file: bool) -> None:
    """Nothing differs from the source: no row is refused, no trigger fires, no comment is lost."""
    before = read_contents(ordered.target)
    restore = ordered.restore(mode=mode)
    restore.stage(ordered.source(size=ordered.dump.stat().st_size if from_file else 0), ordered.rows)
    restore.apply()
    assert read_contents(ordered.target) == before


@pytest.mark.parametrize(
    "newer",
    [
        "CREATE TABLE reports.newer (id integer)",
        "CREATE FUNCTION reports.newer() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
        "CREATE TYPE reports.newer AS ENUM ('a', 'b')",
        "CREATE DOMAIN reports.newer AS integer",
        "CREATE TYPE reports.newer AS (a integer)",
        "CREATE SEQUENCE reports.newer",
    ],
)
def test_a_schema_with_a_newer_object_stays(ordered: Bench, newer: str) -> None:
    """In place, an object that the backup does not know stays in its schema, whatever it is."""
    execute(ordered.target, newer)
    before = read_contents(ordered.target)
    ordered.restored(mode=IN_PLACE)
    assert read_contents(ordered.target) == before
