"""Behind a real pgbouncer: everything is refused before it has changed what the portal's sessions see."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.drill.job import DrillJob
from portal.ops.errors import ConnectionFailedError, PoolerError
from portal.ops.monitoring.doctor.database import DatabaseChecks
from portal.ops.monitoring.doctor.run import State, examine
from portal.ops.postgres import connection as connecting
from portal.ops.postgres.connection import connect
from portal.ops.runtime.process import SystemRunner
from portal.ops.runtime.progress import utc_now
from portal.ops.settings.database_url import Secret
from tests.support import commands
from tests.support.poolers import pgbouncer, session_of_the_portal, state_of_the_pool
from tests.support.restores import done
from tests.support.world import config_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from portal.ops.settings.database_url import DatabaseTarget
    from tests.support.world import World

IS_A_POOLER = "is a connection pooler"
WHAT_TO_SET = "set DD_DATABASE_HOST and DD_DATABASE_PORT"


def pooled(world: World, behind: DatabaseTarget) -> World:
    """The same portal, whose settings name the pooler."""
    return replace(world, portal=replace(world.portal, database=behind))


def said_by_everything(world: World) -> Iterator[tuple[str, str]]:
    """What each operation says through the pooler, by the operation's name."""
    yield "backup", str(world.portal.job().backup_full().error)
    yield "dry run", str(world.job(dry_run=True).restore_full("latest").error)
    yield "swap", str(world.job(mode="swap").restore_full("latest").error)
    yield "in place", str(world.job(mode="in-place").restore_full("latest").error)
    yield (
        "into another database",
        str(world.job(target_database="other", create_database=True).restore_full("latest").error),
    )
    yield "drill", str(DrillJob(config_of(world.portal)).run().error)
    checks = DatabaseChecks(
        world.portal.database,
        runner=SystemRunner(),
        bin_dir=world.portal.bin_dir,
        repository=world.portal.archives,
        clock=utc_now,
    )
    found = {finding.name: finding for finding in examine(checks.all())}
    assert found["server"].state is State.FAULT
    yield "doctor", f"{found['server'].what} {found['server'].mend}"


@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_everything_is_refused_and_nothing_leaks(world: World, mode: str) -> None:
    """Each operation says what to set; data, databases and the sessions that the portal shares are as they were."""
    before, databases = world.state(), world.databases()
    with pgbouncer(world.portal.database, pool_mode=mode) as behind:
        pool = state_of_the_pool(behind)
        said = dict(said_by_everything(pooled(world, behind)))
        assert [name for name, text in said.items() if IS_A_POOLER not in text or WHAT_TO_SET not in text] == []
        assert state_of_the_pool(behind) == pool
    assert (world.state(), world.databases()) == (before, databases)


def test_a_rollback_goes_to_the_server_of_its_restore(world: World) -> None:
    """The record of the restore names it, so a pooler that is named since is in nobody's way."""
    done(world.job().restore_database("latest"))
    with pgbouncer(world.portal.database) as behind:
        done(pooled(world, behind).job().rollback())
    assert world.state() == world.after


def test_the_command_says_what_to_set(world: World) -> None:
    """The message comes before anything else is done, and the exit code is that of a failure."""
    with pgbouncer(world.portal.database) as behind:
        ended = commands.run("full", environ=pooled(world, behind).portal.environ())
    assert ended.returncode == 1
    assert IS_A_POOLER in ended.stderr
    assert WHAT_TO_SET in ended.stderr


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({}, {"options": {"options": "-c search_path=x"}}),
        ({"ignore_startup_parameters": "options"}, {"options": {"options": "-c search_path=x"}}),
        ({"max_client_conn": "1"}, {}),
        ({"default_pool_size": "1", "query_wait_timeout": "1"}, {}),
        ({}, {"password": Secret("wrong")}),
        ({}, {"user": "nobody_it_knows"}),
    ],
    ids=["startup parameter", "ignored parameter", "too many clients", "full pool", "password", "user"],
)
def test_whatever_a_pooler_says_is_known_as_its_own(
    portal_database: DatabaseTarget, settings: dict[str, str], changes: dict[str, Any]
) -> None:
    """It is not taken for the server, whose users and databases are not what is wrong."""
    with (
        pgbouncer(portal_database, **settings) as behind,
        session_of_the_portal(behind),
        pytest.raises(PoolerError, match=IS_A_POOLER) as caught,
    ):
        connect(replace(behind, **changes))
    assert WHAT_TO_SET in caught.value.hint


def test_a_pool_without_a_free_connection(portal_database: DatabaseTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for it as long as it would let a session wait."""
    monkeypatch.setattr(connecting, "_FIRST_ANSWER_SECONDS", 0.2)
    with (
        pgbouncer(portal_database, default_pool_size="1") as behind,
        session_of_the_portal(behind),
        pytest.raises(ConnectionFailedError, match="has not answered") as caught,
    ):
        connect(behind)
    assert "connection pooler" in caught.value.hint
