"""The database of an invented portal for security findings, of any size.

The same arguments give the same rows. Texts are composed of paragraphs from a pool, so that hundreds of megabytes take
seconds, and compress about as well as a real portal's.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from demo.words import SCANNERS, SEVERITIES, WEAKNESSES, paragraph, source_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import psycopg

    Connection = psycopg.Connection[Any]

_TABLES = Path(__file__).with_name("portal.sql")
_KEYS = Path(__file__).with_name("portal_keys.sql")
_START = datetime(2024, 1, 1, tzinfo=UTC)
_POOL_SIZE = 4096
_ROWS_IN_BLOCK = 500
_FINDING_BYTES = 1400
_FINDINGS_IN_TEST = 40
_TESTS_IN_ENGAGEMENT = 3
_ENGAGEMENTS_IN_PRODUCT = 4
_ENDPOINTS_IN_PRODUCT = 5
_USERS = 50
_PRODUCT_TYPES = 8
_NOTES_EVERY = 4

Row = tuple[object, ...]


def create_portal_schema(connection: Connection) -> None:
    """Create tables, keys and indexes in an empty database."""
    with connection.transaction():
        connection.execute(_TABLES.read_bytes())
        connection.execute(_KEYS.read_bytes())


def fill(connection: Connection, *, findings: int | None = None, megabytes: int | None = None, seed: int = 1) -> None:
    """Fill empty tables in one transaction; create them first if necessary.

    Arguments:
        findings: the number of findings, which determines everything else.
        megabytes: the approximate size of an uncompressed dump, instead of a number of findings.
        seed: the same seed gives the same rows.
    """
    number = findings if findings is not None else (megabytes or 1) * 1_000_000 // _FINDING_BYTES
    with connection.transaction():
        missing = _has_no_tables(connection)
        if missing:
            connection.execute(_TABLES.read_bytes())
        for table, columns, rows in _tables(max(1, number), Random(seed)):  # noqa: S311  (sample data)
            _copy(connection, table, columns, rows)
        if missing:
            connection.execute(_KEYS.read_bytes())


def _has_no_tables(connection: Connection) -> bool:
    row = connection.execute("SELECT to_regclass('finding') IS NULL").fetchone()
    return row is not None and bool(row[0])


def _tables(findings: int, rng: Random) -> Iterator[tuple[str, str, Iterable[Row]]]:
    """Yield table, columns and rows; referenced tables come first."""
    tests = -(-findings // _FINDINGS_IN_TEST)
    engagements = -(-tests // _TESTS_IN_ENGAGEMENT)
    products = -(-engagements // _ENGAGEMENTS_IN_PRODUCT)
    endpoints = products * _ENDPOINTS_IN_PRODUCT
    pool = [paragraph(rng, rng.randrange(1, 5)) for _ in range(min(_POOL_SIZE, 64 + findings))]
    yield "auth_user", "username, email, date_joined", _users()
    yield "product_type", "name", ((f"Business unit {number}",) for number in range(_PRODUCT_TYPES))
    yield "product", "product_type_id, name, description, created", _products(products, pool, rng)
    yield "engagement", "product_id, lead_id, name, target_start, target_end", _engagements(engagements, rng)
    yield "test", "engagement_id, scan_type, performed", _tests(tests, rng)
    yield "endpoint", "product_id, protocol, host, path", _endpoints(endpoints, rng)
    yield "finding", _FINDING_COLUMNS, _findings(findings, pool, rng)
    yield "finding_endpoint", "finding_id, endpoint_id", _finding_endpoints(findings, endpoints)
    yield "note", "finding_id, author_id, entry, written", _notes(findings, pool, rng)


def _copy(connection: Connection, table: str, columns: str, rows: Iterable[Row]) -> None:
    from psycopg.sql import SQL, Identifier

    names = SQL(", ").join(Identifier(name) for name in columns.split(", "))
    statement = SQL("COPY {} ({}) FROM STDIN").format(Identifier(table), names)
    lines = ("\t".join("\\N" if value is None else str(value) for value in row) for row in rows)
    with connection.cursor().copy(statement) as copy:
        while block := list(islice(lines, _ROWS_IN_BLOCK)):
            copy.write("\n".join(block) + "\n")


def _users() -> Iterator[Row]:
    for number in range(1, _USERS + 1):
        yield f"analyst{number}", f"analyst{number}@example.org", _START


def _products(number: int, pool: list[str], rng: Random) -> Iterator[Row]:
    for product in range(1, number + 1):
        kind = rng.randrange(1, _PRODUCT_TYPES + 1)
        yield kind, f"Service {product}", rng.choice(pool), _START + timedelta(hours=product)


def _engagements(number: int, rng: Random) -> Iterator[Row]:
    for engagement in range(number):
        start = _START.date() + timedelta(days=rng.randrange(700))
        lead = rng.randrange(1, _USERS + 1) if engagement % 3 else None
        product = engagement // _ENGAGEMENTS_IN_PRODUCT + 1
        yield product, lead, f"Assessment {engagement + 1}", start, start + timedelta(days=14)


def _tests(number: int, rng: Random) -> Iterator[Row]:
    for test in range(number):
        performed = _START + timedelta(minutes=rng.randrange(1_000_000))
        yield test // _TESTS_IN_ENGAGEMENT + 1, f"{rng.choice(SCANNERS)} scan", performed


def _endpoints(number: int, rng: Random) -> Iterator[Row]:
    for endpoint in range(number):
        path = f"api/v2/{source_path(rng).partition('.')[0]}" if endpoint % 4 else None
        yield endpoint // _ENDPOINTS_IN_PRODUCT + 1, "https", f"host{endpoint}.example.org", path


_FINDING_COLUMNS = (
    "test_id, reporter_id, title, severity, cwe, cvss, active, found, file_path, line, "
    "description, mitigation, references"
)


def _findings(number: int, pool: list[str], rng: Random) -> Iterator[Row]:
    weaknesses = list(WEAKNESSES.items())
    paths = [source_path(rng) for _ in range(len(pool))]
    days: list[date] = [_START.date() + timedelta(days=day) for day in range(700)]
    for finding in range(number):
        # One random number serves several choices: each column uses one of its digits.
        chance = rng.getrandbits(96)
        cwe, weakness = weaknesses[chance % len(weaknesses)]
        first, second, third, fourth = ((chance >> shift) % len(pool) for shift in (8, 24, 40, 56))
        path, line = paths[(chance >> 72) % len(paths)], chance % 3989
        yield (
            finding // _FINDINGS_IN_TEST + 1,
            chance % _USERS + 1,
            f"{weakness} in {path}:{line}",
            SEVERITIES[(chance >> 4) % 5],
            cwe,
            f"{(chance >> 12) % 100 / 10:.1f}" if finding % 5 else None,
            finding % 7 > 1,
            days[(chance >> 20) % len(days)],
            path,
            line if finding % 9 else None,
            f"**{weakness}**\\n\\n{pool[first]}\\n\\n{pool[second]}\\n\\nFingerprint: {chance:024x}",
            f"{pool[third]}\\n\\n{pool[fourth]}",
            _references(cwe, chance),
        )


def _references(cwe: int, chance: int) -> str:
    url = f"https://cwe.mitre.org/data/definitions/{cwe}.html"
    return f'{{"cwe": "{url}", "rule": "R{chance % 9973:05}", "lines": [{chance % 97}, {chance % 89}]}}'


def _finding_endpoints(findings: int, endpoints: int) -> Iterator[Row]:
    for finding in range(1, findings + 1, 2):
        yield finding, finding % endpoints + 1


def _notes(findings: int, pool: list[str], rng: Random) -> Iterator[Row]:
    for finding in range(1, findings + 1, _NOTES_EVERY):
        written = _START + timedelta(minutes=rng.randrange(1_000_000))
        yield finding, rng.randrange(1, _USERS + 1), rng.choice(pool), written
