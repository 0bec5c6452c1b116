"""WAL off-site goes with the base backups that it leads on from, and never before."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from portal.ops.errors import StoreDeniedError
from portal.ops.offsite.commit import Commit, Segment, WalStart
from portal.ops.offsite.layout import Stem
from portal.ops.offsite.prune import OffsitePruneJob
from portal.ops.offsite.signing import own_key
from portal.ops.offsite.wal import WalPlan, remove_wal
from portal.ops.repository.repository import Repository
from portal.ops.retention.policy import RetentionPolicy, RetentionRule
from portal.ops.settings.destination import parse_destination
from portal.ops.storage.directory import DirectoryBackend
from portal.ops.storage.open import open_backend
from tests.support.offsite import Offsite, offsite_at

if TYPE_CHECKING:
    from pathlib import Path

CLUSTER = "7000000000000000001"
NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def world(tmp_path: Path) -> Offsite:
    """A destination with nothing in it, and a repository that has the key of its copies."""
    (tmp_path / "disk").mkdir()
    return offsite_at(tmp_path, f"file://{tmp_path}/disk")


def copy_base(world: Offsite, day: int, first: str | None, *, signed: bool = True) -> str:
    """A copy of a base backup that began with a segment."""
    stem = Stem(f"base_202602{day:02d}_000000_{day:06x}")
    content = b"segment"
    digest = hashlib.sha256(content).hexdigest()
    commit = Commit(
        stem=stem,
        type="base",
        moment=datetime(2026, 2, day, tzinfo=UTC),
        copied=datetime(2026, 2, day, tzinfo=UTC),
        archive_size=len(content),
        archive_sha256=digest,
        segment_bytes=len(content),
        segments=(Segment(len(content), digest),),
        recipients=("age1",),
        wal=WalStart(CLUSTER, first) if first else None,
    )
    repository = Repository(world.config().local_path)
    repository.prepare()
    store, data = world.backend(), commit.encode(own_key(repository) if signed else None)
    store.put(commit.segment_name(0), content, digest)
    store.put(stem.commit, data, hashlib.sha256(data).hexdigest())
    return str(stem)


def segment(number: int, timeline: int = 1) -> str:
    return f"{timeline:08X}{0:08X}{number:08X}"


def put_wal(world: Offsite, file: str, *, cluster: str = CLUSTER, age: timedelta = timedelta(days=30)) -> str:
    """An object of WAL of an age; its name."""
    name = f"wal/{cluster}/{file}.{'0' * 16}.gz.age"
    world.backend().put(name, b"wal", "")
    at = (NOW - age).timestamp()
    os.utime(world.directory / "disk" / name, (at, at))
    return name


def prune(world: Offsite, *, days: int = 10, dry_run: bool = False) -> tuple[list[str], list[str]]:
    """What is left of the WAL after a prune, and its warnings."""
    policy = RetentionPolicy(rule=RetentionRule(days=days, count=1))
    result = OffsitePruneJob(world.config(), policy, clock=lambda: NOW).run(dry_run=dry_run)
    assert result.error is None, result.error
    return [one.name for one in world.backend().list("wal/")], list(result.warnings)


def test_wal_goes_with_its_base(world: Offsite) -> None:
    """Before the oldest base that stays, segments and parts go, on every timeline; the rest, and what describes the
    cluster, stays."""
    copy_base(world, 1, segment(3))
    copy_base(world, 18, segment(7))
    for file in (segment(2), segment(4), f"{segment(5)}+0-100", segment(6, timeline=2)):
        put_wal(world, file)
    stay = sorted(put_wal(world, file) for file in (segment(7), segment(8), "00000002.history", "cluster"))
    before = [one.name for one in world.backend().list("wal/")]
    assert prune(world, dry_run=True)[0] == before
    assert sorted(prune(world)[0]) == stay


def test_parts_of_complete_segments_go(world: Offsite) -> None:
    """A part stays where it is all there is of its segment, where no base backup follows it, and for a week."""
    copy_base(world, 18, segment(3))
    copy_base(world, 25, segment(7))
    copy_base(world, 26, segment(6))
    stay = [put_wal(world, segment(number)) for number in (4, 5, 6, 7)]
    stay += [put_wal(world, f"{segment(number)}+0-100") for number in (3, 7)]
    stay += [put_wal(world, f"{segment(4, timeline=2)}+0-100"), put_wal(world, f"{segment(4)}+0-9", age=timedelta(6))]
    gone = [put_wal(world, f"{segment(number)}+0-100") for number in (4, 5, 6)]
    before = [one.name for one in world.backend().list("wal/")]
    assert prune(world, days=60, dry_run=True)[0] == before
    assert sorted(prune(world, days=60)[0]) == sorted(stay)
    assert {*before} - {*stay} == {*gone}


def test_a_kept_base_keeps_its_wal(world: Offsite) -> None:
    """While the rules keep the older base too, everything from its start on stays."""
    copy_base(world, 1, segment(3))
    copy_base(world, 25, segment(7))
    stay = [put_wal(world, segment(number)) for number in (3, 4, 7)]
    put_wal(world, segment(2))
    assert prune(world, days=60)[0] == stay


@pytest.mark.parametrize("how", ["untold", "damaged", "foreign"])
def test_a_base_that_nobody_can_tell_the_start_of_keeps_all(world: Offsite, how: str) -> None:
    """A base whose commit is silent on its WAL, is invalid or is another's keeps all WAL, with a warning."""
    copy_base(world, 25, segment(7))
    stem = copy_base(world, 26, None if how == "untold" else segment(1), signed=how != "foreign")
    if how == "damaged":
        (world.directory / "disk" / f"{stem}.json").write_text("{")
    stay = [put_wal(world, segment(2))]
    left, warnings = prune(world)
    assert left == stay
    assert any("no WAL is removed" in warning and stem in warning for warning in warnings)


def test_young_wal_and_wal_of_other_clusters_stays(world: Offsite) -> None:
    """The base of young WAL may still be on its way; a cluster without any base off-site keeps its WAL."""
    copy_base(world, 25, segment(7))
    stay = [
        put_wal(world, segment(2), age=timedelta(days=3)),
        put_wal(world, segment(2), cluster="7000000000000000002"),
    ]
    assert prune(world)[0] == stay


def test_nothing_goes_behind_wal_that_is_locked(world: Offsite, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment that cannot be removed ends the removal of its cluster: what stays is one piece."""
    copy_base(world, 25, segment(7))
    names = [put_wal(world, segment(number)) for number in (2, 3, 4)]
    delete = DirectoryBackend.delete

    def locked(self: DirectoryBackend, name: str) -> None:
        if name == names[1]:
            raise StoreDeniedError("it is locked", hint="Wait.")
        delete(self, name)

    monkeypatch.setattr(DirectoryBackend, "delete", locked)
    assert prune(world)[0] == names[1:]


def test_wal_that_another_prune_has_removed(bucket_url: str) -> None:
    """Of two prunes at once, the later one ends without an error, and removes the rest."""
    destination = parse_destination(bucket_url)
    backend = open_backend(destination, os.environ)
    data = b"wal"
    backend.put("wal/1/b", data, hashlib.sha256(data).hexdigest())
    (there,) = backend.list("wal/")
    gone = replace(there, name="wal/1/a")
    removed, spared = remove_wal(backend, destination, WalPlan(doomed={"1": [gone, there]}), NOW)
    assert (list(backend.list("wal/")), spared, there in removed) == ([], [], True)
