"""The recovery window is a function of base backups and segments."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Final

from portal.ops.pitr.lsn import Segment
from portal.ops.pitr.window import Base, Piece, Wal, choose_span, find_spans, find_window, unneeded

SEGMENT: Final = 16 << 20
NOON: Final = datetime(2026, 11, 28, 12, tzinfo=UTC)


def at(minutes: float) -> datetime:
    return NOON + timedelta(minutes=minutes)


def a_base(number: int, minutes: float, timeline: int = 1) -> Base:
    """A base backup that begins and ends in one segment."""
    start = number * SEGMENT + 40
    return Base(name=f"base_{number}", timeline=timeline, start_lsn=start, end_lsn=start + 100, ended=at(minutes))


def pieces(*numbers: int, timeline: int = 1) -> list[Piece]:
    """Whole segments; segment N covers minute N."""
    return [Piece(segment=Segment(timeline, number), covered=at(number), is_complete=True) for number in numbers]


def the_wal(*found: Piece, **more: object) -> Wal:
    return Wal(segment_bytes=SEGMENT, pieces=found, **more)  # type: ignore[arg-type]


def test_begins_with_the_first_base_and_ends_with_the_wal() -> None:
    """From the end of the first base backup to the last moment that the WAL covers."""
    window = find_window(find_spans([a_base(3, 2.5)], the_wal(*pieces(1, 2, 3, 4, 5))))
    assert window
    assert (window.start, window.end, window.gaps) == (at(2.5), at(5), ())


def test_partial_segment_extends_it() -> None:
    """The segment that is being received counts as far as it covers."""
    partial = Piece(segment=Segment(1, 4), covered=at(3.7), is_complete=False)
    window = find_window(find_spans([a_base(3, 2.5)], the_wal(*pieces(3), partial)))
    assert window
    assert window.end == at(3.7)


def test_missing_segment_is_a_gap_until_the_next_base() -> None:
    """Nothing between the last moment before a missing segment and the next base backup can be recovered to."""
    window = find_window(find_spans([a_base(1, 0.5), a_base(6, 5.5)], the_wal(*pieces(1, 2, 4, 5, 6, 7))))
    assert window
    assert window.gaps == ((at(2), at(5.5)),)
    assert (window.start, window.end) == (at(0.5), at(7))


def test_no_base_is_no_window() -> None:
    """WAL alone leads nowhere, and so does a base backup whose WAL is missing."""
    assert find_window(find_spans([], the_wal(*pieces(1, 2)))) is None
    assert find_window(find_spans([a_base(3, 2.5)], the_wal(*pieces(1, 2, 4)))) is None


def test_base_with_the_least_wal_is_chosen() -> None:
    """The newest base backup before the moment."""
    spans = find_spans([a_base(1, 0.5), a_base(4, 3.5)], the_wal(*pieces(1, 2, 3, 4, 5)))
    before, after = choose_span(spans, at(3)), choose_span(spans, at(4))
    assert before
    assert after
    assert (before.base.name, after.base.name) == ("base_1", "base_4")
    assert choose_span(spans, at(6)) is None
    assert choose_span(spans, at(0)) is None


def test_window_goes_on_over_a_promotion() -> None:
    """WAL that goes on upon a new timeline, from where the old one was left, has no gap."""
    switch = 3 * SEGMENT + 500
    wal = the_wal(*pieces(1, 2), *pieces(3, 4, timeline=2), histories={2: ((1, switch),)}, created={2: at(2.9)})
    window = find_window(find_spans([a_base(1, 0.5)], wal))
    assert window
    assert (window.end, window.gaps) == (at(4), ())


def test_moment_is_looked_for_on_the_timeline_that_was_live() -> None:
    """What was written before a recovery to an earlier moment, and lost by it, can still be gone back to."""
    switch = 2 * SEGMENT + 500  # recovered to minute 2, at minute 5
    wal = the_wal(
        *pieces(1, 2, 3, 4),
        *(Piece(segment=Segment(2, number), covered=at(number + 4), is_complete=True) for number in (2, 3)),
        histories={2: ((1, switch),)},
        created={2: at(5)},
    )
    spans = find_spans([a_base(1, 0.5)], wal)
    then, now = choose_span(spans, at(3.5)), choose_span(spans, at(6.5))
    assert then
    assert now
    assert (then.timeline, now.timeline) == (1, 2)


def test_wal_stays_with_its_base() -> None:
    """Only what lies before the oldest base backup is not needed; without one, everything may be."""
    wal = the_wal(*pieces(1, 2, 3, 4))
    assert unneeded([a_base(3, 2.5), a_base(4, 3.5)], wal) == {Segment(1, 1), Segment(1, 2)}
    assert unneeded([], wal) == frozenset()


def test_many_bases_are_found_as_each_alone() -> None:
    """Base backups that share WAL, across timelines and missing segments, have the spans that each has by itself."""
    found = 0
    for seed in range(300):
        choice = Random(seed)
        numbers = [number for number in range(1, 30) if choice.random() < 0.93]
        branch = choice.randrange(5, 25)
        old = [replace(one, is_complete=choice.random() < 0.97) for one in pieces(*numbers)]
        new = [one for one in pieces(*numbers, timeline=2) if one.segment.number >= branch]
        histories = {2: ((1, branch * SEGMENT + choice.choice([0, 100])),)}
        wal = the_wal(*old, *choice.sample(new, choice.randrange(len(new) + 1)), histories=histories)
        bases = [a_base(number, number - 0.5, choice.choice([1, 1, 2])) for number in choice.sample(range(1, 30), 6)]
        alone = [span for base in bases for span in find_spans([base], wal)]
        assert find_spans(bases, wal) == tuple(sorted(alone, key=lambda span: (span.start, span.timeline)))
        found += len(alone)
    assert found > 300


def test_each_segment_is_looked_at_once() -> None:
    """However many base backups it follows: a year of WAL with a base backup each day is found in a moment."""
    wal = the_wal(*pieces(*range(1, 20_000)))
    bases = [a_base(number, number - 0.5) for number in range(1, 20_000, 40)]
    started = time.process_time()
    assert len(find_spans(bases, wal)) == 500
    assert time.process_time() - started < 3
