"""The sample data: the same for the same seed, varied, and true to the portal's forms."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from demo.portal import create_portal_schema, fill
from demo.portal_files import write_audit_log, write_uploads
from tests.support.sessions import session

if TYPE_CHECKING:
    from pathlib import Path

    from portal.ops.settings.load import DatabaseTarget

RESET = "DROP SCHEMA public CASCADE; CREATE SCHEMA public"
DIGEST = "SELECT md5(string_agg(finding::text, '' ORDER BY id)) FROM finding"


def test_the_same_seed_gives_the_same_rows(portal_database: DatabaseTarget) -> None:
    """Two fills with one seed are equal, one with another seed is not."""
    digests = []
    with session(portal_database) as connection:
        for seed in (1, 1, 2):
            connection.execute(RESET)
            fill(connection, findings=50, seed=seed)
            digests.append(connection.execute(DIGEST).fetchone())
    assert digests[0] == digests[1] != digests[2]


def test_a_schema_that_is_there_can_be_filled(portal_database: DatabaseTarget) -> None:
    """The schema can be made first and filled later."""
    with session(portal_database) as connection:
        connection.execute(RESET)
        create_portal_schema(connection)
        fill(connection, findings=50)
        assert connection.execute("SELECT count(*) FROM finding").fetchone() == (50,)


def test_sequences_go_on_after_the_rows(portal_database: DatabaseTarget) -> None:
    """A new row gets a number that no other has."""
    with session(portal_database) as connection:
        connection.execute("INSERT INTO product_type (name) VALUES ('new')")
        newest = connection.execute("SELECT name FROM product_type ORDER BY id DESC LIMIT 1").fetchone()
    assert newest == ("new",)


def test_uploads_are_private_and_parse(tmp_path: Path) -> None:
    """Uploads are JSON, one directory a tenant, for their owner's eyes only."""
    write_uploads(tmp_path, tenants=2, files_per_tenant=3)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 6
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert {json.loads(path.read_text())["version"] for path in files} == {"2.1.0"}


def test_the_audit_log_is_a_chain(tmp_path: Path) -> None:
    """Each line of the audit log holds the SHA-256 of the line before."""
    write_audit_log(tmp_path / "audit.jsonl", entries=20)
    lines = (tmp_path / "audit.jsonl").read_text().splitlines()
    expected = ["0" * 64, *(hashlib.sha256(line.encode()).hexdigest() for line in lines[:-1])]
    assert [json.loads(line)["previous"] for line in lines] == expected
