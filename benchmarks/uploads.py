"""Measures how long an upload is unprotected in a tree of very many files, and the cost of watching.

    tools/benchmark.sh uploads [--files N] [--uploads N] [--directory DIR]

It makes the tree, a Redis, a worker and the watcher, backs the tree up, then uploads files one by one, and waits until
each is in an archive. It prints the time from a file's close to its archive, and the watcher's memory.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Final

from demo.service import Service, own_environment
from portal.ops.archive.reader import ArchiveReader
from portal.ops.backup.job import BackupConfig, BackupJob

_PER_DIRECTORY: Final = 100
_REPORT: Final = b'{"results": []}'
_WAIT_SECONDS: Final = 120.0
_POLL_SECONDS: Final = 0.002


def main() -> int:
    """Make the tree, upload, and print the figures."""
    parser = argparse.ArgumentParser(
        prog="tools/benchmark.sh uploads", description="Measure how soon an upload is in an archive."
    )
    parser.add_argument("--files", type=int, default=1_000_000, help="how many there are before (default: %(default)s)")
    parser.add_argument("--uploads", type=int, default=10, help="how many come (default: %(default)s)")
    parser.add_argument("--directory", type=Path, help="where to make the tree (default: a temporary directory)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="uploads-", dir=arguments.directory) as directory:
        home = Path(directory)
        make_tree(home / "uploads", arguments.files)
        environ = {
            **own_environment(),
            "BACKUP_LOCAL_PATH": str(home / "backups"),
            "PORTAL_UPLOAD_DIR": str(home / "uploads"),
        }
        job = BackupJob(BackupConfig(local_path=home / "backups", media_path=home / "uploads"))
        started = time.monotonic()
        job.backup_media()
        _tell(f"base of {arguments.files:,} files: {time.monotonic() - started:.1f} s")
        with Service(environ=environ, directory=home) as service:
            service.start_worker()
            started = time.monotonic()
            service.start_watcher()
            service.wait_for_scan()
            _tell(f"watcher ready, and the first look at all files done: {time.monotonic() - started:.1f} s")
            seconds = [upload(home, number) for number in range(arguments.uploads)]
            _tell(f"watcher's memory: {service.resident_bytes('beat.watcher') / 1e6:.0f} MB")
        shown = f"{median(seconds):.2f} s ({min(seconds):.2f} - {max(seconds):.2f})"
        _tell(f"from the close of a file to its archive, with 2 s of quiet time: {shown}")
    return 0


def make_tree(root: Path, files: int) -> None:
    """Make small files, a hundred in each directory."""
    for number in range(files):
        directory = root / f"tenant-{number // (_PER_DIRECTORY * 100):04d}" / f"{number // _PER_DIRECTORY % 100:02d}"
        if number % _PER_DIRECTORY == 0:
            directory.mkdir(parents=True)
        descriptor = os.open(directory / f"report-{number:07d}.json", os.O_WRONLY | os.O_CREAT, 0o600)
        os.write(descriptor, _REPORT)
        os.close(descriptor)


def upload(home: Path, number: int) -> float:
    """Write one file; return the seconds from its close until an archive contains it."""
    name = f"tenant-0000/00/upload-{number}.sarif"
    known = set((home / "backups").glob("media_*.tar.gz"))
    (home / "uploads" / name).write_bytes(_REPORT)
    started = time.monotonic()
    while time.monotonic() - started < _WAIT_SECONDS:
        for path in set((home / "backups").glob("media_*.tar.gz")) - known:
            if ArchiveReader(path).find(f"media/{name}"):
                return time.monotonic() - started
            known.add(path)
        time.sleep(_POLL_SECONDS)
    raise TimeoutError(f"{name} is in no archive after {_WAIT_SECONDS:.0f} s")


def _tell(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
