"""What a plan never removes, whatever the rules say, and why."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from portal.ops.model import BackupType, VerifyLevel
from portal.ops.repository.entry import Finding
from portal.ops.retention.plan import plan
from portal.ops.retention.policy import RetentionPolicy, RetentionRule
from tests.support.plans import DATABASE, FULL, MEDIA, NOW, days, entry, intact, kept, rule


class TestNeverRemoved:
    def test_the_newest_and_the_newest_verified(self) -> None:
        """Whatever the age, the newest of each type stays, and the newest that was looked at as closely."""
        archives = days(FULL, 100)
        archives += days(FULL, 200, finding=intact(VerifyLevel.CHECKSUM))
        archives += days(FULL, 300, finding=intact(VerifyLevel.DRILL))
        archives += days(FULL, 400, finding=intact(VerifyLevel.DRILL))
        assert kept(plan(archives, rule(count=1), NOW)) == {one.name for one in archives[:3]}

    def test_bases_reach_back_as_far_as_recoveries(self) -> None:
        """The recent ones, the one before them, the newest and the newest that was verified; no rule counts them."""
        policy = RetentionPolicy(rule=RetentionRule(days=0, count=1), pitr_days=7)
        archives = days(BackupType.BASE, 1, 6.9, 7, 8, 60)
        assert kept(plan(archives, policy, NOW)) == {one.name for one in archives[:3]}
        archives += days(BackupType.BASE, 70, finding=intact())
        found = plan(archives, policy, NOW)
        assert kept(found) == {one.name for one in (*archives[:3], archives[5])}
        assert {decision.reasons for decision in found.removals} == {("recoveries reach back 7 days without it",)}

    def test_what_counts_of_a_base_is_its_end(self) -> None:
        """A recovery can begin with a base backup once it is complete; 7 days are reached back without other word."""
        slow, before, oldest = days(BackupType.BASE, 8, 9, 10)
        archives = [*days(BackupType.BASE, 1), slow._replace(modified=NOW - timedelta(days=6)), before, oldest]
        found = plan(archives, RetentionPolicy(), NOW)
        assert [one.entry for one in found.removals] == [oldest]
        assert found.decisions[1].reasons == ("it is not older than 7 days",)
        assert found.decisions[2].reasons == ("recoveries to 7 days ago begin with it",)

    def test_the_reasons_of_a_decision_are_told(self) -> None:
        """In words, and as JSON."""
        new, old = plan([*days(FULL, 0, pinned=True), *days(FULL, 3)], rule(days=1, daily=1), NOW).decisions
        assert new.reasons == (
            "it is pinned",
            "it is the newest full backup",
            "it is not older than 1 day",
            "it is the last of its day",
        )
        assert old.to_dict() == {
            "backup_id": old.entry.name,
            "keep": False,
            "size_bytes": 1000,
            "reasons": [
                "it is older than 1 day, not among the newest 0 full backups, and not the last of a kept day",
            ],
        }
        assert old.line() == f"remove  {old.entry.name}: {old.reasons[0]}"

    def test_of_equal_moments_the_one_written_last_is_the_newest(self) -> None:
        """Then the one whose name comes last."""
        archives = [one._replace(moment=NOW - timedelta(days=5)) for one in days(FULL, 3, 1, 2)]
        assert kept(plan(archives, rule(count=1), NOW)) == {archives[1].name}
        alike = [one._replace(modified=NOW) for one in archives]
        assert kept(plan(alike, rule(count=1), NOW)) == {max(one.name for one in alike)}

    def test_pinned_and_strange_ones(self) -> None:
        """A person's word, and names that are none of ours, are left alone."""
        archives = [*days(FULL, 1), *days(FULL, 500, pinned=True), entry(None, timedelta(900))]
        assert len(kept(plan(archives, rule(count=1), NOW))) == 3

    def test_what_a_kept_one_needs(self) -> None:
        """The whole chain of a kept one stays, however old."""
        (base,) = days(MEDIA, 300)
        (middle,) = days(MEDIA, 200, parent=base.name)
        (tip,) = days(MEDIA, 1, parent=middle.name)
        (side,) = days(MEDIA, 150, parent=base.name)
        found = plan([tip, side, middle, base], rule(count=1), NOW)
        assert kept(found) == {tip.name, middle.name, base.name}

    def test_a_chain_with_a_gap(self) -> None:
        """What is missing may be put back, so what it needs stays: the base, and all between."""
        base, second, third, fourth = days(MEDIA, 90, 80, 70, 60)
        chain = [
            base,
            second._replace(parent=base.name, base=base.name),
            fourth._replace(parent=third.name, base=base.name),
        ]
        found = kept(plan([*chain, *days(MEDIA, 1, 50)], rule(count=1), NOW))
        assert {one.name for one in chain} <= found
        assert len(found) == 4

    def test_children_go_before_parents(self) -> None:
        """The order of removals never leaves an archive without what it needs, even where the clock went back."""
        (base,) = days(MEDIA, 200)
        (child,) = days(MEDIA, 250, parent=base.name)
        (grandchild,) = days(MEDIA, 300, parent=child.name)
        found = plan([*days(MEDIA, 1), grandchild, base, child], rule(count=1), NOW)
        assert [one.entry.name for one in found.removals] == [grandchild.name, child.name, base.name]

    @pytest.mark.parametrize(
        "facts", [{"fault": "no sidecar"}, {"finding": Finding(VerifyLevel.CHECKSUM, NOW, False)}, {"parent": "gone"}]
    )
    def test_what_is_not_whole_counts_for_nothing_and_stays(self, facts: dict[str, Any]) -> None:
        """It takes nobody's place among those that are kept, and a person decides about it."""
        (broken,) = days(FULL, 50, **facts)
        archives = [broken, *days(FULL, 100, 200, 300)]
        found = plan(archives, rule(count=2), NOW)
        assert kept(found) == {one.name for one in archives[:3]}
        assert "not complete" in found.decisions[0].reasons[0]

    def test_a_broken_base_breaks_its_chain(self) -> None:
        """What needs something incomplete is incomplete."""
        (base,) = days(MEDIA, 3, fault="damaged")
        (tip,) = days(MEDIA, 1, parent=base.name)
        archives = [tip, base, *days(MEDIA, 50, 60)]
        assert kept(plan(archives, rule(count=1), NOW)) == {tip.name, base.name, archives[2].name}

    def test_a_circle_is_not_whole(self) -> None:
        """Manifests that lie about their parents end nothing but their own worth."""
        one, other = days(MEDIA, 3, 4)
        archives = [one._replace(parent=other.name), other._replace(parent=one.name), *days(MEDIA, 50, 60)]
        assert len(kept(plan(archives, rule(count=1), NOW))) == 3

    def test_nothing_goes_while_the_clock_is_in_doubt(self) -> None:
        """An archive from the future makes every age worthless."""
        archives = days(FULL, -1, 100, 200) + days(DATABASE, 300, 400)
        found = plan(archives, rule(count=1), NOW)
        assert found.removals == ()
        assert "from the future" in found.warnings[0]
        assert plan(days(FULL, -0.001, 100), rule(count=1), NOW).removals

    def test_how_far_ahead_an_archive_may_be(self) -> None:
        """Ten minutes, as clocks differ; the furthest one is named."""
        ten, second = timedelta(minutes=10), timedelta(seconds=1)
        assert plan([entry(FULL, -ten), *days(FULL, 100)], rule(count=1), NOW).removals
        ahead = [entry(FULL, -ten - second), entry(FULL, -ten - 2 * second), entry(DATABASE, -ten)]
        found = plan([*ahead, *days(FULL, 100)], rule(count=1), NOW)
        assert found.removals == ()
        assert found.warnings[0].startswith(f"{ahead[1].name} is from the future")
        assert found.decisions[3].reasons == (f"the clock is in doubt: {ahead[1].name} is from the future",)


