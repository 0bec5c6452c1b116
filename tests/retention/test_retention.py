"""What is kept and why: frozen plans, an oracle that is too slow to be wrong, and what must hold of any plan."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from portal.ops.backup.config import BackupConfig
from portal.ops.errors import ConfigurationError
from portal.ops.model import BackupType, VerifyLevel
from portal.ops.repository.entry import Entry, Finding
from portal.ops.retention.plan import plan
from portal.ops.retention.policy import RetentionPolicy, RetentionRule
from portal.ops.settings.entry import RULE_WORDS, RULED_TYPES
from portal.ops.settings.load import load_settings
from portal.ops.settings.parsers import MOST_KEPT
from tests.support.plans import DATABASE, FULL, MEDIA, NOW, days, entry, intact, kept, rule

GOLDEN = Path(__file__).parents[1] / "golden" / "plans"
PERIODS = {
    "hourly": "%Y-%m-%d %H",
    "daily": "%Y-%m-%d",
    "weekly": "%G-%V",
    "monthly": "%Y-%m",
    "yearly": "%Y",
}


class TestRules:
    def test_age_and_count(self) -> None:
        """Only what is older than the days and beyond the count goes."""
        archives = days(FULL, 1, 29, 31, 60, 90)
        assert kept(plan(archives, rule(days=30, count=3), NOW)) == {one.name for one in archives[:3]}
        assert kept(plan(archives, rule(days=30, count=1), NOW)) == {one.name for one in archives[:2]}

    def test_what_counts_is_when_the_data_was_read(self) -> None:
        """Archives of today under names of earlier days are young, and not the last ones of those days."""
        true = days(MEDIA, *range(1, 31))
        forged = [
            entry(MEDIA, timedelta(days=age) - timedelta(hours=6), request="forged", read=NOW) for age in range(1, 31)
        ]
        policy = RetentionPolicy(rule=RetentionRule(days=7, count=10, daily=30))
        assert {one.name for one in true[:29]} <= kept(plan([*forged, *true], policy, NOW))

    def test_the_day_itself_is_kept(self) -> None:
        """An archive of exactly so many days is not older than that."""
        archives = days(FULL, 0, 30)
        assert len(kept(plan(archives, rule(days=30), NOW))) == 2

    def test_types_are_counted_apart(self) -> None:
        """Many databases do not make a full backup go."""
        archives = days(FULL, 100, 200) + days(DATABASE, *range(40, 60))
        found = kept(plan(archives, rule(count=2), NOW))
        assert found == {one.name for one in (*archives[:2], *archives[2:4])}

    def test_a_type_with_a_rule_of_its_own(self) -> None:
        """A type's own rule goes before the general one."""
        archives = days(FULL, 1, 2, 3) + days(DATABASE, 1, 2, 3)
        policy = replace(rule(count=1), rules={FULL: RetentionRule(days=0, count=3)})
        assert len(kept(plan(archives, policy, NOW))) == 4

    @pytest.mark.parametrize(("name", "age"), [("hourly", 1 / 24), ("daily", 1), ("weekly", 7), ("monthly", 31)])
    def test_periods(self, name: str, age: float) -> None:
        """Of each of the last so many periods that have one, the last archive is kept."""
        archives = days(FULL, *(n * age / 3 for n in range(12)))
        found = plan(archives, rule(**{name: 2}), NOW)
        periods = sorted({one.moment.strftime(PERIODS[name]) for one in archives}, reverse=True)[:2]
        newest = {
            max((one for one in archives if one.moment.strftime(PERIODS[name]) == p), key=lambda one: one.moment)
            for p in periods
        }
        assert kept(found) == {one.name for one in newest}

    def test_days_are_those_of_the_zone(self) -> None:
        """What a day is, hangs on where one is."""
        archives = [entry(FULL, NOW - datetime(2026, 2, 10, hour, 30, tzinfo=UTC)) for hour in (23, 22, 1)]
        policy = rule(daily=2)
        assert len(kept(plan(archives, policy, NOW))) == 1
        assert len(kept(plan(archives, replace(policy, zone=ZoneInfo("Europe/Berlin")), NOW))) == 2

    def test_the_hour_that_comes_twice(self) -> None:
        """When the clock goes back, the two hours of the same name are two."""
        moments = [datetime(2025, 10, 26, hour, 30, tzinfo=UTC) for hour in (1, 0)]
        archives = [entry(FULL, NOW - moment) for moment in moments]
        policy = replace(rule(hourly=2), zone=ZoneInfo("Europe/Berlin"))
        assert len(kept(plan(archives, policy, NOW))) == 2


