"""The policy in the documentation is enough for the host and for the administrator, and is no more than that."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from demo.object_store import ADMINISTRATOR
from portal.ops.errors import StoreDeniedError
from portal.ops.offsite.listing import list_copies
from portal.ops.retention.policy import RetentionRule
from portal.ops.settings.destination import parse_destination
from portal.ops.storage.open import open_backend
from portal.ops.storage.versions import VersionedBackend, bucket_protection, client_of
from tests.support.offsite import offsite_at, small_archives
from tests.support.stores import POLICY_ADMINISTRATOR, POLICY_HOST

if TYPE_CHECKING:
    from demo.object_store import EmbeddedObjectStore
    from tests.support.offsite import Offsite

SECURITY = Path(__file__).parents[2] / "docs" / "security.md"
BUCKET = "kekkai-copies"
HOST, KEEPER = POLICY_HOST.environ(), POLICY_ADMINISTRATOR.environ()


@pytest.fixture
def world(tmp_path: Path, object_store: EmbeddedObjectStore, small_segments: None) -> Offsite:
    """A host with one archive, and the bucket with locks whose policy is the one of the documentation."""
    (policy,) = re.findall(r"```json\n(.*?)```", SECURITY.read_text(), re.DOTALL)
    url = object_store.url(BUCKET, "portal")
    client = client_of(parse_destination(url), ADMINISTRATOR.environ())
    client.create_bucket(Bucket=BUCKET, ObjectLockEnabledForBucket=True)
    client.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(json.loads(policy)))
    made = offsite_at(tmp_path, url, **HOST)
    small_archives(made.uploads)
    made.uploads.base()
    return made


def test_each_can_do_its_work_and_no_more(world: Offsite, object_store: EmbeddedObjectStore) -> None:
    """The host copies with a lock, verifies without downloads and fetches, and cannot delete, prune or write elsewhere;
    the administrator prunes, sees locks and versions, and cannot write."""
    world.copied()
    (name,) = list_copies(world.backend()).newest()
    found = world.verify().run()
    assert found.intact
    assert not found.findings[0].is_downloaded
    assert world.elsewhere().fetch(name).read_bytes() == world.uploads.archive(name).read_bytes()
    assert world.copy(name, again=True, BACKUP_OFFSITE_LOCK="1").error is None
    before = world.names()
    with pytest.raises(StoreDeniedError):
        world.backend().delete(f"{name}.json")
    with pytest.raises(StoreDeniedError):
        open_backend(parse_destination(object_store.url(BUCKET, "elsewhere")), HOST).put("a", b"a", "")
    refused = world.prune(RetentionRule(days=1, count=1)).run()
    assert isinstance(refused.faults[0], StoreDeniedError)
    assert world.names() == before
    keeper = open_backend(world.config().destinations[0], KEEPER)
    with pytest.raises(StoreDeniedError):
        keeper.put("b", b"b", "")
    locked_until = keeper.head(f"{name}.1.json").locked_until
    assert locked_until is not None
    assert locked_until > datetime.now(UTC) + timedelta(hours=23)
    pruned = world.prune(RetentionRule(days=1, count=1), **KEEPER).run()
    assert (pruned.error, [stem for _, stem in pruned.removed]) == (None, [name])
    place = world.config().destinations[0]
    assert bucket_protection(place, KEEPER)[0]
    past = VersionedBackend(place, KEEPER, datetime.now(UTC) + timedelta(minutes=1))
    assert {str(commit.stem) for commit in list_copies(past).commits} == {name, f"{name}.1"}
