"""What is said of point-in-time recovery: missed targets, windows, plans, the timeline, replaced clusters."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

import pytest

from portal.ops.errors import ConfigurationError
from portal.ops.model import BackupType
from portal.ops.pitr.data_dir import Delivered
from portal.ops.pitr.health import PitrFacts, PitrMiss, misses
from portal.ops.pitr.lsn import Segment
from portal.ops.pitr.moment import parse_moment, with_offset
from portal.ops.pitr.plan import RecoveryPlan, plan_recovery, with_last_transaction
from portal.ops.pitr.replaced import ReplacedCluster, removable
from portal.ops.pitr.timeline import Removal, Timeline, _removals
from portal.ops.pitr.wal_archive import Cluster, WalArchive
from portal.ops.pitr.wal_reader import Commit
from portal.ops.pitr.window import (
    Base,
    Piece,
    Span,
    Wal,
    Window,
    choose_span,
    find_spans,
    find_window,
    segments_to,
    unneeded,
)
from portal.ops.repository.entry import Entry
from portal.ops.repository.repository import Repository
from tests.support.fake_runner import FakeRunner

if TYPE_CHECKING:
    from collections.abc import Mapping

NOON: Final = datetime(2026, 11, 29, 12, tzinfo=UTC)
MIB: Final = 1 << 20
GIB: Final = 1 << 30
WINDOW: Final = Window(start=NOON - timedelta(hours=3), end=NOON - timedelta(seconds=8))
UPDATED: Final = (NOON - timedelta(seconds=2)).isoformat()
STATE: Final[Mapping[str, Any]] = {
    "updated": UPDATED,
    "lag_bytes": 5,
    "problem": None,
    "slot": {"name": "kekkai", "wal_status": "reserved", "safe_wal_size": 10},
}
FACTS: Final = PitrFacts(window=WINDOW, state=STATE, wal_bytes=17)


def found(facts: PitrFacts, now: datetime = NOON) -> list[PitrMiss]:
    return list(misses(facts, now))


class TestMisses:
    def test_none(self) -> None:
        """Everything is as it should be, to the very limits."""
        assert found(FACTS) == []
        assert found(FACTS, NOON - timedelta(seconds=2) + timedelta(seconds=65)) == []
        for safe, lag in ((10, 10), (-5, 0), (None, GIB)):
            slot = {"name": "kekkai", "safe_wal_size": safe}
            assert found(replace(FACTS, state={**STATE, "slot": slot, "lag_bytes": lag})) == []
        assert found(replace(FACTS, state={"updated": UPDATED})) == []

    def test_a_service_that_is_silent(self) -> None:
        """For more than a minute, and for what the clocks differ; or from the beginning."""
        ((target, what, mend),) = found(FACTS, NOON + timedelta(seconds=63, milliseconds=1))
        assert (target, what) == ("wal", "no WAL has been received for 65 s")
        assert mend.startswith("Start the WAL service: ")
        ((_, what, _),) = found(replace(FACTS, state={"problem": "x"}))
        assert what == "no WAL has been received yet"

    def test_a_problem_of_the_service(self) -> None:
        """With its hint, or where to look."""
        ((target, what, mend),) = found(replace(FACTS, state={**STATE, "problem": "it is full\n  hint: Make room."}))
        assert (target, what, mend) == ("wal", "the WAL is not being received: it is full", "Make room.")
        ((_, _, mend),) = found(replace(FACTS, state={**STATE, "problem": "it is full"}))
        assert mend == "Its log says more."

    @pytest.mark.parametrize("status", ["unreserved", "lost"])
    def test_a_slot_that_is_lost(self, status: str) -> None:
        """It is named."""
        slot = {"name": "kekkai", "wal_status": status}
        ((target, what, mend),) = found(replace(FACTS, state={**STATE, "slot": slot}))
        assert (target, what) == ("wal_slot", f"the replication slot kekkai is {status}")
        assert mend.startswith("Look at the WAL service and its disk;")

    @pytest.mark.parametrize(("safe", "lag"), [(10, 11), (-5, 1), (None, GIB + 1), (4 * GIB, GIB + 1)])
    def test_a_slot_that_holds_much_back(self, safe: int | None, lag: int) -> None:
        """Much, or more than the server may lose."""
        state = {**STATE, "slot": {"name": "kekkai", "safe_wal_size": safe}, "lag_bytes": lag}
        ((target, what, _),) = found(replace(FACTS, state=state))
        shown = "1.1 GB" if lag > GIB else f"{lag} B"
        assert (target, what) == ("wal_slot", f"the server holds {shown} of WAL back for us")

    def test_no_window(self) -> None:
        """It takes a base backup."""
        ((target, what, mend),) = found(replace(FACTS, window=None))
        assert target == "recovery_window"
        assert what.startswith("the database cannot be recovered to any moment yet: ")
        assert "makes one now" in mend

    def test_gaps_of_a_day(self) -> None:
        """By the server's clock; older ones are shown, and no longer missed."""
        ends = (NOON - timedelta(days=1), NOON - timedelta(days=1, milliseconds=1))
        window = replace(WINDOW, gaps=tuple((end - timedelta(hours=1), end) for end in ends))
        ((target, what, mend),) = found(replace(FACTS, window=window))
        assert target == "recovery_window"
        assert what == ("the database cannot be recovered to moments between 2026-11-28 11:00:00 and 12:00:00 UTC")
        assert mend.startswith("That is over:")
        assert found(replace(FACTS, window=window, ahead=timedelta(seconds=1))) == []
        assert len(found(replace(FACTS, window=window, ahead=-timedelta(seconds=1)))) == 2


