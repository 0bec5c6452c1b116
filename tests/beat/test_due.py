"""What is due, by the schedules, what the repository has, and the time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beat.backoff import Asked, Memory, Outage
from beat.due import Held, RepositoryFacts, ScheduledTask, Slot, due, expression_of, last_slots, next_slots
from beat.verify_rotation import day_of, to_verify
from portal.ops.model import BackupType, FullUploads, VerifyLevel
from portal.ops.settings.load import ScheduleSettings
from worker.operations import (
    BACKUP_DATABASE,
    BACKUP_FULL,
    BACKUP_MEDIA,
    DRILL_RESTORE,
    OFFSITE_COPY,
    PRUNE_REPOSITORY,
    VERIFY_ARCHIVE,
    Operation,
)

SCHEDULES = ScheduleSettings(
    full="0 2 * * *",
    database="0 * * * *",
    verify="0 4 * * *",
    prune="30 3 * * *",
    drill="0 5 * * 0",
    base=None,
    time_zone=ZoneInfo("UTC"),
)
NOW = datetime(2026, 11, 22, 9, 10, tzinfo=UTC)
"""A Sunday."""

SECOND = timedelta(seconds=1)
TODAY_FULL = datetime(2026, 11, 22, 2, tzinfo=UTC)
THIS_HOUR = datetime(2026, 11, 22, 9, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a verification has found."""

    moment: datetime
    level: VerifyLevel = VerifyLevel.CONTENTS


def held(kind: BackupType | None, moment: datetime, name: str = "") -> Held:
    return Held(name=name or f"{kind}-{moment:%d%H%M}", type=kind, moment=moment)


def own(slot: Slot) -> Held:
    """The archive that a slot's task makes."""
    assert slot.backup_id
    return Held(name=slot.backup_id, type=slot.operation.backup_type, moment=slot.moment)


def asked_for(
    facts: RepositoryFacts, now: datetime = NOW, schedules: ScheduleSettings = SCHEDULES, **asked: int
) -> list[ScheduledTask]:
    return due(last_slots(schedules, now), facts, now, asked)


def names(tasks: list[ScheduledTask]) -> list[str]:
    return [task.task_id for task in tasks]


ONLY_BACKUPS = replace(
    SCHEDULES, verify=None, prune=None, drill=None, offsite=None, offsite_verify=None, offsite_prune=None
)


def test_a_new_installation_gets_its_first_full_backup_at_once() -> None:
    """Nobody waits until two in the night for it; the database's own, and all that needs an archive, come later."""
    assert names(asked_for(RepositoryFacts())) == ["full-2026-11-22T02:00Z"]


def test_a_slot_is_sent_as_a_backup_of_the_slots_moment() -> None:
    """So its archive has a name that anybody can tell beforehand."""
    (task,) = asked_for(RepositoryFacts())
    assert task.slot.operation is BACKUP_FULL
    assert task.arguments == {"actor": "beat", "moment": "2026-11-22T02:00:00Z"}
    assert str(task.slot.backup_id).startswith("full_20261122_020000_")


def test_only_the_newest_missed_slot_of_each_kind_is_due() -> None:
    """A machine that was off for three days makes one full backup and one of the database, not three and seventy."""
    facts = RepositoryFacts(archives=(held(BackupType.FULL, NOW - timedelta(days=3)),))
    assert names(asked_for(facts, schedules=ONLY_BACKUPS)) == [
        "full-2026-11-22T02:00Z",
        "database-2026-11-22T09:00Z",
    ]


def test_a_slot_whose_archive_is_there_is_not_due() -> None:
    """Its name is enough, whatever else is known of it."""
    slots = last_slots(ONLY_BACKUPS, NOW)
    assert not due(slots, RepositoryFacts(archives=tuple(own(slot) for slot in slots)), NOW, {})
    nameless = tuple(replace(own(slot), name="".join(own(slot).name), type=None) for slot in slots)
    assert not due(slots, RepositoryFacts(archives=nameless), NOW, {})


