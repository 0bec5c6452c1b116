"""Waiting for what other processes do."""

from __future__ import annotations

import time
from pathlib import Path


def ends_soon(pid: int) -> bool:
    """Wait up to ten seconds for a process, of whatever parent, to be gone or a zombie."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state in "ZX":
            return True
        time.sleep(0.02)
    return False