class TestFacts:
    def test_lag(self) -> None:
        """By our clock, and never less than nothing."""
        assert FACTS.lag_seconds(NOON) == 8
        assert replace(FACTS, ahead=timedelta(seconds=3)).lag_seconds(NOON) == 11
        assert FACTS.lag_seconds(NOON - timedelta(minutes=1)) == 0
        bare = replace(FACTS, window=None)
        assert (bare.lag_seconds(NOON), bare.covered) == (None, None)

    def test_as_json(self) -> None:
        """Window, lag, slot and problem."""
        cluster = ReplacedCluster(system_identifier="7", bytes=3, newest=NOON, has_base=True)
        facts = replace(FACTS, replaced=(cluster,), state={**STATE, "problem": "p"})
        assert facts.to_dict(NOON + timedelta(seconds=0.16)) == {
            "from": "2026-11-29 09:00:00+00:00",
            "to": "2026-11-29 11:59:52+00:00",
            "gaps": [],
            "lag_bytes": 5,
            "lag_seconds": 8.2,
            "wal_bytes": 17,
            "replaced_clusters": [cluster.to_dict()],
            "slot": STATE["slot"],
            "problem": "p",
        }
        bare = PitrFacts(window=None, state={}).to_dict(NOON)
        assert (bare["from"], bare["to"], bare["gaps"], bare["lag_seconds"], bare["wal_bytes"]) == (
            None,
            None,
            [],
            None,
            0,
        )


class TestReplaced:
    CLUSTER: Final = ReplacedCluster(system_identifier="7", bytes=2_000_000, newest=NOON, has_base=False)

    def test_when_it_goes(self) -> None:
        """After a week, or never."""
        assert self.CLUSTER.removable_from == NOON + timedelta(days=7)
        assert str(self.CLUSTER) == (
            "WAL of the replaced cluster 7, until 2026-11-29 12:00 UTC, 2.0 MB: no base backup needs it; "
            "a prune removes it after 2026-12-06"
        )
        assert self.CLUSTER.to_dict() == {
            "system_identifier": "7",
            "wal_bytes": 2_000_000,
            "newest": "2026-11-29T12:00:00+00:00",
            "removable_from": "2026-12-06T12:00:00+00:00",
        }
        kept = replace(self.CLUSTER, has_base=True)
        assert kept.to_dict()["removable_from"] is None
        assert str(kept).endswith(": kept as long as its base backups")

    def test_at_the_very_moment(self) -> None:
        """It stays; after it, it goes."""
        due = NOON + timedelta(days=7)
        assert removable([self.CLUSTER], "8", due) == frozenset()
        assert removable([self.CLUSTER], "8", due + timedelta(microseconds=1)) == {"7"}


def base(number: int, *, timeline: int = 1, minutes: float = 0) -> Base:
    start = number * MIB + 40
    return Base(
        name=f"base_{number}",
        timeline=timeline,
        start_lsn=start,
        end_lsn=start + 100,
        ended=NOON + timedelta(minutes=minutes),
    )


