"""The options of the smoke test, and the stacks that it looks at."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.containers.smoke.stack import Engine, Stack, copy_checkout

if TYPE_CHECKING:
    from collections.abc import Iterator

_VARIABLES = {
    "--base-image": "KEKKAI_BASE_IMAGE",
    "--redis-image": "KEKKAI_REDIS_IMAGE",
    "--postgres-image": "KEKKAI_POSTGRES_IMAGE",
    "--pgdg-mirror": "KEKKAI_PGDG_MIRROR",
    "--pip-index-url": "KEKKAI_PIP_INDEX_URL",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add an option for everything that comes from elsewhere."""
    group = parser.getgroup("containers")
    for option, variable in _VARIABLES.items():
        group.addoption(option, help=f"{variable} of .env.example")
    group.addoption("--postgres-majors", default="15 16 17 18", help="PostgreSQL versions in the image")
    group.addoption("--directory", help="where the checkout is copied to; the engine has to see it under this path")


@pytest.fixture(scope="session")
def engine(pytestconfig: pytest.Config) -> Iterator[Engine]:
    """The container engine, and a copy of this checkout that it can see."""
    given = pytestconfig.getoption("--directory")
    directory = Path(given or tempfile.mkdtemp(prefix="kekkai-smoke-", dir="/var/tmp"))
    copy_checkout(directory)
    found = {variable: pytestconfig.getoption(option) for option, variable in _VARIABLES.items()}
    majors = pytestconfig.getoption("--postgres-majors")
    images = {name: value for name, value in found.items() if value is not None}
    images |= {"KEKKAI_POSTGRES_CLIENTS": majors, "KEKKAI_POSTGRES_SERVERS": majors}
    try:
        yield Engine(directory=directory, images=images, majors=tuple(majors.split()))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def demo(engine: Engine) -> Iterator[Stack]:
    """The stack of somebody who has no portal yet, brought up as the documentation says."""
    stack = Stack(engine, project="kekkai-smoke", env_file=".env", flower_port=5599)
    stack.write_env(COMPOSE_PROFILES="demo", BACKUP_SCHEDULE_DATABASE="*/1 * * * *", KEKKAI_REVISION="0123abcd")
    with stack.running():
        yield stack