@pytest.mark.parametrize(
    ("kind", "due_then"),
    [(BackupType.FULL, []), (BackupType.DATABASE, ["full"]), (BackupType.MEDIA, ["full", "database"])],
)
def test_a_backup_by_hand_after_the_slot_does_as_well(kind: BackupType, due_then: list[str]) -> None:
    """A full one for both kinds, one of the database for its own only, one of the media for neither."""
    facts = RepositoryFacts(archives=(held(kind, NOW - timedelta(minutes=3)),))
    assert [task.slot.schedule.setting for task in asked_for(facts, schedules=ONLY_BACKUPS)] == due_then


def test_the_full_backup_satisfies_the_databases_slot_of_the_same_moment() -> None:
    """At two there is one dump, not two."""
    now = TODAY_FULL + timedelta(minutes=20)
    full = Slot(operation=BACKUP_FULL, moment=TODAY_FULL)
    before = held(BackupType.FULL, TODAY_FULL - timedelta(days=1))
    assert names(asked_for(RepositoryFacts(archives=(before,)), now, ONLY_BACKUPS)) == ["full-2026-11-22T02:00Z"]
    assert not asked_for(RepositoryFacts(archives=(before, own(full))), now, ONLY_BACKUPS)


def test_the_database_does_not_wait_for_ever_for_a_full_backup_that_fails() -> None:
    """Uploads that are not mounted are no reason to lose the database too."""
    now = TODAY_FULL + timedelta(minutes=20)
    facts = RepositoryFacts(archives=(held(BackupType.FULL, TODAY_FULL - timedelta(days=1)),))
    for times in (2, 3, 7):
        found = asked_for(facts, now, ONLY_BACKUPS, **{"full-2026-11-22T02:00Z": times})
        assert names(found) == ["full-2026-11-22T02:00Z", "database-2026-11-22T02:00Z"]
    assert names(asked_for(facts, now, ONLY_BACKUPS, **{"full-2026-11-22T02:00Z": 1})) == ["full-2026-11-22T02:00Z"]


def test_the_database_waits_for_the_full_backup_of_its_own_moment_alone() -> None:
    """Whether that of another moment comes before or after; and nothing else waits with it."""
    facts = RepositoryFacts(archives=(held(BackupType.FULL, NOW - timedelta(days=3)),))
    for full in ("5 9 * * *", "55 8 * * *"):
        found = asked_for(facts, schedules=replace(ONLY_BACKUPS, full=full))
        assert [task.slot.schedule.setting for task in found] == ["full", "database"]
    found = asked_for(facts, schedules=replace(SCHEDULES, full="0 9 * * *"))
    assert [task.slot.schedule.setting for task in found] == ["full", "verify", "prune", "drill", "offsite_verify"]


def test_an_archive_counts_from_the_moment_of_the_slot_until_now() -> None:
    """Both of them included."""
    for moment, due_then in ((THIS_HOUR, 0), (NOW, 0), (THIS_HOUR - SECOND, 1), (NOW + SECOND, 1)):
        (slot,) = (slot for slot in last_slots(ONLY_BACKUPS, NOW) if slot.operation is BACKUP_DATABASE)
        facts = RepositoryFacts(archives=(held(BackupType.DATABASE, moment),))
        assert len(due([slot], facts, NOW, {})) == due_then


def test_a_schedule_is_that_of_its_operation() -> None:
    """What has none starts by itself never."""
    assert expression_of(PRUNE_REPOSITORY, SCHEDULES) == "30 3 * * *"
    assert expression_of(BACKUP_MEDIA, SCHEDULES) is None
    assert Slot(operation=BACKUP_FULL, moment=NOW) == Slot(operation=BACKUP_FULL, moment=NOW, is_complete=False)