def wal(*numbers: int, timeline: int = 1, **more: Any) -> Wal:
    pieces = [
        Piece(segment=Segment(timeline, number), covered=NOON + timedelta(minutes=number), is_complete=True)
        for number in numbers
    ]
    return Wal(segment_bytes=MIB, pieces=pieces, **more)


class TestWindow:
    def test_in_words(self) -> None:
        """With its gaps."""
        window = replace(WINDOW, gaps=((NOON - timedelta(hours=2), NOON - timedelta(hours=1)),))
        assert str(WINDOW) == "2026-11-29 09:00:00+00:00 to 2026-11-29 11:59:52+00:00"
        assert str(window) == f"{WINDOW}, except 2026-11-29 10:00:00+00:00 to 2026-11-29 11:00:00+00:00"
        assert window.to_dict()["gaps"] == [{"from": "2026-11-29 10:00:00+00:00", "to": "2026-11-29 11:00:00+00:00"}]

    def test_spans_that_touch(self) -> None:
        """They are no gap, and one inside another changes nothing."""

        def span(start: float, end: float) -> Span:
            return Span(
                base=base(1),
                timeline=1,
                start=NOON + timedelta(minutes=start),
                end=NOON + timedelta(minutes=end),
                segments=1,
            )

        window = find_window([span(5, 7), span(0, 5), span(1, 2)])
        assert window == Window(start=NOON, end=NOON + timedelta(minutes=7))
        assert span(0, 5).holds(NOON)
        assert span(0, 5).holds(NOON + timedelta(minutes=5))
        assert not span(0, 5).holds(NOON + timedelta(minutes=5.1))

    def test_the_latest_moment(self) -> None:
        """From the base backup with the least WAL after it; without any from none."""
        spans = find_spans([base(1), base(3, minutes=2.5)], wal(1, 2, 3, 4))
        assert [one.segments for one in spans] == [4, 2]
        chosen = choose_span(spans, None)
        assert chosen
        assert chosen.base.name == "base_3"
        assert choose_span([], None) is None

    def test_segments_to_a_moment(self) -> None:
        """Up to the one that covers it, or all."""
        found = wal(1, 2, 3)
        (span,) = find_spans([base(1)], found)
        for moment, last in ((NOON + timedelta(minutes=1), 1), (NOON + timedelta(minutes=1.1), 2), (None, 3)):
            assert [one.number for one in segments_to(span, found, moment)] == list(range(1, last + 1))

    def test_a_base_that_ends_beyond_its_wal(self) -> None:
        """It leads nowhere, until its last segment is there; ending with it suffices."""
        long = replace(base(1), end_lsn=3 * MIB)
        assert find_spans([long], wal(1)) == ()
        assert len(find_spans([long], wal(1, 2))) == 1
        assert find_spans([replace(long, end_lsn=3 * MIB + 1)], wal(1, 2)) == ()

    def test_a_base_on_another_timeline(self) -> None:
        """It follows the histories that it lies before."""
        history = {2: ((1, base(1).end_lsn),)}
        found = wal(1, 2, timeline=2, histories=history, created={2: NOON + timedelta(seconds=30)})
        (span,) = find_spans([base(1)], found)
        assert (span.timeline, span.live) == (2, NOON + timedelta(seconds=30))
        early = {2: ((1, base(1).end_lsn - 1),)}
        assert find_spans([base(1)], wal(1, 2, timeline=2, histories=early)) == ()
        (own,) = find_spans([base(1, timeline=2)], found)
        assert own.live is None

    def test_segments_before_a_base(self) -> None:
        """The one that it starts in stays."""
        assert unneeded([base(2)], wal(1, 2, 3)) == {Segment(1, 1)}


def plan(**changes: Any) -> RecoveryPlan:
    found = wal(1, 2, 3)
    (span,) = find_spans([base(1, minutes=0.5)], found)
    archive = WalArchive(Repository(Path("/r")), Cluster(system_identifier="7", segment_bytes=MIB, major=17))
    given: dict[str, Any] = {
        "moment": NOON + timedelta(minutes=1),
        "window": WINDOW,
        "span": span,
        "path": Path("/r/b"),
        "line": (Path("/r/b"),),
        "facts": {"bytes": 100_000_000},
        "wal_bytes": 60_000_000,
        "archive": archive,
    }
    return RecoveryPlan(**{**given, **changes})


