"""How long new objects are locked, by a program that stays connected for months, as the WAL service does."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Final

import pytest

from portal.ops.errors import StorageError
from portal.ops.settings.destination import parse_destination
from portal.ops.storage.object_store import ObjectStoreBackend
from tests.support.fake_s3 import FakeS3, Manner

KEYS: Final = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}
NOON: Final = datetime(2026, 11, 29, 12, tzinfo=UTC)
DAYS: Final = 30
UNTIL: Final = "x-amz-object-lock-retain-until-date"


def put(backend: ObjectStoreBackend) -> None:
    with suppress(StorageError):  # it keeps nothing, which is noticed
        backend.put("wal/one", b"x", sha256(b"x").hexdigest())


@pytest.mark.parametrize("later", [timedelta(minutes=59), timedelta(days=29), timedelta(days=400), -timedelta(hours=1)])
def test_each_object_is_locked_from_when_it_is_stored(later: timedelta) -> None:
    """For at least the days that were asked for, and hardly longer; also once the clock was set back."""
    moments = [NOON]
    with FakeS3(Manner.KEEPS_NOTHING) as server:
        destination = parse_destination(server.url)
        backend = ObjectStoreBackend(destination, KEYS, lock_days=DAYS, clock=lambda: moments[-1])
        put(backend)
        moments.append(NOON + later)
        put(backend)
    assert len(server.stored_with) == 2
    for moment, headers in zip(moments, server.stored_with, strict=True):
        locked = datetime.fromisoformat(headers[UNTIL]) - moment
        assert timedelta(days=DAYS) <= locked <= timedelta(days=DAYS, hours=1)
        assert headers["x-amz-object-lock-mode"] == "GOVERNANCE"
        assert headers["x-amz-sdk-checksum-algorithm"] == "SHA256"  # Amazon's manual: otherwise it is refused


def test_without_a_lock_nothing_says_so() -> None:
    """The bucket's own default applies."""
    with FakeS3(Manner.KEEPS_NOTHING) as server:
        put(ObjectStoreBackend(parse_destination(server.url), KEYS))
    assert UNTIL not in server.stored_with[0]