def test_an_archive_from_a_time_to_come_satisfies_no_slot_but_its_own() -> None:
    """A clock that was a year ahead for a minute does not stop the backups for a year."""
    facts = RepositoryFacts(archives=(held(BackupType.FULL, NOW + timedelta(days=365)),))
    assert [task.slot.schedule.setting for task in asked_for(facts, schedules=ONLY_BACKUPS)] == ["full", "database"]


def test_a_schedule_that_is_off_has_no_slots() -> None:
    """Neither a last nor a next one."""
    off = replace(
        SCHEDULES,
        database=None,
        verify=None,
        prune=None,
        drill=None,
        offsite=None,
        offsite_verify=None,
        offsite_prune=None,
    )
    assert [slot.operation for slot in last_slots(off, NOW) + next_slots(off, NOW)] == [BACKUP_FULL, BACKUP_FULL]


@pytest.mark.parametrize("operation", [PRUNE_REPOSITORY, DRILL_RESTORE])
def test_prune_and_drill_are_due_until_one_has_ended_since_the_slot(operation: Operation) -> None:
    """Whoever started it."""
    (slot,) = (slot for slot in last_slots(SCHEDULES, NOW) if slot.operation is operation)
    old = RepositoryFacts(archives=(held(BackupType.FULL, NOW - timedelta(days=3)),))
    assert names(due([slot], old, NOW, {})) == [slot.task_id]
    assert not due([slot], replace(old, ended={operation: slot.moment + timedelta(minutes=1)}), NOW, {})
    for ended, due_then in ((slot.moment - SECOND, 1), (slot.moment, 0), (NOW, 0), (NOW + SECOND, 1)):
        assert len(due([slot], replace(old, ended={operation: ended}), NOW, {})) == due_then


@pytest.mark.parametrize("operation", [PRUNE_REPOSITORY, DRILL_RESTORE])
def test_prune_and_drill_wait_for_a_slot_after_the_first_archive(operation: Operation) -> None:
    """On the day of the installation there is nothing to remove, and no drill of last Sunday to make up for."""
    (slot,) = (slot for slot in last_slots(SCHEDULES, NOW) if slot.operation is operation)
    for late, due_then in ((SECOND, 0), (timedelta(0), 1)):
        young = RepositoryFacts(archives=(held(BackupType.FULL, slot.moment + late),))
        assert len(due([slot], young, NOW, {})) == due_then


# -- verifications --------------------------------------------------------------------------------------------------

DAY = timedelta(days=1)
SLOT = datetime(2026, 11, 22, 4, tzinfo=UTC)


def test_a_new_archive_is_verified_at_the_next_slot() -> None:
    """One that was made after the slot waits for the one after."""
    archives = [held(BackupType.FULL, SLOT - DAY, "old"), held(BackupType.FULL, SLOT + timedelta(hours=1), "young")]
    assert [one.name for one in to_verify(SLOT, archives, {}, NOW)] == ["old"]
    assert [one.name for one in to_verify(SLOT + DAY, archives, {}, SLOT + DAY)] == ["old", "young"]


def test_a_look_at_the_checksum_alone_is_not_enough() -> None:
    """A restore looks at more than that."""
    archives = [held(BackupType.FULL, SLOT - DAY, "one")]
    found = {"one": Found(moment=SLOT - timedelta(hours=1), level=VerifyLevel.CHECKSUM)}
    assert to_verify(SLOT, archives, found, NOW)


TURN = next(name for name in map(str, range(99)) if day_of(name) == SLOT.toordinal() % 7)
OTHER = next(name for name in map(str, range(99)) if day_of(name) != SLOT.toordinal() % 7)


