"""Waits for an embedded server's start, and ends its process."""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING, Final

from portal.ops.errors import ConfigurationError

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from pathlib import Path

_POLL_SECONDS: Final = 0.02
_STOP_SECONDS: Final = 10
_SHOWN_CHARACTERS: Final = 2000


def wait_until_ready(
    process: subprocess.Popen[bytes], answers: Callable[[], bool], *, name: str, log: Path, seconds: float
) -> None:
    """Wait until a server answers.

    Arguments:
        answers: returns whether the server answers.
        name: the server's name for the error.
        log: the server's log file.

    Raises:
        ConfigurationError: it ended, or did not answer in time.
    """
    deadline = time.monotonic() + seconds
    while not answers():
        if time.monotonic() > deadline or process.poll() is not None:
            text = log.read_text(errors="replace")[-_SHOWN_CHARACTERS:].strip()
            raise ConfigurationError(f"{name} did not start: {text}")
        time.sleep(_POLL_SECONDS)


def end(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to a server and wait for its end; kill it if it does not end."""
    process.send_signal(number)
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
