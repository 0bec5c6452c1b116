"""How it stands with off-site copies: status, metrics, doctor."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import TYPE_CHECKING

from portal.ops.model import VerifyLevel
from portal.ops.monitoring.alerts import AlertSender
from portal.ops.monitoring.doctor.check import State, examine
from portal.ops.monitoring.doctor.offsite import OffsiteChecks
from portal.ops.monitoring.facts import read_status
from portal.ops.monitoring.metrics import METRICS
from portal.ops.monitoring.text import status_lines
from portal.ops.offsite.fetch import FetchJob
from portal.ops.offsite.ledger import Ledger
from portal.ops.offsite.local import note_drill
from portal.ops.repository.repository import Repository
from portal.ops.runtime.progress import utc_now
from portal.ops.storage.age_keys import generate
from tests.support.offsite import offsite_at, small_archives
from tests.support.stores import BUCKET

if TYPE_CHECKING:
    from datetime import datetime

    import pytest

    from demo.object_store import EmbeddedObjectStore
    from portal.ops.monitoring.model import Miss, Status
    from tests.support.offsite import Offsite


def status_of(offsite: Offsite, days: float = 0, **changes: str) -> Status:
    return read_status(offsite.settings(**changes), utc_now() + timedelta(days=days))


def misses(status: Status) -> list[str]:
    return [miss.what for miss in status.misses if miss.target.startswith("offsite")]


def test_a_copy_that_is_missing_is_a_missed_target_in_time(offsite: Offsite) -> None:
    """A new archive has BACKUP_RPO_OFFSITE to be copied; then the target is missed, and the copy answers it."""
    assert misses(status_of(offsite)) == []
    (missed,) = misses(status_of(offsite, days=2))
    assert "has no copy in file://" in missed
    offsite.copied()
    assert misses(status_of(offsite)) == []
    assert "is 3 days old" in misses(status_of(offsite, days=3))[0]


def test_the_status_shows_each_destination(offsite: Offsite) -> None:
    """Copies, bytes, what is missing and the last proof of each destination are in the status and in the metrics."""
    offsite.copied()
    offsite.verify().run(level=VerifyLevel.CONTENTS)
    status = status_of(offsite)
    (shown,) = status.to_dict()["offsite"]
    assert (shown["copies"], shown["missing"], shown["verified"]["level"]) == (1, [], "contents")
    text = "\n".join(status_lines(status))
    assert "1 copy, " in text
    assert "last proof 0 s ago (contents): intact" in text
    values = {metric.name: dict(metric.values(status)) for metric in METRICS if "offsite" in metric.name}
    assert all(
        value
        for name, value in values.items()
        if not name.endswith(("_wal_timestamp_seconds", "drill_timestamp_seconds"))
    )


def test_damage_is_a_missed_target(offsite: Offsite) -> None:
    """Copies that were found damaged are a missed target until they are found intact."""
    offsite.copied()
    segment = next((offsite.directory / "disk").rglob("*.age"))
    whole = segment.read_bytes()
    segment.write_bytes(whole[:-1])
    offsite.verify().run()
    assert "are damaged" in misses(status_of(offsite))[0]
    segment.write_bytes(whole)
    offsite.verify().run()
    assert misses(status_of(offsite)) == []


def test_a_store_that_is_away_is_a_failure_until_it_is_back(offsite: Offsite) -> None:
    """A copy that could not even begin is in the status as a failure; the next copy answers it."""
    disk = offsite.directory / "disk"
    disk.rename(offsite.directory / "away")
    assert offsite.copy().error is not None
    assert [failure.kind for failure in status_of(offsite).facts.failures] == [f"offsite.copy file://{disk}"]
    (offsite.directory / "away").rename(disk)
    offsite.copied()
    assert status_of(offsite).facts.failures == ()


def test_wal_that_is_not_copied_is_a_missed_target_and_an_alert(offsite: Offsite) -> None:
    """A copy of WAL that fails for minutes is a missed target with its reason, until it works again."""
    settings = offsite.settings(BACKUP_WAL="on")
    told: list[str] = []

    def tell(_title: str, text: str) -> bool:
        told.append(text)
        return True

    sender = AlertSender(settings.local_path, host="here", tell=tell)
    ledger = Ledger(Repository(settings.local_path), settings.offsite.destinations()[0])

    def wal_misses(now: datetime) -> list[Miss]:
        found = [miss for miss in read_status(settings, now).misses if miss.target.startswith("offsite_wal_")]
        sender.after(None, found)
        return found

    now = utc_now()
    assert wal_misses(now) == []
    ledger.note_wal(now, "")
    problem = "file:///disk is full\n  hint: Make room there."
    ledger.note_wal(now + timedelta(minutes=1), problem)
    assert wal_misses(now + timedelta(minutes=1)) == []
    (missed,) = wal_misses(now + timedelta(minutes=3))
    assert "for 3 min: file:///disk is full" in missed.what
    assert missed.mend == "Make room there."
    assert "Not all WAL has been copied" in told[-1]
    ledger.note_wal(now + timedelta(minutes=4), "")
    assert wal_misses(now + timedelta(minutes=4)) == []
    assert "RESOLVED" in told[-1]
    (worked,) = [
        value
        for metric in METRICS
        if metric.name == "kekkai_backup_offsite_wal_timestamp_seconds"
        for _, value in metric.values(read_status(settings, now))
    ]
    assert worked == (now + timedelta(minutes=4)).timestamp()


def findings(offsite: Offsite, **changes: str) -> dict[str, str]:
    return {check.name: check.look().what for check in OffsiteChecks(offsite.settings(**changes)).checks()}


def test_the_doctor_looks_at_keys_and_stores(offsite: Offsite) -> None:
    """Recipients that no drill has proven, an identity on the host and a store that answers are findings."""
    second = generate(offsite.directory / "second").recipient
    both = {"BACKUP_ENCRYPTION_RECIPIENTS": f"{offsite.environ['BACKUP_ENCRYPTION_RECIPIENTS']} {second}"}
    offsite.copied(**both)
    found = findings(offsite, **both)
    assert "which no drill has proven" in found["off-site recipients"]
    assert "lies on this machine" in found["off-site identity"]
    assert found[f"off-site file://{offsite.directory}/disk"] == "it answers, and has 1 copy"
    note_drill(offsite.settings(**both), FetchJob(offsite.config(**both)).run("latest"), success=True)
    assert findings(offsite, **both)["off-site recipients"] == "2 recipients, proven by a drill"
    assert "one recipient" in findings(offsite)["off-site recipients"]


def test_locks_are_not_looked_at_without_boto3(offsite: Offsite, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is only for administrators: where it is not installed, a warning names it."""
    for name in ("boto3", "botocore", "botocore.config", "botocore.exceptions"):
        monkeypatch.setitem(sys.modules, name, None)
    environ = {"BACKUP_OFFSITE_URLS": "s3://kekkai-copies/portal"}
    (check,) = [one for one in OffsiteChecks(offsite.settings(**environ)).checks() if "lock" in one.name]
    (found,) = examine([check])
    assert found.state is State.WARNING
    assert "needs boto3" in found.what


