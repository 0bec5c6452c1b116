"""A helper process whose parent is gone."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

from portal.ops.runtime.helper_process import start_helper
from tests.support.waiting import LONG_SECONDS

if TYPE_CHECKING:
    import pytest


def main() -> None:
    """What the helper of the test does: answer when it is asked, again and again."""
    while sys.stdin.buffer.read(1):
        sys.stdout.buffer.write(b"x" * 65536)
        sys.stdout.buffer.flush()


def test_it_ends_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    """Nobody reads its answer any more: it says nothing in the log of those who started it."""
    helper = start_helper(__name__)
    with helper.requests:
        helper.requests.write(b"1")
        helper.requests.flush()
        assert os.read(helper.answers.fileno(), 1) == b"x"
        helper.answers.close()
        helper.requests.write(b"2")
        helper.requests.flush()
        assert helper.process.wait(LONG_SECONDS) == -signal.SIGPIPE
    assert capfd.readouterr().err == ""
