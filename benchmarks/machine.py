"""What a benchmark ran on: without it, its seconds mean nothing."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from benchmarks.measure import Command, CommandFailedError, run

VERSIONS = {
    "tar": ("tar", "--version"),
    "gzip": ("gzip", "--version"),
    "pigz": ("pigz", "--version"),
    "zstd": ("zstd", "-qV"),
    "restic": ("restic", "version"),
    "borg": ("borg", "--version"),
}


def machine_line() -> str:
    """Return cores, processor, memory, kernel and load in a line."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    load, *_ = os.getloadavg()
    return (
        f"{len(os.sched_getaffinity(0))} cores, {_processor()}, {memory / 1e9:.0f} GB of memory, "
        f"Linux {platform.release()}, load {load:.1f} at the start"
    )


def versions_line() -> str:
    """Return the versions of Python and of each peer in a line."""
    peers = (f"{name} {_version(argv)}" for name, argv in VERSIONS.items())
    return ", ".join((f"Python {platform.python_version()}", *peers))


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(argv: tuple[str, ...]) -> str:
    """Return the first word of a program's version message that begins with a digit, some write a v before it."""
    try:
        words = run(Command(argv=argv)).stdout.split()
    except CommandFailedError:
        return "not installed"
    numbers = (word.removeprefix("v").rstrip(",") for word in words)
    return next((word for word in numbers if word[:1].isdigit()), "unknown")
