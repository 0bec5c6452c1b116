"""What the tests of beat and the watcher keep to."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Have every thread that a test starts end with it: a watcher that goes on writes its log into other tests."""
    before = set(threading.enumerate())
    yield

    def has_ended() -> bool:
        return not set(threading.enumerate()) - before

    wait_until(has_ended)
