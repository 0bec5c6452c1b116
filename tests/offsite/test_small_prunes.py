"""Prunes of copies of small archives: what goes, what stays, and what is said of it."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.errors import (
    ConfigurationError,
    StoreUnreachableError,
)
from portal.ops.offsite.ledger import Ledger
from portal.ops.offsite.prune import OffsitePruneJob
from portal.ops.repository.repository import Repository
from portal.ops.retention.policy import RetentionPolicy, RetentionRule
from tests.support.put_copies import NOW, Put, actions, put_copy, small_world
from tests.support.stores import Refusing, Unsteady

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.offsite import Offsite


@pytest.fixture
def world(tmp_path: Path) -> Offsite:
    """A destination with nothing in it, and a repository with a key."""
    return small_world(tmp_path)


def pruned(world: Offsite, days: int = 10, *, dry_run: bool = False, wrap: Any = None) -> Any:
    config = world.through(wrap) if wrap else world.config()
    policy = RetentionPolicy(rule=RetentionRule(days=days, count=1))
    return OffsitePruneJob(config, policy, clock=lambda: NOW, actor="me").run(dry_run=dry_run)


class TestPruning:
    def test_what_it_says(self, world: Offsite) -> None:
        """What was removed and freed, in the result, in the access log and in the record; a dry run says the same."""
        old, kept = put_copy(world, 1), put_copy(world, 25)
        shown = world.backend().shown
        dry = pruned(world, dry_run=True)
        assert (dry.removed, dry.freed_bytes, dry.dry_run) == (((shown, str(old.stem)),), 250, True)
        assert actions(world) == []
        result = pruned(world)
        assert (result.removed, result.freed_bytes, result.dry_run) == (((shown, str(old.stem)),), 250, False)
        assert [(place, one.entry.name, one.keep) for place, one in result.decisions] == [
            (shown, kept.backup_id, True),
            (shown, old.backup_id, False),
        ]
        ((action, subject, outcome, details),) = actions(world)
        assert (action, subject, outcome) == ("offsite.prune", shown, "done")
        assert (details["removed"], details["wal_removed"]) == ([str(old.stem)], 0)
        ledger = Ledger(Repository(world.config().local_path), world.config().destinations[0])
        assert list(ledger.copies()) == [kept.stem]
        assert result.duration_seconds > 0

    def test_what_is_left_there(self, world: Offsite) -> None:
        """Damaged and foreign copies are told, once, and stay."""
        put_copy(world, 25)
        (world.directory / "disk" / "media_20260101_120000_abcdef.json").write_text("{")
        foreign = Put(world.directory / "disk").copy(b"x", 1, "media_20260102_120000_abcdef")
        shown = world.backend().shown
        result = pruned(world)
        assert result.error is None
        assert result.warnings == (
            f"the copy media_20260101_120000_abcdef in {shown} is left there: its commit is invalid, or was changed "
            "after it was signed",
            f"the copy {foreign.stem} in {shown} was not made by this repository; it is left there",
        )
        assert len(world.names()) == 4 + 1 + 2

    def test_a_lock_is_kept(self, world: Offsite) -> None:
        """Until it ends; what a spared copy needs is spared too."""
        base = put_copy(world, 1)
        child = put_copy(world, 2, parent=base.backup_id, base=base.backup_id)
        put_copy(world, 25)

        class Locked(Unsteady):
            def head(self, name: str) -> Any:
                return replace(super().head(name), locked_until=until[0] if name == child.stem.commit else None)

        until = [NOW + timedelta(days=1)]
        result = pruned(world, wrap=lambda real: Locked(real, lambda _: False))
        assert (result.removed, result.error) == ((), None)
        assert result.spared == (
            f"{child.stem}: it is locked until 2026-03-02",
            f"{base.stem}: a spared copy needs it",
        )
        until[0] = NOW
        result = pruned(world, wrap=lambda real: Locked(real, lambda _: False))
        assert [stem for _, stem in result.removed] == [str(child.stem), str(base.stem)]

    def test_credentials_that_remove_nothing(self, world: Offsite) -> None:
        """That is an error; segments that are refused after their commit are only logged."""
        old = put_copy(world, 1)
        put_copy(world, 25)
        result = pruned(world, wrap=lambda real: Refusing(real, lambda what, _: what == "delete"))
        assert result.removed == ()
        assert "refused the request" in str(result.error)
        assert [outcome for _, _, outcome, _ in actions(world)] == ["failed"]
        result = pruned(world, wrap=lambda real: Refusing(real, lambda what, name: what == "delete" and "/" in name))
        assert ([stem for _, stem in result.removed], result.error) == ([str(old.stem)], None)
        assert len([name for name in world.names() if name.startswith(old.stem.directory)]) == 3

    def test_remains(self, world: Offsite) -> None:
        """Objects without a commit go after a week without any change, unless the store refuses."""
        disk = world.directory / "disk"
        for day, ages in (("01", (8, 8)), ("02", (8, 6)), ("03", (7, 7))):
            for number, age in enumerate(ages):
                path = disk / f"media_202601{day}_120000_abcdef" / f"{number:05d}.age"
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(b"x")
                moment = (NOW - timedelta(days=age)).timestamp()
                os.utime(path, (moment, moment))
        for name in ("other/00000.age", "media_20260101_120000_abcdef"[:10]):
            (disk / name).parent.mkdir(exist_ok=True)
            (disk / name).write_bytes(b"x")
            os.utime(disk / name, (0, 0))
        gone = tuple(f"media_20260101_120000_abcdef/{number:05d}.age" for number in range(2))
        assert pruned(world, dry_run=True).swept == gone
        refused = pruned(
            world, wrap=lambda real: Refusing(real, lambda what, name: (what, name) == ("delete", gone[0]))
        )
        assert refused.swept == gone[1:]
        assert [one for one in refused.spared if one.startswith(f"{gone[0]}: ")] == list(refused.spared)
        assert pruned(world).swept == gone[:1]

    def test_no_destination_and_one_that_is_away(self, world: Offsite) -> None:
        """An error of the settings, and one of the store; the other destination is pruned."""
        old = put_copy(world, 1)
        put_copy(world, 25)
        policy = RetentionPolicy(rule=RetentionRule(days=10, count=1))
        bare = OffsitePruneJob(world.config(BACKUP_OFFSITE_URLS=""), policy).run()
        assert isinstance(bare.faults[0], ConfigurationError)
        urls = f"file://{world.directory}/away {world.environ['BACKUP_OFFSITE_URLS']}"
        both = OffsitePruneJob(world.config(BACKUP_OFFSITE_URLS=urls), policy, clock=lambda: NOW).run()
        assert [type(fault) for fault in both.faults] == [StoreUnreachableError]
        assert [stem for _, stem in both.removed] == [str(old.stem)]
