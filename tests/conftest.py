"""What the tests share: a real PostgreSQL server, and a fresh portal database for each test that asks for one."""

from __future__ import annotations

import os
import signal
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from demo.portal import fill
from demo.postgres import EmbeddedPostgres
from portal.ops.restore.files import stage as file_stage
from portal.ops.runtime.event_log import structlog
from portal.ops.runtime.logs import configure_with_first_event, engine_log
from portal.ops.runtime.process import SystemRunner
from tests.support.archives import pool
from tests.support.azurite import azure_url, azurite_port
from tests.support.crashes import LONG
from tests.support.http_server import web_server
from tests.support.offsite import offsite, small_segments
from tests.support.portal import TEMPLATE, portal, portal_database_in
from tests.support.previous_release import previous_release
from tests.support.redis import redis
from tests.support.servers import server
from tests.support.stores import bucket_url, object_store
from tests.support.world import world
from worker.command_lines import show_commands

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from portal.ops.settings.load import DatabaseTarget

show_commands()  # hints are read as an operator sees them

# Neither a busy machine nor the luck of a draw fails a test; the long form draws new examples each time.
settings.register_profile("steady", deadline=None, derandomize=not LONG, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")

__all__ = [
    "azure_url",
    "azurite_port",
    "bucket_url",
    "hands",
    "object_store",
    "offsite",
    "pool",
    "portal",
    "portal_database",
    "postgres",
    "previous_release",
    "redis",
    "runner",
    "server",
    "small_segments",
    "web_server",
    "world",
]

_FINDINGS = 400


class SharedModules(LoadScopeScheduling):  # type: ignore[misc]  # xdist exports it without types
    """Gives the tests of a module that share a fixture to one process: each other one would set it up again."""

    def _split_scope(self, nodeid: str) -> str:
        file, _, _ = nodeid.partition("::")
        return file if _has_shared_fixture(self.config.rootpath / file) else nodeid


@cache
def _has_shared_fixture(file: Path) -> bool:
    return 'scope="module"' in file.read_text()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> SharedModules:
    """Hand out tests one by one, but for those modules."""
    return SharedModules(config, log)


@pytest.fixture(scope="session", autouse=True)
def usual_signals() -> None:
    """Have the programs that tests start react to signals, however the tests themselves were started.

    A background job of a shell script ignores SIGINT, what nohup starts ignores SIGHUP, and their children inherit it.
    """
    usual: dict[signal.Signals, Any] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGHUP: signal.SIG_DFL,
        signal.SIGQUIT: signal.SIG_DFL,
    }
    for number, handler in usual.items():
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Have what outlives repositories noted in a directory of the tests."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """Have no test's events go to where a command of an earlier test has sent its own."""
    engine_log("tests").bind()  # configures it where nothing has
    before = structlog.get_config()
    yield
    configure_with_first_event(lambda: None)
    structlog.configure(**before)


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """One server for all tests of a process, with a filled portal database to copy."""
    with EmbeddedPostgres(unsafe_speed=True) as server:
        server.create_database(TEMPLATE)
        with server.connect(TEMPLATE) as connection:
            fill(connection, findings=_FINDINGS)
        yield server


@pytest.fixture
def portal_database(postgres: EmbeddedPostgres) -> Iterator[DatabaseTarget]:
    """A filled portal database of the test's own."""
    with portal_database_in(postgres) as database:
        yield database


@pytest.fixture(params=[0, 1_000_000], ids=["by helpers", "without helpers"])
def hands(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who makes the files of a restore: helper processes even where there are few, or nobody else even of many."""
    monkeypatch.setattr(file_stage, "_WORTH_HELPERS", request.param)


@pytest.fixture
def runner() -> SystemRunner:
    """What starts real programs."""
    return SystemRunner()
