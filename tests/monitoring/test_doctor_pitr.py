"""The doctor says in advance what point-in-time recovery lacks, and how to mend it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from demo.postgres import EmbeddedPostgres
from portal.ops.monitoring.doctor.check import Finding, State, examine
from portal.ops.monitoring.doctor.pitr import PitrChecks
from portal.ops.runtime.process import SystemRunner
from portal.ops.settings.load import Settings, load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    """A server as the Docker image sets it up: no limit on what slots hold back."""
    settings = {"wal_level": "replica", "max_wal_senders": "10"}
    with EmbeddedPostgres(unsafe_speed=True, settings=settings) as own:
        own.create_role("portal", password="portal")
        own.create_role("receiver", password="receiver", options="REPLICATION")
        yield own


def settings_of(server: EmbeddedPostgres, repository: Path, role: str) -> Settings:
    environ = {
        "BACKUP_LOCAL_PATH": str(repository),
        "BACKUP_PG_BIN_DIR": str(server.reachable_bin_dir),
        "BACKUP_WAL": "on",
        "DD_DATABASE_URL": f"postgres://{role}:{role}@127.0.0.1:{server.port}/postgres",
    }
    return load_settings(environ, lambda _: "")


def findings(settings: Settings) -> dict[str, Finding]:
    return {found.name: found for found in examine(PitrChecks(settings, runner=SystemRunner()).all())}


def test_every_statement_that_is_missing_is_told_at_once(server: EmbeddedPostgres, tmp_path: Path) -> None:
    """The role's right and the limit of slots, each with its statement."""
    every = findings(settings_of(server, tmp_path, "portal"))
    found = every["WAL settings"]
    assert found.state is State.FAULT
    assert 'ALTER ROLE "portal" REPLICATION;' in found.mend
    assert "ALTER SYSTEM SET max_slot_wal_keep_size" in found.mend
    assert "not tried, because role portal lacks REPLICATION" in every["replication"].what
    assert "pg_hba" not in every["replication"].mend


def test_refused_replication_connection_names_the_line_of_pg_hba(server: EmbeddedPostgres, tmp_path: Path) -> None:
    """The line has the role, and the address that the server sees."""
    with server.connect() as connection:
        (rules,) = connection.execute("SHOW hba_file").fetchone() or ("",)
        with open(rules) as file:
            before = file.read()
        try:
            with open(rules, "w") as file:
                file.write("host all all all scram-sha-256\n")  # which does not match replication
            connection.execute("SELECT pg_reload_conf()")
            found = findings(settings_of(server, tmp_path, "receiver"))["replication"]
        finally:
            with open(rules, "w") as file:
                file.write(before)
            connection.execute("SELECT pg_reload_conf()")
    assert found.state is State.FAULT
    assert found.mend.endswith("host replication receiver 127.0.0.1/32 scram-sha-256")


def test_everything_is_well_where_it_is_prepared(server: EmbeddedPostgres, tmp_path: Path) -> None:
    """No fault is found once the statements were run."""
    with server.connect() as connection:
        connection.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '1GB'")
        connection.execute("SELECT pg_reload_conf()")
    found = findings(settings_of(server, tmp_path, "receiver"))
    assert [one for one in found.values() if one.state is State.FAULT] == []
    assert "as" in found["scratch server"].what