class TestPlan:
    def test_in_words(self) -> None:
        """What, from what, how much and how long."""
        assert plan().lines() == [
            "The database as of 2026-11-29 12:01:00+00:00",
            "Last transaction before: none in the last segments of WAL",
            "Base backup base_1, complete at 2026-11-29 12:00:30+00:00",
            "Then up to 57 MB of WAL on timeline 1",
            f"Recovery window: {WINDOW}",
            "Room for a scratch server: about 216 MB; it is removed afterwards",
            "Time: about 7 s",
        ]
        other = plan(
            moment=None,
            line=(Path("a"), Path("b"), Path("c")),
            combined_bytes=150_000_000,
            last_transaction=NOON,
            zone=ZoneInfo("Europe/Berlin"),
        )
        lines = other.lines(with_dump=True)
        assert lines[0] == "The database as of 2026-11-29 13:03:00+01:00 (12:03:00 UTC), the latest moment there is"
        assert lines[1] == "Last transaction before: 2026-11-29 13:00:00+01:00 (12:00:00 UTC)"
        assert lines[2].endswith("13:00:30+01:00 (12:00:30 UTC), with 2 more that it follows")
        assert lines[-1] == "Time: about 13 s"

    def test_room(self) -> None:
        """For the cluster, what it is combined of, WAL as far as a server keeps it, and some more."""
        spare = 64 << 20
        assert plan().needed_bytes == 160_000_000 + spare
        assert plan(combined_bytes=5).needed_bytes == 160_000_005 + spare
        assert plan(wal_bytes=4 << 30).needed_bytes == 100_000_000 + (3 << 30) + spare
        tree = plan(facts={"bytes": 1, "tree": {"bytes": 7}})
        assert (tree.cluster_bytes, tree.major, tree.reached) == (7, 17, NOON + timedelta(minutes=1))

    def test_time(self) -> None:
        """To start, unpack, replay and dump."""
        assert plan().seconds(with_dump=False) == 3 + 2 + 2
        assert plan(combined_bytes=50_000_000).seconds(with_dump=False) == 8
        assert plan().seconds(with_dump=True) == pytest.approx(7 + 100 / 35)

    def test_wal_that_cannot_be_read_changes_nothing(self) -> None:
        """Without the program the last transaction stays unknown."""
        made = plan(segments=(Segment(1, 1),))
        assert with_last_transaction(made, runner=FakeRunner({}), bin_dir=None) == made

    def test_nothing_to_recover_from(self, tmp_path: Path) -> None:
        """It is said what it takes."""
        repository = Repository(tmp_path)
        with pytest.raises(ConfigurationError, match="it takes a base backup and the WAL that follows it") as caught:
            plan_recovery(repository, None)
        assert "BACKUP_WAL=on" in caught.value.hint
        repository.prepare()
        WalArchive.prepare(repository, Cluster(system_identifier="7", segment_bytes=MIB, major=17))
        with pytest.raises(ConfigurationError, match="it takes a base backup"):
            plan_recovery(repository, None)

    def test_what_was_delivered(self) -> None:
        """As JSON."""
        delivered = Delivered(directory=Path("/new"), moment=NOON, commands=("a", "b"), notes=("c",))
        assert delivered.to_dict() == {
            "success": True,
            "data_dir": "/new",
            "at": "2026-11-29T12:00:00+00:00",
            "commands": ["a", "b"],
            "notes": ["c"],
        }