class TestStrays:
    """Archives that cannot be read, so that nobody knows what they need."""

    def test_what_may_be_needed_is_at_most_a_day_newer(self) -> None:
        """An id has the moment that was asked for, so a parent may look a little newer than its child."""
        (stray,) = days(MEDIA, 50, is_stray=True)
        day, second = timedelta(days=1), timedelta(seconds=1)
        archives = [*days(FULL, 1), *days(MEDIA, 1), stray]
        archives += [entry(MEDIA, timedelta(days=50) - day - second), entry(FULL, timedelta(days=50) - day)]
        found = plan(archives, rule(count=1), NOW)
        assert [one.entry.name for one in found.removals] == [archives[3].name]
        assert found.decisions[4].reasons == (f"{stray.name}, which cannot be read, may need it",)
        assert found.warnings == (
            f"{stray.name} cannot be read, so its needs are unknown, and no older backup of uploads is removed. "
            "Make it readable, or move it away",
        )

    def test_base_backups_are_a_family_of_their_own(self) -> None:
        """One that cannot be read keeps older ones of its kind, and nothing else; the newest one is named."""
        old, stray, newer = days(BackupType.BASE, 90, 80, 70)
        strays = [one._replace(is_stray=True) for one in (stray, old)]
        archives = [*days(BackupType.BASE, 1, 9), newer, *strays, *days(BackupType.BASE, 95), *days(FULL, 1, 100)]
        found = plan(archives, rule(count=1), NOW)
        assert {one.entry.name for one in found.removals} == {newer.name, archives[-1].name}
        (warning,) = found.warnings
        assert warning.startswith(f"{stray.name} cannot be read")
        assert "no older base backup is removed" in warning
