"""Records in the types of JSON and back: nothing is guessed."""

from __future__ import annotations

import json
from collections.abc import Mapping  # noqa: TC003  (read at run time)
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from portal.ops.codec import decode, encode
from portal.ops.model import BackupType

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Inner:
    """A record in a record."""

    count: int


class Point(NamedTuple):
    """A named tuple: a list in JSON."""

    size: int
    name: str


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A record with a field of every kind."""

    name: str
    moment: datetime
    kind: BackupType
    inner: Inner
    seconds: float = 0.0
    flag: bool = False
    words: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    over: datetime | None = None
    place: Path | None = None
    points: list[Point] = field(default_factory=list)


SAMPLE = Sample(
    name="a",
    moment=NOON,
    kind=BackupType.MEDIA,
    inner=Inner(count=1),
    words=("b", "c"),
    facts={"d": [1]},
    over=NOON,
    place=Path("/srv/media"),
    points=[Point(1, "e"), Point(2, "f")],
)


def test_what_was_encoded_comes_back() -> None:
    """By way of JSON's own types alone."""
    assert decode(Sample, json.loads(json.dumps(encode(SAMPLE)))) == SAMPLE


def test_what_has_a_default_may_be_missing() -> None:
    """Records of earlier releases have fewer keys."""
    facts = {"name": "a", "moment": NOON.isoformat(), "kind": "media", "inner": {"count": 1}}
    assert decode(Sample, facts) == Sample(name="a", moment=NOON, kind=BackupType.MEDIA, inner=Inner(count=1))


def test_keys_beside_the_fields_are_named() -> None:
    """The version of a format is no field."""
    facts = {**encode(SAMPLE), "version": 1}
    assert decode(Sample, facts, beside=frozenset(["version"])) == SAMPLE
    with pytest.raises(ValueError, match="unknown: version"):
        decode(Sample, facts)


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": 1},
        {"name": None},
        {"moment": "2026-11-22T12:00:00"},
        {"moment": 3},
        {"kind": "other"},
        {"inner": {"count": "1"}},
        {"inner": {"count": True}},
        {"inner": {}},
        {"inner": []},
        {"words": "bc"},
        {"words": [1]},
        {"facts": []},
        {"flag": 1},
        {"over": ""},
        {"place": 1},
        {"points": [[1]]},
        {"points": [["1", "e"]]},
    ],
)
def test_values_of_another_type_are_refused(wrong: dict[str, Any]) -> None:
    """Nothing is made to fit."""
    with pytest.raises(ValueError, match=r"\w"):
        decode(Sample, encode(SAMPLE) | wrong)


@pytest.mark.parametrize("seconds", [3, 0, 2.5])
def test_a_whole_number_is_a_number(seconds: float) -> None:
    """JSON has one kind of them; what is true or false is none."""
    assert decode(Sample, encode(SAMPLE) | {"seconds": seconds}).seconds == seconds
    for wrong in (True, "3", None):
        with pytest.raises(ValueError, match="is no float"):
            decode(Sample, encode(SAMPLE) | {"seconds": wrong})


@dataclass(frozen=True, kw_only=True)
class Strange:
    """A record with a field that JSON has no type for."""

    value: complex


def test_a_field_of_a_type_of_its_own_is_a_mistake_of_the_program() -> None:
    """It is named, and not taken for a damaged file."""
    with pytest.raises(TypeError, match="no record has a field of <class 'complex'>"):
        decode(Strange, {"value": 1})
