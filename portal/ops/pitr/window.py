"""The recovery window: the moments to which the database can be recovered, and from what. This module is pure.

A base backup and all WAL after it, without a missing segment, make a span of moments. It begins when the copy of the
cluster was complete, and ends with the last moment whose commits are all in the WAL. The window is the union of all
spans; between two spans there is a gap. Moments are those of the server's clock.

If a server was promoted, or recovered to an earlier moment, its WAL continues on a new timeline. A moment is searched
for on the timeline that was live then.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from portal.ops.pitr.lsn import Segment

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

_NO_END: Final = 1 << 63


@dataclass(frozen=True, kw_only=True)
class Base:
    """A base backup.

    Arguments:
        name: the archive.
        start_lsn: the position at which a recovery starts.
        ended: the earliest moment it can be recovered to.
    """

    name: str
    timeline: int
    start_lsn: int
    end_lsn: int
    ended: datetime


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A segment that we have, complete or in part.

    Arguments:
        covered: every transaction committed up to this moment is in it or in earlier WAL; None if unknown.
        is_complete: whether the next segment can follow it.
    """

    segment: Segment
    covered: datetime | None
    is_complete: bool


@dataclass(frozen=True, kw_only=True)
class Wal:
    """The available WAL.

    Arguments:
        pieces: every segment.
        histories: the ancestors of each timeline, oldest first, with the position at which the next one branched off.
        created: when each timeline began, if known.
    """

    segment_bytes: int
    pieces: Sequence[Piece]
    histories: Mapping[int, Sequence[tuple[int, int]]] = field(default_factory=dict)
    created: Mapping[int, datetime] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Span:
    """The moments reachable from one base backup with the WAL after it.

    Arguments:
        timeline: the timeline at the end of the WAL.
        segments: the number of segments between base and end.
        live: when its timeline became the live one; None for always.
    """

    base: Base
    timeline: int
    start: datetime
    end: datetime
    segments: int
    live: datetime | None = None

    def holds(self, moment: datetime) -> bool:
        """True if the moment can be recovered to from this base backup."""
        return self.start <= moment <= self.end


