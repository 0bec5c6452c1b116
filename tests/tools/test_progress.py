"""The bar: what it says from the first instant on, and when it says how long the rest takes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.support.terminals import record
from tools.terminal.progress import Pace

ROOT = Path(__file__).resolve().parents[2]
MB = 1_000_000


def paced(*steps: tuple[float, int]) -> Pace:
    """The pace after bytes that were done at moments, in seconds."""
    pace = Pace()
    for now, done in steps:
        pace.note(done, now)
    return pace


class TestPace:
    def test_nothing_is_known_at_first(self) -> None:
        """One observation is no rate."""
        pace = paced((0, 0), (100, 5))
        assert (pace.rate, pace.seconds_left(1000 * MB)) == (None, None)

    def test_no_estimate_before_there_is_a_basis(self) -> None:
        """The rate of the first instants says nothing about the whole."""
        assert paced((0, 0), (1, 10), (1.5, 20)).seconds_left(1000 * MB) is None

    def test_waiting_is_not_slowness(self) -> None:
        """A minute in the queue does not count: the rate is observed from the first byte on."""
        pace = paced((0, 0), (60, 0), (60.1, MB), (62.1, 21 * MB))
        assert pace.rate == pytest.approx(10 * MB)
        assert pace.seconds_left(121 * MB) == pytest.approx(10)

    def test_each_part_has_a_rate_of_its_own(self) -> None:
        """Where the count begins anew, so does the rate."""
        pace = paced((0, 1), (10, 1000 * MB), (11, 1), (14, 30 * MB + 1))
        assert pace.rate == pytest.approx(10 * MB)


@pytest.mark.parametrize("columns", [80, 200])
def test_the_bar_on_a_terminal(columns: int) -> None:
    """It fits, says no time in its first instants, and a plausible one later."""
    code = f"""
from types import SimpleNamespace
from portal.ops.runtime.progress import Step
from tools.terminal import progress
now = 0.0
progress.time = SimpleNamespace(monotonic=lambda: now)
bar = progress.Bar(None)
while now < 3:
    bar(Step(phase="media", done=int(now * {MB}), expect=lambda: {10 * MB}))
    now += 0.05
"""
    session = record(["env", "-C", str(ROOT), sys.executable, "-c", code], {}, columns=columns)
    drawn = [line for line in session.raw.split("\r\x1b[K") if line]
    assert max(map(len, drawn)) < columns
    estimated = [re.search(r"(\d+) s left", line) for line in drawn]
    assert not any(estimated[:15])
    assert all(6 <= int(found[1]) <= 8 for found in estimated if found)
    assert estimated[-1]
