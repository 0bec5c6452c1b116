"""A bucket with versions and locks, against a host whose credentials somebody else has taken over."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest

from demo.object_store import ADMINISTRATOR
from portal.ops.offsite.fetch import FetchJob
from portal.ops.offsite.listing import list_copies
from portal.ops.offsite.prune import OffsitePruneJob
from portal.ops.retention.policy import RetentionRule
from portal.ops.settings.destination import parse_destination
from portal.ops.storage.versions import VersionedBackend, bucket_protection, client_of
from tests.support.commands import done
from tests.support.offsite import offsite_at, policy, small_archives

if TYPE_CHECKING:
    from pathlib import Path

    from demo.object_store import EmbeddedObjectStore
    from tests.support.offsite import Offsite


@pytest.fixture
def locked(tmp_path: Path, object_store: EmbeddedObjectStore, small_segments: None) -> Offsite:
    """A repository whose copies go to a bucket with object lock, each locked for a day."""
    bucket = f"locked-{uuid4().hex[:8]}"
    url = object_store.url(bucket, "portal")
    environ = {**ADMINISTRATOR.environ(), "BACKUP_OFFSITE_LOCK": "1"}
    client_of(parse_destination(url), environ).create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    world = offsite_at(tmp_path, url, **environ)
    small_archives(world.uploads)
    world.uploads.base()
    return world


def client(world: Offsite) -> Any:
    return client_of(world.config().destinations[0], world.environ)


def keys(world: Offsite) -> list[str]:
    bucket = world.config().destinations[0].place
    return [one["Key"] for one in client(world).list_objects_v2(Bucket=bucket)["Contents"]]


def test_what_is_locked_stays(locked: Offsite) -> None:
    """Every object is locked; a prune passes over the copy, and says until when."""
    locked.copied()
    place = locked.config().destinations[0]
    head = client(locked).head_object(Bucket=place.place, Key=keys(locked)[0])
    assert head["ObjectLockMode"] == "GOVERNANCE"
    assert head["ObjectLockRetainUntilDate"] > datetime.now(UTC) + timedelta(hours=23)
    assert bucket_protection(place, locked.environ)[0]
    assert locked.copy(next(iter(locked.verify().run().findings)).backup_id, again=True).error is None
    job = OffsitePruneJob(locked.config(), policy(RetentionRule(days=1, count=1)))
    result = job.run()
    assert result.error is None
    assert result.removed == ()
    assert "locked until" in result.spared[0]
    assert locked.verify().run().intact


def test_a_copy_that_was_hidden_is_found_and_read(locked: Offsite) -> None:
    """Hidden behind delete markers, or put under another object, a copy is there as of a time before."""
    locked.copied()
    name = list_copies(locked.backend()).commits[0].backup_id
    before = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=1)
    while datetime.now(UTC) < before + timedelta(seconds=1):
        time.sleep(0.01)  # the server's times are in whole seconds
    place = locked.config().destinations[0]
    hidden, *others = keys(locked)
    client(locked).delete_object(Bucket=place.place, Key=hidden)
    for key in others:
        client(locked).put_object(Bucket=place.place, Key=key, Body=b"ransom")
    assert "its commit is gone" in locked.verify().run().message
    assert any("are gone" in warning for warning in locked.copy().warnings)

    def past(destination: Any) -> VersionedBackend:
        return VersionedBackend(destination, locked.environ, before)

    assert [commit.backup_id for commit in list_copies(past(place)).commits] == [name]
    zone = "Asia/Kathmandu"
    there = str(before.astimezone(ZoneInfo(zone)).replace(tzinfo=None))
    listed, _ = done("offsite", "list", "--as-of", there, environ=locked.environ | {"BACKUP_TIMEZONE": zone})
    assert [copy["backup_id"] for copy in listed["copies"]] == [name]
    other = locked.elsewhere()
    fetched = FetchJob(other.config(), open_store=past).run(name)
    assert fetched.path.read_bytes() == locked.uploads.archive(name).read_bytes()
