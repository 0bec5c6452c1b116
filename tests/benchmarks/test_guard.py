"""The guard against lost speed: what counts as a loss, and that nothing passes because it was not measured."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from benchmarks.case import OURS, Case, Contender
from benchmarks.data import Content, DataSet
from benchmarks.guard import RELEASE, Release, comparison, guarded_cases, losses, measure, read_release
from benchmarks.measure import Command
from benchmarks.rounds import Workshop

if TYPE_CHECKING:
    from pathlib import Path


def case_of(ours: str, peer: str) -> Case:
    contenders = tuple(
        Contender(name=name, run=Command(argv=(sys.executable, "-c", code)), output="*.out")
        for name, code in ((OURS, ours), ("peer", peer))
    )
    data = DataSet(content=Content.SARIF, files=1, size=1_000)
    return Case(name="tiny", title="a case", data=data, contenders=contenders, guard="peer")


def test_a_tenth_is_no_loss_and_more_is_one() -> None:
    """Up to a tenth is what measuring is uncertain about."""
    assert losses({"sarif:time": 1.0}, {"sarif:time": 1.1}) == []
    assert losses({"sarif:time": 1.0}, {"sarif:time": 1.11}) == ["sarif:time"]


def test_what_was_not_measured_is_a_loss() -> None:
    """A case that is left out does not pass."""
    assert losses({"sarif:time": 1.0}, {}) == ["sarif:time"]


def test_the_comparison_names_what_is_lost() -> None:
    """The table has both ratios and the verdict."""
    release = Release(version="1.0", measured_on="here", ratios={"a:time": 1.0, "b:size": 1.0})
    rows = comparison(release, {"a:time": 1.5, "b:size": 1.0}).rows
    assert rows == (("a:time", "1.00", "1.50", "LOST"), ("b:size", "1.00", "1.00", "ok"))


def test_ratios_are_ours_by_the_reference(tmp_path: Path) -> None:
    """A size of 50 against 100 is 0.5."""
    ours, peer = (f"open('{{out}}/x.out', 'w').write('1' * {size})" for size in (50, 100))
    found = measure([case_of(ours, peer)], Workshop(directory=tmp_path, rounds=1, tell=lambda _: None))
    assert found["tiny:size"] == 0.5
    assert found["tiny:time"] > 0


def test_a_program_that_fails_ends_the_guard(tmp_path: Path) -> None:
    """What cannot be compared is an error, and not a success."""
    with pytest.raises(SystemExit, match="tiny cannot be compared: ours: failed"):
        measure([case_of("raise ValueError", "")], Workshop(directory=tmp_path, rounds=1, tell=lambda _: None))


def test_a_file_without_ratios_ends_the_guard(tmp_path: Path) -> None:
    """A file that lost its figures would let everything pass."""
    (tmp_path / "release.json").write_text('{"version": "1.0", "measured_on": "", "ratios": {}}')
    with pytest.raises(SystemExit, match="has no ratios"):
        read_release(tmp_path / "release.json")


def test_what_the_release_has_is_measured() -> None:
    """Every recorded ratio is one of a guarded case: otherwise it would be a loss for ever."""
    cases = guarded_cases()
    assert {name.partition(":")[0] for name in read_release(RELEASE).ratios} <= {case.name for case in cases}
    assert all(len(case.contenders) == 2 for case in cases)


def test_a_ratio_that_is_new_is_shown_as_such() -> None:
    """A case that came after the release cannot be lost, and nobody takes it for compared."""
    release = Release(version="1.0", measured_on="here", ratios={"a:time": 1.0})
    assert comparison(release, {"a:time": 1.0, "b:time": 2.0}).rows[1] == ("b:time", "-", "2.00", "not recorded")
