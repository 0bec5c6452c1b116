"""Signs of life: what is written, and what is said of one that is old, of another clock, or none at all."""

from __future__ import annotations

import errno
import json
import os
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from beat.heartbeat import INTERVAL_SECONDS, Heartbeat

NOW = datetime(2026, 11, 22, 9, 10, tzinfo=UTC)


@pytest.fixture
def heart(tmp_path: Path) -> Heartbeat:
    return Heartbeat(tmp_path / ".beat.json")


def test_a_sign_of_life_says_who_lives_and_what_it_does(heart: Heartbeat) -> None:
    """It replaces the one before, and nothing else is left."""
    heart.beat(NOW - timedelta(days=1), next={}, old=True)
    heart.beat(NOW, next={"full": "x"}, broker_away=False)
    expected = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "moment": "2026-11-22T09:10:00Z",
        "next": {"full": "x"},
        "broker_away": False,
    }
    assert json.loads(heart.path.read_text()) == heart.read() == expected
    assert heart.path.read_bytes().endswith(b"}\n")
    assert [path.name for path in heart.path.parent.iterdir()] == [".beat.json"]
    health = heart.health("beat", NOW)
    assert (health.is_well, health.message, health.facts) == (
        True,
        f"the beat lives (process {os.getpid()})",
        expected,
    )


@pytest.mark.parametrize(
    ("age", "is_well"),
    [
        (timedelta(seconds=5 * INTERVAL_SECONDS), True),
        (timedelta(seconds=5 * INTERVAL_SECONDS + 1), False),
        (timedelta(minutes=-5), True),
        (timedelta(minutes=-5, seconds=-1), False),
    ],
)
def test_a_sign_of_life_is_one_for_a_hundred_seconds(heart: Heartbeat, age: timedelta, is_well: bool) -> None:
    """By clocks that differ by five minutes."""
    heart.beat(NOW - age)
    health = heart.health("beat", NOW)
    assert health.is_well is is_well
    assert is_well or health.message == f"the last sign of life of the beat is of {NOW - age}"
    assert health.facts["pid"] == os.getpid()


@pytest.mark.parametrize(("facts", "is_well"), [({"ready": False}, False), ({"ready": True}, True), ({}, True)])
def test_a_process_that_waits_is_not_well(heart: Heartbeat, facts: dict[str, Any], is_well: bool) -> None:
    """It says what for."""
    heart.beat(NOW, waits_for="the uploads", **facts)
    health = heart.health("watcher", NOW)
    assert health.is_well is is_well
    assert is_well or health.message == "the watcher waits: the uploads"
    assert health.facts["waits_for"] == "the uploads"


@pytest.mark.parametrize("text", ["", "7", "[]", "{}", '{"moment": 7}', '{"moment": "x"}', "[" * 100_000, "\udcff"])
def test_what_makes_no_sense_is_no_sign_of_life(heart: Heartbeat, text: str) -> None:
    """Nor is a time without a zone."""
    heart.path.write_text(text, errors="surrogateescape")
    health = heart.health("beat", NOW)
    assert (health.is_well, health.message, health.facts) == (
        False,
        f"there is no sign of life of the beat in {heart.path}",
        {},
    )
    assert heart.read() == (json.loads(text) if text.startswith("{") else {})
    heart.path.write_text('{"moment": "2026-11-22T09:10:00"}')
    assert not heart.health("beat", NOW).is_well
    heart.path.unlink()
    assert heart.read() == {}
    assert heart.health("beat", NOW).facts == {}


def test_one_that_cannot_be_begun_is_told_as_it_is(heart: Heartbeat, monkeypatch: pytest.MonkeyPatch) -> None:
    """That there is nothing to clean up hides no full disk."""

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(OSError, match="No space left on device"):
        heart.beat(NOW)


def test_one_that_cannot_be_written_leaves_nothing(heart: Heartbeat) -> None:
    """And the error is the caller's to tell."""
    heart.path.mkdir()
    with pytest.raises(OSError, match="beat"):
        heart.beat(NOW)
    assert [path.name for path in heart.path.parent.iterdir()] == [".beat.json"]
    with pytest.raises(TypeError):
        heart.beat(NOW, fact=object())
