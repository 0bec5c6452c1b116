"""The files to back up: data sets made from a seed, and kept for later runs.

A data set is a directory named after its parameters. It is made under a temporary name and renamed when it is complete,
so that an interrupted run leaves nothing that looks like data.
"""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import cycle
from random import Random
from typing import TYPE_CHECKING

from benchmarks.findings import finding_report, sarif_document

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REVISION = 1
"""Increased whenever the same parameters give other bytes."""
SPREAD = 0.5
"""Sigma of the log-normal distribution of file sizes."""
FIRST_MTIME = 1_704_067_200_000_000_000
TWO_YEARS = 63_072_000_000_000_000
"""Modification times begin at 2024-01-01 and cover two years; both in nanoseconds."""
FIRST_BLOCK = 4096
"""The bytes that make each copy of a file unique."""
CHUNK = 1 << 20


class Content(StrEnum):
    """The contents of a data set's files."""

    SARIF = "sarif"
    REPORTS = "json"
    RANDOM = "bin"


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Files of one kind under `<tenant>/<yyyy-mm>/`.

    Arguments:
        content: the contents; the value is also the suffix of the files.
        files: how many files.
        size: total bytes, reached to about one per cent.
        tenants: the number of tenants; each has a directory for every month of two years.
        seed: the same seed gives the same bytes.
    """

    content: Content
    files: int
    size: int
    tenants: int = 10
    seed: int = 1

    def scaled(self, scale: float) -> DataSet:
        """Return a set with `scale` times the files, each as large as before."""
        files = max(1, round(self.files * scale))
        return replace(self, files=files, size=round(self.size / self.files * files))

    def description(self) -> str:
        """Return size and number of files in words."""
        return f"{in_words(self.size)} in {self.files:,} files"

    def directory_name(self) -> str:
        """Return the directory's name, which these parameters alone have."""
        return f"{self.content.name.lower()}-{self.size}-{self.files}-{self.tenants}-{self.seed}-r{REVISION}"


@dataclass(frozen=True, kw_only=True)
class CopiedSet:
    """A large data set that is made quickly: distinct copies of other sets' files, and one large file.

    Arguments:
        sources: the sets whose files are copied, in turn.
        size: total bytes; a tenth of it is in the large file.
    """

    sources: tuple[DataSet, ...]
    size: int

    def scaled(self, scale: float) -> CopiedSet:
        """Return a set of `scale` times the size, from sources scaled alike."""
        sources = tuple(source.scaled(scale) for source in self.sources)
        return CopiedSet(sources=sources, size=round(self.size * scale))

    def description(self) -> str:
        """Return the size in words."""
        return in_words(self.size)

    def directory_name(self) -> str:
        """Return the directory's name, which these parameters alone have."""
        return "-".join(("copies", str(self.size), *(source.directory_name() for source in self.sources)))


@dataclass(frozen=True, kw_only=True)
class FilePlan:
    """A file to be made: its path below the set's directory, its seed, its size, and its time in nanoseconds."""

    path: str
    content: Content
    seed: str
    size: int
    mtime_ns: int


def provide(data: DataSet | CopiedSet, cache: Path) -> Path:
    """Return the directory of `data` below `cache`, made if necessary."""
    place = cache / data.directory_name()
    if place.is_dir():
        return place
    unfinished = cache / f".{place.name}.partial"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    if isinstance(data, CopiedSet):
        _make_copies(data, [provide(source, cache) for source in data.sources], unfinished)
    else:
        _make_files(data, unfinished)
    unfinished.rename(place)
    return place


def planned_files(data: DataSet) -> Iterator[FilePlan]:
    """Yield the plans of all files of `data`, by number."""
    random = _generator(f"{data.seed}")
    weights = [random.lognormvariate(0, SPREAD) for _ in range(data.files)]
    unit = data.size / sum(weights)
    for number, weight in enumerate(weights):
        tenant, month = random.randrange(data.tenants), random.randrange(24)
        name = f"scan-{number:05d}-{random.randbytes(4).hex()}.{data.content}"
        yield FilePlan(
            path=f"tenant-{tenant:02d}/{2024 + month // 12}-{month % 12 + 1:02d}/{name}",
            content=data.content,
            seed=f"{data.seed}/{number}",
            size=round(unit * weight),
            mtime_ns=FIRST_MTIME + random.randrange(TWO_YEARS),
        )


def content_of(plan: FilePlan) -> bytes:
    """Return the bytes of a planned file."""
    random = _generator(plan.seed)
    if plan.content is Content.RANDOM:
        return random.randbytes(plan.size)
    write = sarif_document if plan.content is Content.SARIF else finding_report
    return write(random, plan.size).encode()


def in_words(size: int) -> str:
    """Return a number of bytes for people."""
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


def files_below(directory: Path) -> list[Path]:
    """Return every file below `directory`, sorted by path."""
    return sorted(path for path in directory.rglob("*") if path.is_file())


def read_everything(directory: Path) -> int:
    """Read every file below `directory` into the page cache; return the number of bytes."""
    return sum(_read_through(path) for path in files_below(directory))


def _generator(seed: str) -> Random:
    return Random(seed)  # noqa: S311 - repeatable is what is wanted


def _make_files(data: DataSet, directory: Path) -> None:
    plans = list(planned_files(data))
    for parent in {(directory / plan.path).parent for plan in plans}:
        parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor() as workers:
        chunk = max(1, len(plans) // 64)
        for _ in workers.map(_make_file, [directory] * len(plans), plans, chunksize=chunk):
            pass


def _make_file(directory: Path, plan: FilePlan) -> None:
    path = directory / plan.path
    _write(path, content_of(plan))
    os.utime(path, ns=(plan.mtime_ns, plan.mtime_ns))


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(content)


def _make_copies(data: CopiedSet, sources: list[Path], directory: Path) -> None:
    originals = cycle(_alternating([files_below(source) for source in sources]))
    random = _generator(str(data.size))
    left = data.size - _make_large_file(directory / "large.bin", data.size // 10, random)
    number = 0
    while left > 0:
        parent = directory / f"tenant-{number // 1000:02d}"
        parent.mkdir(exist_ok=True)
        original = next(originals)
        left -= _copy_with_own_start(original, parent / f"{number:06d}-{original.name}", random.randbytes(FIRST_BLOCK))
        number += 1


def _alternating(groups: list[list[Path]]) -> list[Path]:
    """Mix groups of different lengths evenly, so that every part of the result resembles the whole."""
    placed = [((index + 0.5) / len(group), path) for group in groups for index, path in enumerate(group)]
    return [path for _, path in sorted(placed)]


def _make_large_file(path: Path, size: int, random: Random) -> int:
    with path.open("wb") as file:
        os.fchmod(file.fileno(), 0o600)
        for offset in range(0, size, CHUNK):
            file.write(random.randbytes(min(CHUNK, size - offset)))
    return size


def _copy_with_own_start(original: Path, path: Path, start: bytes) -> int:
    """Copy a file with its first block replaced by `start`; return the copy's size in bytes."""
    size = original.stat().st_size
    with original.open("rb") as source, path.open("wb", buffering=0) as target:
        os.fchmod(target.fileno(), 0o600)
        copied = target.write(start)
        while copied < size:
            copied += os.copy_file_range(source.fileno(), target.fileno(), size - copied, copied, copied)
    return max(size, len(start))


def _read_through(path: Path) -> int:
    buffer = bytearray(CHUNK)
    total = 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            total += count
    return total
