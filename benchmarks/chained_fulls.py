"""Compares chained full backups with complete ones, and measures the restore of a chain over very many files.

    tools/benchmark.sh chained-fulls [--files N] [--changed N] [--megabytes N] [--days N] [--rounds N]
    tools/benchmark.sh chained-fulls --scale [--files N]

The first command makes uploads and a database, and prints the time of a complete full backup and of a chained one after
changes, then the disk space of a month of daily backups of each kind. The second makes a chain over a tree of tiny
files, and prints the time of its restore next to `tar xf` of an uncompressed tar of the tree, and its memory.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from statistics import median
from typing import TYPE_CHECKING, Final

from benchmarks.data import Content, DataSet, provide
from benchmarks.database import Database, serving
from benchmarks.measure import Command, run
from benchmarks.uploads import make_tree
from portal.ops.backup.job import BackupConfig, BackupJob

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from portal.ops.backup.job import BackupResult

_TOOLS: Final = Path(__file__).resolve().parents[1] / "tools"
_WEEK: Final = 7
_FILE_BYTES: Final = 4_500


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Uploads, a database, and the placeholders for commands."""

    home: Path
    words: dict[str, str]

    @property
    def uploads(self) -> Path:
        """The uploads."""
        return self.home / "uploads"

    def environ(self, archives: Path, mode: str) -> dict[str, str]:
        """The environment of commands."""
        return {
            "BACKUP_LOCAL_PATH": str(archives),
            "PORTAL_UPLOAD_DIR": str(self.uploads),
            "BACKUP_FULL_UPLOADS": mode,
            "BACKUP_SCHEDULE_COMPLETE": "off",
            "BACKUP_SCHEDULE_PRUNE": "off",
            "BACKUP_PG_BIN_DIR": self.words["pg_bin"],
            "DD_DATABASE_HOST": self.words["host"],
            "DD_DATABASE_PORT": self.words["port"],
            "DD_DATABASE_NAME": self.words["name"],
            "DD_DATABASE_USER": self.words["user"],
            "DD_DATABASE_PASSWORD": self.words["password"],
        }

    def full(self, archives: Path, mode: str) -> float:
        """Make a full backup by the command; return the seconds."""
        command = Command(argv=(str(_TOOLS / "backup.sh"), "full", "--local"), env=self.environ(archives, mode))
        return run(command).wall

    def change(self, random: Random, count: int) -> None:
        """Rewrite some files."""
        files = sorted(self.uploads.rglob("*.json"))
        for path in random.sample(files, count):
            path.write_bytes(random.randbytes(_FILE_BYTES // 4).hex().encode())


def main() -> int:
    """Make the data, back it up, and print the figures."""
    parser = argparse.ArgumentParser(prog="tools/benchmark.sh chained-fulls", description="Measure chained backups.")
    parser.add_argument("--files", type=int, help="files in the tree (default: 40000; 1000000 with --scale)")
    parser.add_argument("--changed", type=int, default=40, help="of which change (default: %(default)s)")
    parser.add_argument("--megabytes", type=int, default=40, help="of the database (default: %(default)s)")
    parser.add_argument("--days", type=int, default=30, help="days of daily backups; 0: none (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is timed (default: %(default)s)")
    parser.add_argument("--scale", action="store_true", help="restore a chain over very many tiny files")
    parser.add_argument("--directory", type=Path, help="where to work (default: a temporary directory)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chained-", dir=arguments.directory) as directory:
        if arguments.scale:
            _restore_at_scale(Path(directory), arguments.files or 1_000_000)
        else:
            _compare_fulls(Path(directory), arguments.files or 40_000, arguments)
    return 0


def _compare_fulls(home: Path, files: int, arguments: argparse.Namespace) -> None:
    data = DataSet(content=Content.REPORTS, files=files, size=files * _FILE_BYTES, tenants=16)
    with serving(Database(megabytes=arguments.megabytes)) as words:
        bench = Bench(home=home, words=words)
        shutil.copytree(provide(data, home / "cache"), bench.uploads)
        random = Random(1)  # noqa: S311 - it makes data
        bench.full(home / "chain", "chain")
        complete, chained = [], []
        for _ in range(arguments.rounds):
            complete.append(bench.full(home / "complete", "complete"))
            bench.change(random, arguments.changed)
            time.sleep(2.1)  # files younger than the clock's granularity would be read again
            chained.append(bench.full(home / "chain", "chain"))
        ratio = median(complete) / median(chained)
        _tell(f"{files:,} files, {arguments.changed} changed, database of {arguments.megabytes} MB")
        _tell(f"complete {_seconds(complete)}, chained {_seconds(chained)}: {ratio:.1f} times as fast (wanted: 5)")
        if arguments.days:
            _month(bench, arguments.days, arguments.changed)


def _month(bench: Bench, days: int, changed: int) -> None:
    """Print the disk space of daily backups; one a week is complete."""
    random = Random(2)  # noqa: S311 - it makes data
    sizes = []
    complete = 0
    month = bench.home / "month"
    for day in range(days):
        bench.change(random, changed)
        job = _job(bench, month, complete=day % _WEEK == 0)
        result = _checked(job.backup_full(complete=day % _WEEK == 0))
        sizes.append(result.size_bytes)
        complete = result.size_bytes if day % _WEEK == 0 else complete
    ratio = complete * days / sum(sizes)
    _tell(
        f"{days} days: complete each day {complete * days / 1e6:,.0f} MB, chained with a complete one each week "
        f"{sum(sizes) / 1e6:,.0f} MB: {ratio:.1f} times less (wanted: 8)"
    )


def _job(bench: Bench, archives: Path, *, complete: bool) -> BackupJob:
    words = bench.words
    config = BackupConfig(
        local_path=archives,
        db_host=words["host"],
        db_port=int(words["port"]),
        db_name=words["name"],
        db_user=words["user"],
        db_password=words["password"],
        media_path=bench.uploads,
        pg_bin_dir=words["pg_bin"],
        full_uploads="complete" if complete else "chain",
    )
    return BackupJob(config)


def _restore_at_scale(home: Path, files: int) -> None:
    uploads, archives = home / "uploads", home / "archives"
    make_tree(uploads, files)
    job = BackupJob(BackupConfig(local_path=archives, media_path=uploads))
    _timed("base", lambda: job.backup_media(moment=datetime.now(UTC) - timedelta(minutes=1)))
    for path in list(_first(uploads, 200)):
        path.write_bytes(b'{"results": [1]}')
    last = _timed("incremental", lambda: job.backup_media(incremental=True))
    _timed("incremental, nothing changed", lambda: job.backup_media(incremental=True))
    plain = home / "tree.tar"
    run(Command(argv=("tar", "cf", str(plain), "-C", str(uploads), ".")))
    shutil.rmtree(uploads)
    by_tar = home / "by-tar"
    by_tar.mkdir()
    reference = run(Command(argv=("tar", "xf", str(plain), "-C", str(by_tar)))).wall
    shutil.rmtree(by_tar)
    restore = Command(
        argv=(str(_TOOLS / "restore.sh"), last.backup_id, "--media-only", "--force", "--local"),
        env={"BACKUP_LOCAL_PATH": str(archives), "PORTAL_UPLOAD_DIR": str(home / "restored")},
    )
    (home / "restored").mkdir()
    measured = run(restore, watches_memory=True)
    peak = measured.peak.pss / 1e6 if measured.peak else 0
    _tell(
        f"{files:,} files: tar xf {reference:.1f} s, restore of the chain {measured.wall:.1f} s "
        f"({measured.cpu:.1f} s of CPU), {measured.wall / reference:.2f} times as long (wanted: 1.2), "
        f"peak {peak:.0f} MB (wanted: 250)"
    )


def _timed(name: str, work: Callable[[], BackupResult]) -> BackupResult:
    started = time.monotonic()
    result = _checked(work())
    _tell(f"{name}: {time.monotonic() - started:.2f} s")
    return result


def _first(root: Path, count: int) -> Iterator[Path]:
    for directory, _, names in os.walk(root):
        for name in names:
            if count == 0:
                return
            count -= 1
            yield Path(directory, name)


def _checked(result: BackupResult) -> BackupResult:
    if not result.success:
        sys.exit(result.error)
    return result


def _seconds(values: list[float]) -> str:
    return f"{median(values):.2f} s ({min(values):.2f} - {max(values):.2f})"


def _tell(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
