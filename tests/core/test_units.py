"""Durations and the reasons of the operating system have one form in every message."""

from __future__ import annotations

import errno
import os
import re
from typing import Final

import pytest

from portal.ops.units import exact_duration, system_reason
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


def test_no_module_has_a_format_of_its_own() -> None:
    """Seconds and reasons of the operating system are formatted by `units` alone."""
    sources = (path for part in ("portal", "worker", "beat", "tools") for path in (ROOT / part).rglob("*.py"))
    own = {str(path.relative_to(ROOT)) for path in sources if _LOCAL.search(path.read_text("utf-8"))}
    assert own - _EXEMPT == set()