@pytest.mark.parametrize(
    ("name", "moment", "is_due"),
    [
        (OTHER, SLOT - 6 * DAY, True),
        (OTHER, SLOT - 6 * DAY + SECOND, False),
        (TURN, SLOT - DAY, True),
        (TURN, SLOT - DAY + SECOND, False),
        (TURN, SLOT, False),
        (OTHER, SLOT, False),
        (OTHER, NOW, False),
        (OTHER, NOW + SECOND, True),
    ],
)
def test_when_an_archive_is_verified_again(name: str, moment: datetime, is_due: bool) -> None:
    """On its day if a day has passed, on any after six; at once if the last time is still to come."""
    archives = [held(BackupType.FULL, SLOT - 30 * DAY, name)]
    assert bool(to_verify(SLOT, archives, {name: Found(moment=moment)}, NOW)) is is_due
    checksum = {name: Found(moment=moment, level=VerifyLevel.CHECKSUM)}
    assert bool(to_verify(SLOT, archives, checksum, NOW)) is not (SLOT <= moment <= NOW)
    assert bool(to_verify(SLOT, archives, {name: Found(moment=moment, level=VerifyLevel.DUMP)}, NOW)) is is_due


def test_a_copy_is_due_while_one_is_missing() -> None:
    """Whatever the repository has; only backups name an archive of their own."""
    slot = Slot(operation=OFFSITE_COPY, moment=SLOT)
    assert slot.backup_id is None
    assert due([slot], RepositoryFacts(archives=(held(BackupType.FULL, SLOT),)), NOW, {}) == []
    (task,) = due([slot], RepositoryFacts(uncopied=True), NOW, {})
    assert (task.slot, task.task_id, task.arguments) == (slot, slot.task_id, {"actor": "beat"})


@pytest.mark.parametrize("days", range(7))
def test_each_archive_has_its_day_of_the_week(days: int) -> None:
    """Neither an earlier nor a later one."""
    slot = SLOT + days * DAY
    archives = [held(BackupType.FULL, SLOT - 30 * DAY, name) for name in map(str, range(40))]
    found = {archive.name: Found(moment=slot - 2 * DAY) for archive in archives}
    expected = {archive.name for archive in archives if day_of(archive.name) == slot.toordinal() % 7}
    assert {archive.name for archive in to_verify(slot, archives, found, slot)} == expected != set()


def test_new_archives_come_first_then_those_verified_longest_ago() -> None:
    """Of two that were verified at one time, by name."""
    archives = [held(BackupType.FULL, SLOT - 30 * DAY, name) for name in ("c", "b", "a", "new", "old")]
    found = {name: Found(moment=SLOT - 8 * DAY) for name in "abc"} | {"old": Found(moment=SLOT - 9 * DAY)}
    assert [one.name for one in to_verify(SLOT, archives, found, NOW)] == ["new", "old", "a", "b", "c"]


@pytest.mark.parametrize(
    ("moment", "is_there"), [(SLOT, True), (SLOT + SECOND, False), (NOW, False), (NOW + SECOND, True)]
)
def test_an_archive_waits_for_the_slot_after_it(moment: datetime, is_there: bool) -> None:
    """One from a time to come, made with a wrong clock, would wait for too long."""
    assert bool(to_verify(SLOT, [held(BackupType.FULL, moment, "one")], {}, NOW)) is is_there


@given(st.integers(0, 60), st.lists(st.booleans(), min_size=21, max_size=21))
def test_everything_is_verified_within_a_week_and_nothing_twice_a_day(count: int, machine_is_on: list[bool]) -> None:
    """Also where the machine is off on some days: what was missed comes first when it is on again."""
    archives = [held(BackupType.FULL, SLOT - 30 * DAY, f"archive-{number}") for number in range(count)]
    found: dict[str, Found] = {}
    for day, is_on in enumerate(machine_is_on):
        slot = SLOT + day * DAY
        if not is_on:
            continue
        now = slot + timedelta(minutes=10)
        for archive in to_verify(slot, archives, found, now):
            assert archive.name not in found or slot - found[archive.name].moment >= timedelta(hours=23)
            found[archive.name] = Found(moment=now)
        assert not to_verify(slot, archives, found, now + timedelta(minutes=5))
        assert all(slot + DAY - found[archive.name].moment <= 7 * DAY for archive in archives)