def test_foreign_copies_are_counted_apart_and_named(offsite: Offsite) -> None:
    """A copy that somebody else has put there is none of ours: the doctor warns of it, and the status names it."""
    offsite.copied()
    (offsite.directory / "forger").mkdir()
    forger = offsite_at(offsite.directory / "forger", offsite.environ["BACKUP_OFFSITE_URLS"])
    small_archives(forger.uploads, seed=2)
    foreign = forger.uploads.base().backup_id
    forger.copied()
    found = findings(offsite)[f"off-site file://{offsite.directory}/disk"]
    assert found == f"it answers, and has 1 copy; besides, 1 not made by this repository: {foreign}"
    offsite.verify().run()
    status = status_of(offsite)
    assert (status.facts.offsite[0].copies, status.facts.offsite[0].foreign) == (1, (foreign,))
    assert f"not made by this repository: {foreign}" in "\n".join(status_lines(status))
    counts = [dict(metric.values(status)) for metric in METRICS if metric.name == "kekkai_backup_offsite_foreign"]
    assert [list(count.values()) for count in counts] == [[1]]


def test_the_doctor_looks_at_the_lock(offsite: Offsite, object_store: EmbeddedObjectStore, bucket_url: str) -> None:
    """A bucket without versions and lock is one that a host can overwrite copies in."""
    assert bucket_url
    found = findings(offsite, BACKUP_OFFSITE_URLS=object_store.url(BUCKET, "x"))
    assert "neither versions nor object lock" in found[f"off-site lock s3://{BUCKET}/x"] or "cannot be" in str(found)