class TestPolicies:
    @pytest.mark.parametrize("numbers", [{"days": -1}, {"count": -1}, {"daily": 10**9}, {"days": 0, "count": 0}])
    def test_nonsense_is_refused(self, numbers: dict[str, int]) -> None:
        """A rule that keeps nothing, or counts what cannot be, is an error with a hint."""
        with pytest.raises(ConfigurationError) as caught:
            RetentionRule(**numbers)
        assert caught.value.hint

    def test_the_largest_number_is_the_one_that_the_hint_names(self) -> None:
        """What a setting accepts a rule accepts, and no more."""
        assert RetentionRule(days=MOST_KEPT).days == MOST_KEPT
        with pytest.raises(ConfigurationError, match=f"days is {MOST_KEPT + 1}"):
            RetentionRule(days=MOST_KEPT + 1)

    def test_the_environment(self) -> None:
        """The settings become a policy."""
        found = load_settings({"BACKUP_RETENTION_DAYS": "7", "BACKUP_KEEP_WEEKLY": "4"}, str)
        assert BackupConfig.from_settings(found).retention.of(FULL) == RetentionRule(days=7, count=10, weekly=4)

    def test_rules_of_types_in_the_environment(self) -> None:
        """A type's own rule is what it says; the general days and count are in it only where it names neither."""
        text = "database: count 48, hourly 24 ; Media: days 7;full: weekly 8, monthly 12;"
        found = load_settings({"BACKUP_RETENTION_RULES": text, "BACKUP_KEEP_DAILY": "3"}, str)
        policy = BackupConfig.from_settings(found).retention
        assert policy.of(DATABASE) == RetentionRule(days=0, count=48, hourly=24)
        assert policy.of(MEDIA) == RetentionRule(days=7, count=0)
        assert policy.of(FULL) == RetentionRule(days=30, count=10, weekly=8, monthly=12)
        assert policy.of(BackupType.AUDIT_LOGS) == RetentionRule(days=30, count=10, daily=3)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("weekly 8", "a rule for 'weekly 8', which is none of full, database"),
            ("media: days 7; media: days 8", "two rules for media"),
            ("media: days", "says 'days' for media, and not something such as 'days 7'"),
            ("media:", "says ''"),
            ("media: years 7", "says 'years 7'"),
            ("media: days -1", "says 'days -1'"),
            ("media: days 7, days 8", "says days twice for media"),
            ("full: count 1000000", "says 'count 1000000' for full, .* the numbers less than 1000000"),
            ("full: weekly 8; media: days 0", "the rule for media keeps nothing"),
            ("music: days 7; media: weeks 1", "none of full, database, media, audit_logs; it says 'weeks 1'"),
        ],
    )
    def test_rules_that_make_no_sense(self, text: str, said: str) -> None:
        """Every fault of them is told, with the variable's name."""
        with pytest.raises(ConfigurationError, match=said) as caught:
            load_settings({"BACKUP_RETENTION_RULES": text}, str)
        assert "BACKUP_RETENTION_RULES" in str(caught.value)

    def test_a_rule_that_keeps_nothing_is_one_fault_of_many(self) -> None:
        """It is told with all others; also where the general days and count, which it has, are 0."""
        environ = {
            "BACKUP_RETENTION_RULES": "media: hourly 0; full: count 0; database: daily 1",
            "BACKUP_RETENTION_DAYS": "0",
            "BACKUP_RETENTION_COUNT": "0",
            "BACKUP_KEEP_DAILY": "7",
            "BACKUP_KEEP_WEEKLY": "1000001",
        }
        with pytest.raises(ConfigurationError) as caught:
            load_settings(environ, str)
        assert [line.strip() for line in str(caught.value).splitlines()[1:-1]] == [
            "BACKUP_KEEP_WEEKLY: '1000001' is not a whole number from 0 to 1000000",
            *(
                f"BACKUP_RETENTION_RULES: the rule for {kind} keeps nothing: every number in it is 0; "
                "expected one that is more than 0"
                for kind in ("media", "full")
            ),
        ]

    @pytest.mark.parametrize(
        ("rules", "hint"),
        [
            ({"media": {"days": 0}}, "BACKUP_RETENTION_RULES has it"),
            ({"music": {"days": 7}}, "The types are"),
            ({"media": {"centuries": 7}}, "The types are"),
        ],
    )
    def test_rules_that_programs_give(self, rules: dict[str, dict[str, int]], hint: str) -> None:
        """Whoever configures a job is told likewise, of which type, and with a hint."""
        with pytest.raises(ConfigurationError, match=f"for {next(iter(rules))}") as caught:
            _ = BackupConfig(retention_rules=rules).retention
        assert caught.value.hint.startswith(hint)
        assert "BACKUP_KEEP" not in caught.value.hint

    def test_there_can_be_a_rule_for_every_type_and_number(self) -> None:
        """The words of the setting are the types and numbers that there are."""
        assert set(RULED_TYPES) == {kind.value for kind in BackupType if kind is not BackupType.BASE}
        assert set(RULE_WORDS) == {one.name for one in fields(RetentionRule)}