def test_the_work_of_a_week_is_spread_over_its_days() -> None:
    """A seventh a day, roughly: an archive's day is a matter of its name."""
    counts = [0] * 7
    for number in range(7000):
        counts[day_of(f"full_20261122_020000_{number:06x}")] += 1
    assert all(850 < count < 1150 for count in counts)


def test_each_archive_has_a_verification_of_its_own_named_after_slot_and_archive() -> None:
    """So two beats send the same tasks; a name that is not one of ours is none for a task."""
    slot = Slot(operation=VERIFY_ARCHIVE, moment=SLOT)
    archives = (own(Slot(operation=BACKUP_FULL, moment=SLOT - DAY)), held(None, SLOT - DAY, "copied by hand"))
    tasks = due([slot], RepositoryFacts(archives=archives), NOW, {})
    assert tasks[0].task_id == f"verify-2026-11-22T04:00Z-{archives[0].name}"
    assert tasks[1].task_id == "verify-2026-11-22T04:00Z-f8cb8614c7409a1c"
    assert tasks[1].arguments == {"actor": "beat", "archive": "copied by hand", "level": "contents"}


# -- time, and two beats --------------------------------------------------------------------------------------------

jumps = st.lists(st.integers(-400_000, 400_000), min_size=1, max_size=12)


@given(jumps)
def test_whatever_the_clock_does_each_slot_has_one_archive_and_the_newest_one_is_there(steps: list[int]) -> None:
    """Two beats look after each jump, the workers do what is sent: never two archives for one slot."""
    now, names_made = NOW, list[str]()
    archives: dict[str, Held] = {}
    for step in steps:
        now += timedelta(seconds=step)
        views = [asked_for(RepositoryFacts(archives=tuple(archives.values())), now, ONLY_BACKUPS) for _ in range(2)]
        assert names(views[0]) == names(views[1])
        for task in views[0]:
            made = own(task.slot)
            names_made.append(made.name)
            archives[made.name] = made
        for slot in last_slots(ONLY_BACKUPS, now):
            kinds = {BackupType.FULL, slot.operation.backup_type}
            assert any(one.type in kinds and slot.moment <= one.moment <= now for one in archives.values()) or (
                asked_for(RepositoryFacts(archives=tuple(archives.values())), now, ONLY_BACKUPS)
            )
    assert len(names_made) == len(set(names_made))


def test_a_task_that_fails_is_sent_again_with_a_growing_pause() -> None:
    """After 5 minutes, 10, 20, 40, then each hour: not every five minutes for ever."""
    memory, now, pauses = Memory(), NOW, list[int]()
    memory.note("full", now)
    for _ in range(7):
        last = now
        while not memory.may_ask("full", now):
            now += timedelta(minutes=1)
        pauses.append(int((now - last) / timedelta(minutes=1)))
        memory.note("full", now)
    assert pauses == [5, 10, 20, 40, 60, 60, 60]


def test_a_pause_is_over_at_its_end_and_ever_after() -> None:
    """However often it was sent: an hour is the longest."""
    for times, minutes in ((1, 5), (2, 10), (5, 60), (5000, 60)):
        asked = Asked(times=times, moment=NOW)
        end = NOW + timedelta(minutes=minutes)
        assert not asked.may_be_repeated(NOW) and not asked.may_be_repeated(end - SECOND)
        assert asked.may_be_repeated(end) and asked.may_be_repeated(end + DAY)
        assert asked.may_be_repeated(NOW - SECOND)


def test_when_a_task_was_sent_is_known() -> None:
    """At that moment or later; what was not sent was never."""
    memory = Memory()
    memory.note("full", NOW)
    assert memory.was_asked_since("full", NOW) and memory.was_asked_since("full", NOW - SECOND)
    assert not memory.was_asked_since("full", NOW + SECOND)
    assert not memory.was_asked_since("other", NOW)