class TestTimeline:
    ENTRY: Final = Entry(name="full_x", type=BackupType.FULL, moment=NOON, modified=NOON, size=1)
    REMOVAL: Final = Removal(moment=NOON - timedelta(milliseconds=1), table="public.a", rows=1234)

    def test_in_lines(self) -> None:
        """Oldest first, with the window at the end."""
        stray = replace(TestReplaced.CLUSTER, has_base=True)
        entries = (self.ENTRY, self.ENTRY._replace(name="x", type=None, moment=NOON + timedelta(microseconds=7999)))
        whole = Removal(moment=NOON + timedelta(seconds=1), table="public.b", rows=None)
        timeline = Timeline(window=WINDOW, archives=entries, removals=(self.REMOVAL, whole), replaced=(stray,))
        assert timeline.lines() == [
            "2026-11-29 11:59:59.999+00:00  ! public.a: 1,234 rows removed",
            "2026-11-29 12:00:00.000+00:00  full backup full_x",
            "2026-11-29 12:00:00.007+00:00  archive x",
            "2026-11-29 12:00:01.000+00:00  ! public.b: emptied, dropped or rewritten",
            f"recovery window: {WINDOW}",
            str(stray),
        ]

    @pytest.mark.parametrize(
        ("kind", "name"),
        [
            (BackupType.DATABASE, "backup of the database"),
            (BackupType.MEDIA, "backup of uploads"),
            (BackupType.AUDIT_LOGS, "backup of the audit log"),
            (BackupType.BASE, "base backup"),
        ],
    )
    def test_kinds_of_archives(self, kind: BackupType, name: str) -> None:
        """Each has its name."""
        timeline = Timeline(window=None, archives=(self.ENTRY._replace(type=kind),), removals=())
        assert timeline.lines() == [
            f"2026-11-29 12:00:00.000+00:00  {name} full_x",
            "there is no recovery window",
        ]

    def test_without_removals(self) -> None:
        """It is said of how many rows, and how to see less."""
        many = Timeline(window=WINDOW, archives=(), removals=())
        assert many.lines()[0] == ("no transaction removed 100 rows of a table or more; --rows 1 shows smaller ones")
        assert replace(many, least_rows=1).lines()[0] == "no transaction removed 1 row of a table or more"

    def test_as_json(self) -> None:
        """The same."""
        timeline = Timeline(
            window=WINDOW, archives=(self.ENTRY,), removals=(self.REMOVAL,), replaced=(TestReplaced.CLUSTER,)
        )
        assert timeline.to_dict() == {
            "recovery_window": WINDOW.to_dict(),
            "archives": [{"backup_id": "full_x", "type": "full", "timestamp": "2026-11-29T12:00:00Z"}],
            "removals": [{"moment": "2026-11-29T11:59:59.999000+00:00", "table": "public.a", "rows": 1234}],
            "least_rows": 100,
            "replaced_clusters": [TestReplaced.CLUSTER.to_dict()],
        }
        assert Timeline(window=None, archives=(), removals=()).to_dict()["recovery_window"] is None

    def test_few_rows_of_tables_without_a_name(self) -> None:
        """They are the server's own; of others, what was asked for counts."""
        commit = Commit(
            moment=NOON,
            transaction=1,
            deleted={(5, 1): 10, (5, 2): 9, (5, 3): 99, (5, 4): 100},
            removed=((5, 2), (5, 9), (5, 1)),
        )
        names = {(5, 1): "public.b", (5, 2): "public.a"}
        assert [(one.table, one.rows) for one in _removals(commit, names, 10)] == [
            ("public.b", 10),
            ("table 4", 100),
            ("public.a", None),
            ("public.b", None),
        ]
        assert [(one.table, one.rows) for one in _removals(commit, names, 101)][:1] == [("public.a", None)]


class TestMoments:
    @pytest.mark.parametrize(
        ("text", "seconds"),
        [
            ("5 s ago", 5),
            ("5 seconds ago", 5),
            ("1 second ago", 1),
            ("5m ago", 300),
            ("5 min ago", 300),
            ("1 MINUTE ago", 60),
            ("2 h ago", 7200),
            ("1 hour ago", 3600),
            ("3 d  ago", 3 * 86400),
            (" 1 day ago ", 86400),
        ],
    )
    def test_ago(self, text: str, seconds: int) -> None:
        """In every unit."""
        assert parse_moment(text, NOON) == NOON - timedelta(seconds=seconds)
        assert with_offset(text, UTC) == text.strip()

    @pytest.mark.parametrize("text", ["1234567890 s ago", "5 s", "-5 s ago", "5 weeks ago", ""])
    def test_nonsense(self, text: str) -> None:
        """What was written is shown as it was."""
        with pytest.raises(ConfigurationError) as caught:
            parse_moment(text, NOON)
        assert caught.value.message == f"{text.strip()!r} is no moment"

    def test_latest_on_another_machine(self) -> None:
        """It stays what it is."""
        assert with_offset(" LATEST", UTC) == "LATEST"