# -- frozen plans -----------------------------------------------------------------------------------------------------


def story() -> list[Entry]:
    """A year of a portal: full ones daily, databases every six hours for a while, media in chains."""
    archives = [entry(FULL, timedelta(days=n, hours=10)) for n in range(0, 400, 9)]
    archives += [entry(DATABASE, timedelta(hours=6 * n)) for n in range(12)]
    parent: str | None = None
    for n in range(60, 0, -5):
        one = entry(MEDIA, timedelta(days=n), parent=None if n % 20 == 0 else parent)
        parent = one.name
        archives.append(one)
    archives[3] = archives[3]._replace(pinned=True)
    archives[20] = archives[20]._replace(finding=intact(VerifyLevel.DRILL))
    archives[25] = archives[25]._replace(fault="there is no sidecar beside it")
    archives[30] = archives[30]._replace(finding=Finding(VerifyLevel.DUMP, NOW, False))
    archives.append(entry(None, timedelta(days=700)))
    return archives


STORIES = {
    "guide": RetentionPolicy(),
    "generations": rule(count=2, daily=7, weekly=4, monthly=6, yearly=2),
    "own-rules": RetentionPolicy(
        rules={DATABASE: RetentionRule(days=1, count=2), MEDIA: RetentionRule(days=7, count=1)}
    ),
}


@pytest.mark.parametrize("name", STORIES)
def test_frozen_plan(name: str) -> None:
    """A plan for the same archives is the same in every release: a change here is one that users have to be told."""
    found = plan(story(), STORIES[name], NOW)
    assert "".join(f"{decision.line()}\n" for decision in found.decisions) == (GOLDEN / f"{name}.txt").read_text()


# -- any plan ---------------------------------------------------------------------------------------------------------

NUMBERS = st.integers(min_value=0, max_value=4)
RULES = st.builds(
    RetentionRule,
    days=st.integers(min_value=0, max_value=40),
    count=st.integers(min_value=1, max_value=4),
    **dict.fromkeys(PERIODS, NUMBERS),
)


@st.composite
def repositories(draw: st.DrawFn) -> list[Entry]:
    """Archives of any types and ages, some in chains, some broken, pinned or verified."""
    found: list[Entry] = []
    count = draw(st.integers(min_value=0, max_value=14))
    for number in range(count):
        kind = draw(st.sampled_from([FULL, MEDIA, None]))
        hours = draw(st.integers(min_value=0, max_value=60 * 24))
        finding = draw(
            st.sampled_from([None, None, intact(), intact(VerifyLevel.DUMP), Finding(VerifyLevel.DUMP, NOW, False)])
        )
        parents = [one.name for one in found if one.type in (MEDIA, FULL)]
        parent = draw(st.sampled_from([None, None, *parents, "gone"])) if kind in (MEDIA, FULL) else None
        one = entry(kind, timedelta(hours=hours), parent=parent, finding=finding, pinned=draw(st.integers(0, 9)) == 0)
        found.append(one._replace(name=f"{one.name}_{number}", fault=draw(st.sampled_from(["", "", "", "x"]))))
    return draw(st.permutations(found))