def test_what_was_sent_once_is_not_written_down() -> None:
    """It may be much; what is due no longer is forgotten."""
    memory = Memory()
    for task_id in ("one", "two", "two", "gone", "gone", "three", "three", "three"):
        memory.note(task_id, NOW)
    memory.keep_only(["one", "two", "three", "never"])
    assert memory.to_dict().keys() == {"two", "three"}
    assert Memory.from_dict(memory.to_dict()).times() == {"two": 2, "three": 3}
    assert memory.times() == {"one": 1, "two": 2, "three": 3}


def test_a_clock_that_was_put_back_ends_the_pause() -> None:
    """Or it would last until the time that was wrong has come."""
    memory = Memory()
    memory.note("full", NOW + timedelta(days=30))
    assert memory.may_ask("full", NOW)


def test_the_memory_survives_a_restart_and_garbage_is_no_memory() -> None:
    """What cannot be understood is as good as lost."""
    memory = Memory()
    memory.note("full", NOW)
    memory.note("full", NOW)
    assert Memory.from_dict(memory.to_dict()).times() == {"full": 2}
    garbage: list[object] = [None, 3, [], {"full": 1}, {"full": {"times": "x"}}]
    assert all(Memory.from_dict(bad).times() == {} for bad in garbage)


def test_an_outage_is_said_once_and_tried_again_after_a_second_then_two() -> None:
    """And each minute in the end."""
    outage, reading, pauses = Outage(), 100.0, list[float]()
    firsts = []
    for _ in range(8):
        firsts.append(outage.fail(reading))
        pauses.append(outage.again - reading)
        reading = outage.again
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    assert firsts == [True, *[False] * 7]
    assert outage.end(reading) == reading - 100.0
    assert not outage.lasts and outage.end(reading) is None
    assert outage.fail(reading) and outage.lasts
    for _ in range(2000):
        outage.fail(reading)
    assert outage.again == reading + 60


CHAINED = replace(ONLY_BACKUPS, database=None, full_uploads=FullUploads.CHAIN, complete="0 2 * * 0")


def test_the_slot_of_a_complete_backup_asks_for_one() -> None:
    """On Sunday both schedules name the same time: that is one full backup, and a complete one."""
    (task,) = asked_for(RepositoryFacts(), schedules=CHAINED)
    assert task.task_id == "full-2026-11-22T02:00Z"
    assert task.arguments == {"actor": "beat", "moment": "2026-11-22T02:00:00Z", "complete": True}


def test_other_days_ask_for_what_has_changed() -> None:
    """On Monday it is a full backup like any other, whether or not that of Sunday was made."""
    (task,) = asked_for(RepositoryFacts(), now=NOW + timedelta(days=1), schedules=CHAINED)
    assert task.arguments == {"actor": "beat", "moment": "2026-11-23T02:00:00Z"}


def test_a_complete_backup_has_times_of_its_own() -> None:
    """One at noon on Sunday is due then, and shown as the next; that of the night does not do for it."""
    schedules = replace(CHAINED, complete="0 12 * * 0")
    noon = TODAY_FULL.replace(hour=12)
    assert [slot.moment for slot in next_slots(schedules, NOW)] == [noon]
    facts = RepositoryFacts(archives=(held(BackupType.FULL, TODAY_FULL),))
    assert asked_for(facts, schedules=schedules) == []
    (task,) = asked_for(facts, now=noon + timedelta(minutes=1), schedules=schedules)
    assert (task.task_id, task.arguments["complete"]) == ("full-2026-11-22T12:00Z", True)


def test_without_chains_its_schedule_means_nothing() -> None:
    """Each full backup is complete anyway."""
    schedules = replace(CHAINED, full_uploads=FullUploads.COMPLETE, complete="0 8 * * 0")
    (task,) = asked_for(RepositoryFacts(), schedules=schedules)
    assert (task.task_id, "complete" in task.arguments) == ("full-2026-11-22T02:00Z", False)
