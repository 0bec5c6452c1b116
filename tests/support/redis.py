"""A Redis server of the test's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from demo.redis import EmbeddedRedis

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def redis() -> Iterator[EmbeddedRedis]:
    """A broker of the test's own."""
    with EmbeddedRedis() as server:
        yield server
