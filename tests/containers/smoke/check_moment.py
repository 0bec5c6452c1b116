"""Recovery to a second, in containers: WAL is received by its service, and a scratch server runs in the worker's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.containers.smoke.stack import Engine, Stack, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

ALLOW = "echo 'host replication defectdojo all scram-sha-256' >>$PGDATA/pg_hba.conf"
MOMENT = "select to_char(now() at time zone 'utc', 'YYYY-MM-DD HH24:MI:SS') || '+00:00'"


@pytest.fixture(scope="module")
def recovering(engine: Engine) -> Iterator[Stack]:
    """A stack with the WAL service, on a server that an administrator has prepared as the doctor says."""
    stack = Stack(engine, project="kekkai-smoke-wal", env_file="wal.env", flower_port=5596)
    settings = {"BACKUP_WAL": "on", "BACKUP_SCHEDULE_DATABASE": "off"}
    stack.write_env(COMPOSE_PROFILES="demo", **settings)
    stack.make_secrets()
    try:
        stack.up("--build", "postgres")
        stack.inside("postgres", "sh", "-ec", ALLOW)
        stack.sql("alter system set max_slot_wal_keep_size = '1GB'")
        stack.sql("select pg_reload_conf()")
        stack.write_env(COMPOSE_PROFILES="demo,wal", **settings)
        stack.up("--build")
        yield stack
    finally:
        stack.compose("down", "--volumes", "--remove-orphans", check=False)


def test_wal_is_received(recovering: Stack) -> None:
    """The service is healthy, makes a slot and the first base backup, and the doctor finds no fault."""
    assert recovering.services()["wal"]["Health"] == "healthy"
    eventually(lambda: recovering.archives("base"))
    assert recovering.sql("select active from pg_replication_slots where slot_name = 'kekkai_backup'") == "t"
    faults = [one for one in recovering.backup("doctor")["findings"] if one["state"] == "fault"]
    assert faults == []


def test_a_moment_is_recovered(recovering: Stack) -> None:
    """Rows that were deleted seconds ago come back, as they were at a moment between two backups."""
    recovering.uploads("echo x >scan.sarif")
    recovering.sql("create table finding as select g as id from generate_series(1, 5000) g")
    assert recovering.backup("full")["success"]
    recovering.sql("insert into finding select g from generate_series(5001, 6000) g")
    recovering.sql("select pg_sleep(2)")
    moment = recovering.sql(MOMENT)
    recovering.sql("select pg_sleep(2)")
    recovering.sql("delete from finding")
    recovering.sql("select pg_switch_wal()")
    recovering.inside("worker", "scripts/restore.sh", "--at", moment, "--force")
    assert recovering.sql("select count(*) from finding") == "6000"
