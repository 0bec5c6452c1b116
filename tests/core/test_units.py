"""Durations and the reasons of the operating system have one form in every message."""

from __future__ import annotations

import errno
import os
import re
from typing import Final

import pytest

from portal.ops.units import exact_duration, first_line, system_reason
from tests.support.commands import ROOT

_LOCAL: Final = re.compile(r":\.\d?f\} s\b|\berror\.strerror\}|strerror or")
_EXEMPT: Final = frozenset(
    {
        "portal/ops/units.py",  # the one place
        "portal/ops/runtime/launcher.py",  # imports nothing, so that it starts quickly
        "portal/ops/runtime/logs.py",  # a column
        "tools/terminal/progress.py",  # a column
    }
)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.9, "59.9 s"), (59.96, "1:00 min"), (129, "2:09 min")]
)
def test_an_exact_duration_has_tenths_below_a_minute(seconds: float, text: str) -> None:
    """Longer ones are told to the second."""
    assert exact_duration(seconds) == text


def test_a_reason_continues_a_sentence() -> None:
    """It starts with a small letter, and without a text it names the error."""
    assert system_reason(OSError(errno.EACCES, os.strerror(errno.EACCES))) == "permission denied"
    assert system_reason(OSError("a text")) == "a text"
    assert system_reason(TimeoutError()) == "TimeoutError"


@pytest.mark.parametrize(
    ("said", "line"),
    [("one\ntwo", "one"), ("\n \n  FATAL: x \n", "FATAL: x"), ("", "it says nothing"), ("\n", "it says nothing")],
)
def test_of_what_others_say_there_is_always_a_line(said: str, line: str) -> None:
    """A server that says nothing, or begins with an empty line, makes no error of ours."""
    assert first_line(said) == line


def test_no_module_takes_the_first_line_by_its_place() -> None:
    """There may be none: text from outside can be empty."""
    sources = [path for room in ("portal", "worker", "beat", "tools") for path in ROOT.joinpath(room).rglob("*.py")]
    assert [path.name for path in sources if re.search(r"splitlines\(\)\[(0|-1)\]", path.read_text())] == []


def test_no_module_has_a_format_of_its_own() -> None:
    """Seconds and reasons of the operating system are formatted by `units` alone."""
    sources = (path for part in ("portal", "worker", "beat", "tools") for path in (ROOT / part).rglob("*.py"))
    own = {str(path.relative_to(ROOT)) for path in sources if _LOCAL.search(path.read_text("utf-8"))}
    assert own - _EXEMPT == set()
