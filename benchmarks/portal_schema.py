"""Makes a database of findings as wide as a real portal's: very many small tables, and a history of findings.

A real portal of 2026 has 205 tables, 889 indexes, 597 constraints and 69 triggers: a dump spends seconds on the
catalogue before the first row. Here the numbers are rounded, and the names invented.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

TABLES: Final = 200
INDEXES: Final = 900
CONSTRAINTS: Final = 600
TRIGGERS: Final = 70

_ROWS: Final = 150
_WORDS: Final = ("import", "rule", "scope", "owner", "policy", "engine", "report", "review", "ticket", "group")
_COUNT: Final = """
SELECT (SELECT count(*) FROM pg_class c WHERE c.relkind = 'r' AND c.relnamespace = n.oid),
       (SELECT count(*) FROM pg_class c WHERE c.relkind = 'i' AND c.relnamespace = n.oid),
       (SELECT count(*) FROM pg_constraint c WHERE c.connamespace = n.oid AND c.contype <> 'n'),
       (SELECT count(*) FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
        WHERE c.relnamespace = n.oid AND NOT t.tgisinternal)
FROM pg_namespace n WHERE n.nspname = 'public'
"""
_HISTORY: Final = """
CREATE TABLE finding_event (
    event_id bigserial PRIMARY KEY, event_label text NOT NULL, recorded timestamptz NOT NULL, context uuid NOT NULL,
    LIKE finding
)
"""
_EVENTS: Final = """
INSERT INTO finding_event
SELECT nextval('finding_event_event_id_seq'), 'update', timestamptz '2025-01-01 00:00Z' + id * interval '7 seconds',
       md5(id::text)::uuid, finding.*
FROM finding
"""


def enlarge(connection: psycopg.Connection[Any]) -> None:
    """Add tables, indexes, constraints and triggers to a database that `demo.portal.fill` has filled."""
    with connection.transaction():
        connection.execute(_HISTORY)
        connection.execute(_EVENTS)
        tables, indexes, constraints, _ = counts(connection)
        names = [_name(number) for number in range(TABLES - tables)]
        for name in names:
            connection.execute(_table(name).encode())
            connection.execute(_rows(name).encode())
        for statement in _keys(names, INDEXES - indexes - len(names), CONSTRAINTS - constraints - len(names)):
            connection.execute(statement.encode())
        for statement in _triggers(names[:TRIGGERS]):
            connection.execute(statement.encode())


def counts(connection: psycopg.Connection[Any]) -> tuple[int, int, int, int]:
    """Return the numbers of tables, indexes, constraints and triggers."""
    row = connection.execute(_COUNT).fetchone()
    assert row is not None
    tables, indexes, constraints, triggers = map(int, row)
    return tables, indexes, constraints, triggers


def _name(number: int) -> str:
    words = len(_WORDS)
    return f"{_WORDS[number % words]}_{_WORDS[number // words % words]}_{number:03d}"


def _table(name: str) -> str:
    return f"""
    CREATE TABLE {name} (
        id bigserial PRIMARY KEY, parent_id bigint, product_id bigint, name varchar(255) NOT NULL,
        kind integer NOT NULL, is_active boolean NOT NULL DEFAULT true, created timestamptz NOT NULL,
        updated timestamptz, settings jsonb NOT NULL
    )
    """


def _rows(name: str) -> str:
    return f"""
    INSERT INTO {name} (parent_id, product_id, name, kind, created, settings)
    SELECT CASE WHEN n > 1 THEN n / 2 END, 1, '{name} ' || n, n % 7,
           timestamptz '2024-01-01 00:00Z' + n * interval '1 hour',
           jsonb_build_object('digest', md5('{name}' || n), 'retries', n % 5)
    FROM generate_series(1, {_ROWS}) AS n
    """  # noqa: S608  (the names are made here)


def _keys(names: list[str], indexes: int, constraints: int) -> Iterator[str]:
    """Statements for indexes and constraints; a unique constraint counts as both."""
    unique = len(names) // 4
    for name in names[:unique]:
        yield f"ALTER TABLE {name} ADD UNIQUE (name)"
    kinds = (
        "ADD FOREIGN KEY (parent_id) REFERENCES {0}",
        "ADD CHECK (kind >= 0)",
        "ADD FOREIGN KEY (product_id) REFERENCES product",
    )
    for number in range(constraints - unique):
        name = names[number % len(names)]
        yield f"ALTER TABLE {name} {kinds[number // len(names)].format(name)}"
    columns = ("parent_id", "product_id", "created, kind", "kind, is_active", "updated")
    for number in range(indexes - unique):
        yield f"CREATE INDEX ON {names[number % len(names)]} ({columns[number // len(names)]})"


def _triggers(names: list[str]) -> Iterator[str]:
    for name in names:
        yield f"""
        CREATE FUNCTION note_{name}() RETURNS trigger LANGUAGE plpgsql AS
        $$BEGIN NEW.updated := now(); RETURN NEW; END$$
        """
        yield f"CREATE TRIGGER note BEFORE UPDATE ON {name} FOR EACH ROW EXECUTE FUNCTION note_{name}()"