class Oracle:
    """What is kept, by the letter of the rules, one archive and one question at a time."""

    def __init__(self, archives: list[Entry], policy: RetentionPolicy) -> None:
        self.archives = archives
        self.by_name = {one.name: one for one in archives}
        self.policy = policy

    def kept(self) -> set[str]:
        """All names."""
        found = {one.name for one in self.archives if self.stays(one)}
        while True:
            parents = {self.by_name[name].parent for name in found}
            more = {one for one in parents if one in self.by_name and one not in found}
            if not more:
                return found
            found |= {one for one in more if one}

    def is_complete(self, one: Entry) -> bool:
        """Whether it could be restored."""
        if one.type is None or one.fault or (one.finding and not one.finding.intact):
            return False
        return one.parent is None or (one.parent in self.by_name and self.is_complete(self.by_name[one.parent]))

    def stays(self, one: Entry) -> bool:
        """Whether something speaks for it beside its children."""
        if one.pinned or not self.is_complete(one):
            return True
        assert one.type is not None
        numbers = self.policy.of(one.type)
        alike = [other for other in self.archives if other.type is one.type and self.is_complete(other)]
        newer = [other for other in alike if (other.moment, other.name) > (one.moment, one.name)]
        is_young = NOW - one.moment <= timedelta(days=numbers.days)
        is_newest = len(newer) < max(1, numbers.count)
        return is_young or is_newest or self.is_best_verified(one, newer) or self.is_last(one, newer, numbers)

    def is_best_verified(self, one: Entry, newer: list[Entry]) -> bool:
        """Whether no newer one was looked at as closely."""
        mine = [level for level in VerifyLevel if one.finding and one.finding.level.covers(level)]
        theirs = {
            level for level in VerifyLevel for other in newer if other.finding and other.finding.level.covers(level)
        }
        return bool(set(mine) - theirs)

    def is_last(self, one: Entry, newer: list[Entry], numbers: RetentionRule) -> bool:
        """Whether it is the last of a period that is kept."""
        for name, shape in PERIODS.items():
            later = {other.moment.strftime(shape) for other in newer}
            if one.moment.strftime(shape) not in later and len(later) < getattr(numbers, name):
                return True
        return False


@settings(max_examples=150, deadline=None)
@given(archives=repositories(), general=RULES)
def test_the_oracle_agrees(archives: list[Entry], general: RetentionRule) -> None:
    """The plan keeps what the rules say, no more and no less."""
    policy = RetentionPolicy(rule=general)
    assert kept(plan(archives, policy, NOW)) == Oracle(archives, policy).kept()


@settings(max_examples=80, deadline=None)
@given(archives=repositories(), general=RULES, name=st.sampled_from(["days", "count", *PERIODS]))
def test_a_longer_policy_never_removes_more(archives: list[Entry], general: RetentionRule, name: str) -> None:
    """Whoever raises a number loses nothing by it."""
    longer = replace(general, **{name: getattr(general, name) + 1})
    before, after = (kept(plan(archives, RetentionPolicy(rule=one), NOW)) for one in (general, longer))
    assert before <= after


@settings(max_examples=80, deadline=None)
@given(archives=repositories(), general=RULES)
def test_a_second_prune_has_nothing_to_do(archives: list[Entry], general: RetentionRule) -> None:
    """What a plan keeps, the same policy keeps again once the rest is gone."""
    policy = RetentionPolicy(rule=general)
    names = kept(plan(archives, policy, NOW))
    assert plan([one for one in archives if one.name in names], policy, NOW).removals == ()


@settings(max_examples=80, deadline=None)
@given(archives=repositories(), general=RULES)
def test_no_chain_is_broken_at_any_step(archives: list[Entry], general: RetentionRule) -> None:
    """After each single removal, everything that is there has all that it had of its chain."""
    there, broken = {one.name: one for one in archives}, []
    for removal in plan(archives, RetentionPolicy(rule=general), NOW).removals:
        del there[removal.entry.name]
        broken += [one.name for one in there.values() if one.parent == removal.entry.name]
    assert broken == []


@settings(max_examples=80, deadline=None)
@given(archives=repositories(), general=RULES)
def test_what_is_kept_can_be_restored_as_before(archives: list[Entry], general: RetentionRule) -> None:
    """Of an archive that was whole before a prune and is kept, all that it stands on is kept."""
    before = Oracle(archives, RetentionPolicy(rule=general))
    names = kept(plan(archives, before.policy, NOW))
    after = Oracle([one for one in archives if one.name in names], before.policy)
    assert all(after.is_complete(one) for one in after.archives if before.is_complete(one))


@settings(max_examples=80, deadline=None)
@given(archives=repositories(), general=RULES)
def test_a_full_backup_counts_as_one_whatever_it_follows(archives: list[Entry], general: RetentionRule) -> None:
    """The newest whole ones stay by their count, those that follow another archive among them."""
    policy = RetentionPolicy(rule=general)
    oracle = Oracle(archives, policy)
    fulls = [one for one in archives if one.type is FULL and oracle.is_complete(one)]
    fulls.sort(key=lambda one: (one.moment, one.name), reverse=True)
    assert {one.name for one in fulls[: general.count]} <= kept(plan(archives, policy, NOW))


@settings(max_examples=80, deadline=None)
@given(archives=repositories(), general=RULES)
def test_every_decision_has_a_reason(archives: list[Entry], general: RetentionRule) -> None:
    """There is one decision for each archive, with a reason in words."""
    found = plan(archives, RetentionPolicy(rule=general), NOW)
    assert [decision.entry for decision in found.decisions] == list(archives)
    assert all(reason for decision in found.decisions for reason in decision.reasons)