@dataclass(frozen=True, kw_only=True)
class Window:
    """All moments that can be recovered to.

    Arguments:
        gaps: the periods to which nothing can be recovered, oldest first.
    """

    start: datetime
    end: datetime
    gaps: tuple[tuple[datetime, datetime], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The window in the types of JSON."""
        return {
            "from": _text(self.start),
            "to": _text(self.end),
            "gaps": [{"from": _text(start), "to": _text(end)} for start, end in self.gaps],
        }

    def __str__(self) -> str:
        gaps = "".join(f", except {_text(start)} to {_text(end)}" for start, end in self.gaps)
        return f"{_text(self.start)} to {_text(self.end)}{gaps}"


def find_spans(bases: Iterable[Base], wal: Wal) -> tuple[Span, ...]:
    """The span of each base backup on each timeline that its WAL reaches, oldest first."""
    pieces = {(piece.segment, piece.is_complete): piece for piece in wal.pieces}
    timelines = {piece.segment.timeline for piece in wal.pieces} | set(wal.histories)
    reaches: _Reaches = {}
    spans = []
    for base in sorted(bases, key=lambda base: base.start_lsn, reverse=True):
        for timeline in sorted(timelines | {base.timeline}):
            path = _path(base, timeline, wal.histories)
            if path and (span := _span(base, path, _reach(base, path, pieces, wal.segment_bytes, reaches), wal)):
                spans.append(span)
    return tuple(sorted(spans, key=lambda span: (span.start, span.timeline)))


def find_window(spans: Sequence[Span]) -> Window | None:
    """The union of all spans, or None if there are none."""
    merged: list[tuple[datetime, datetime]] = []
    for span in sorted(spans, key=lambda span: span.start):
        if merged and span.start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], span.end)
        else:
            merged.append((span.start, span.end))
    if not merged:
        return None
    gaps = tuple((one[1], other[0]) for one, other in itertools.pairwise(merged))
    return Window(start=merged[0][0], end=merged[-1][1], gaps=gaps)


def choose_span(spans: Sequence[Span], moment: datetime | None) -> Span | None:
    """The span to recover from: on the timeline live at the moment, with the least WAL to replay; or None.

    Arguments:
        moment: the target; None for the latest possible one.
    """
    if moment is None:
        return max(spans, key=lambda span: (span.end, span.timeline, span.start), default=None)
    fitting = [span for span in spans if span.holds(moment)]
    lived = [span for span in fitting if span.live is None or span.live <= moment]
    return max(lived or fitting, key=lambda span: (span.timeline, span.start), default=None)


def segments_to(span: Span, wal: Wal, moment: datetime | None) -> tuple[Segment, ...]:
    """The segments that a recovery reads, in order, across timelines.

    Arguments:
        moment: the target; None for the latest possible one.
    """
    path = _path(span.base, span.timeline, wal.histories)
    assert path is not None  # the span was found along this path
    pieces = {(piece.segment, piece.is_complete): piece for piece in wal.pieces}
    found: list[Segment] = []
    for piece in _run(span.base.start_lsn // wal.segment_bytes, path, pieces, wal.segment_bytes):
        found.append(piece.segment)
        if moment is not None and piece.covered is not None and piece.covered >= moment:
            break
    return tuple(found)


def first_needed(bases: Iterable[Base]) -> int | None:
    """The earliest position that a recovery from any base backup reads, or None without base backups."""
    return min((base.start_lsn for base in bases), default=None)


def unneeded(bases: Sequence[Base], wal: Wal) -> frozenset[Segment]:
    """The segments older than every base backup, which no recovery needs.

    Without a base backup none is returned, since one may be under way.
    """
    first = first_needed(bases)
    if first is None:
        return frozenset()
    number = first // wal.segment_bytes
    return frozenset(piece.segment for piece in wal.pieces if piece.segment.number < number)


def _path(
    base: Base, timeline: int, histories: Mapping[int, Sequence[tuple[int, int]]]
) -> tuple[tuple[int, int], ...] | None:
    """The timelines from a base to a timeline, each with its end, or None if there is no such path."""
    path = (*histories.get(timeline, ()), (timeline, _NO_END))
    for at, (ancestor, end) in enumerate(path):
        if ancestor == base.timeline and base.end_lsn <= end:
            return tuple(path[at:])
    return None


class _Reach(NamedTuple):
    """The segments from one of them to the first missing one.

    Arguments:
        segments: how many they are.
        timeline: the timeline of the last one; None without any.
    """

    segments: int
    covered: datetime | None
    timeline: int | None


_Reaches = dict[tuple[tuple[int, int], ...], dict[int, _Reach]]
"""By path and number of a segment, the segments from there on."""


def _reach(
    base: Base,
    path: tuple[tuple[int, int], ...],
    pieces: Mapping[tuple[Segment, bool], Piece],
    segment_bytes: int,
    reaches: _Reaches,
) -> _Reach:
    """The segments after a base; those after a later base on the same path are not looked at again."""
    first = base.start_lsn // segment_bytes
    known = reaches.setdefault(path, {})
    later = min((number for number in known if number >= first), default=_NO_END)
    count, moments, timeline = 0, [], None
    for piece in _run(first, path, pieces, segment_bytes):
        if piece.segment.number == later:
            count, timeline = count + known[later].segments, known[later].timeline
            moments.append(known[later].covered)
            break
        count, timeline = count + 1, piece.segment.timeline
        moments.append(piece.covered)
    covered = max((moment for moment in moments if moment is not None), default=None)
    known[first] = _Reach(count, covered, timeline)
    return known[first]


def _span(base: Base, path: Sequence[tuple[int, int]], reach: _Reach, wal: Wal) -> Span | None:
    covered = max(base.ended, reach.covered or base.ended)
    reached = (base.start_lsn // wal.segment_bytes + reach.segments) * wal.segment_bytes
    if reached < base.end_lsn or (reach.timeline or base.timeline) != path[-1][0] or covered == base.ended:
        return None
    timeline = path[-1][0]
    return Span(
        base=base,
        timeline=timeline,
        start=base.ended,
        end=covered,
        segments=reach.segments,
        live=wal.created.get(timeline) if timeline != base.timeline else None,
    )


def _run(
    number: int, path: Sequence[tuple[int, int]], pieces: Mapping[tuple[Segment, bool], Piece], segment_bytes: int
) -> Iterator[Piece]:
    """The segments from a number on, up to the first missing one."""
    while True:
        owner = next(timeline for timeline, end in path if end > number * segment_bytes)
        newest = _newest_in(path, number, segment_bytes)
        whole = next((pieces[key] for one in (newest, owner) if (key := (Segment(one, number), True)) in pieces), None)
        if whole and whole.segment.timeline == newest:
            yield whole
            number += 1
            continue
        if part := pieces.get((Segment(newest, number), False)) or whole or pieces.get((Segment(owner, number), False)):
            yield part
        return


def _newest_in(path: Sequence[tuple[int, int]], number: int, segment_bytes: int) -> int:
    """The last timeline that has a complete file of a segment: it begins before the segment's end."""
    begins = [0, *(end for _, end in path[:-1])]
    return max(
        timeline for (timeline, _), begin in zip(path, begins, strict=True) if begin < (number + 1) * segment_bytes
    )


def _text(moment: datetime) -> str:
    return moment.isoformat(sep=" ", timespec="seconds")
