"""The database that the benchmark dumps is as wide as a real portal's."""

from __future__ import annotations

from benchmarks import portal_schema
from demo.portal import fill
from demo.postgres import EmbeddedPostgres


def test_the_portal_has_the_objects_of_a_real_one() -> None:
    """Tables, indexes, constraints and triggers are as many as are said."""
    with EmbeddedPostgres(unsafe_speed=True) as server:
        server.create_database("portal")
        with server.connect("portal") as connection:
            fill(connection, findings=50)
            portal_schema.enlarge(connection)
            wanted = portal_schema.TABLES, portal_schema.INDEXES, portal_schema.CONSTRAINTS, portal_schema.TRIGGERS
            assert portal_schema.counts(connection) == wanted
            assert connection.execute("SELECT count(*) FROM finding_event").fetchone() == (50,)
