"""Reads WAL with pg_waldump: what was committed when, and which rows were removed.

Segments are unpacked a few at a time, into a directory that is then removed.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

from portal.ops.pitr.lsn import PARTIAL
from portal.ops.postgres.client_tools import find_same_version
from portal.ops.postgres.environment import client_environment

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from portal.ops.pitr.lsn import Segment
    from portal.ops.pitr.wal_archive import WalArchive
    from portal.ops.runtime.process import ProcessRunner

_AT_ONCE: Final = 16
_LOOK_BACK: Final = 12
_LOOK_BACK_STEP: Final = 2
"""To find the last transaction, at most `_LOOK_BACK` segments are read, so many at a time."""

_COMMIT: Final = re.compile(r"desc: COMMIT(?:_PREPARED)? (?:\S+: )?(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+) UTC(.*)")
_TRANSACTION: Final = re.compile(r"tx:\s+(\d+), lsn: ([0-9A-F]+/[0-9A-F]+)")
_DELETE: Final = re.compile(r"desc: DELETE .*rel \d+/(\d+)/(\d+)")
_FILES: Final = re.compile(r"; rels:((?: \S+)+)")
_FILE: Final = re.compile(r"base/(\d+)/(\d+)")
_SUBTRANSACTIONS: Final = re.compile(r"; subxacts:((?: \d+)+)")

Relation = tuple[int, int]
"""The numbers of a database and a table's file, as in the WAL."""


@dataclass(frozen=True, kw_only=True)
class Commit:
    """A committed transaction.

    Arguments:
        deleted: the number of rows removed, by table.
        removed: tables whose files it removed: by TRUNCATE, DROP, or rewriting.
    """

    moment: datetime
    transaction: int
    deleted: dict[Relation, int] = field(default_factory=dict)
    removed: tuple[Relation, ...] = ()


def segments_between(archive: WalArchive, start: datetime | None, end: datetime | None) -> list[tuple[Segment, str]]:
    """The segments with all commits between two moments, in order, each with its stored name."""
    found: dict[Segment, str] = {}
    first_after: datetime | None = None
    # Listed before the stored files: a segment that is stored meanwhile is seen twice, instead of not at all.
    received = (*archive.completed(), *archive.partials()) if archive.receiving.is_dir() else ()
    files = sorted(archive.files().values(), key=lambda file: file.name)
    for file in files:
        segment = archive.segment(file.name)
        if segment is None:
            continue
        is_before = start is not None and file.until is not None and file.until < start
        is_behind = end is not None and first_after is not None and first_after > end
        if not (is_before or is_behind):
            found.setdefault(segment, file.name.removesuffix(PARTIAL))
        first_after = file.covered or first_after
    if not (end is not None and first_after is not None and first_after > end):
        for path in received:
            if segment := archive.segment(path.name):
                found.setdefault(segment, path.name.removesuffix(PARTIAL))
    return sorted(found.items())


def find_wal_reader(major: int, *, runner: ProcessRunner, bin_dir: Path | None) -> Path:
    """The pg_waldump of a server's major version: another one finds nothing in its WAL.

    Raises:
        ClientToolError: there is none.
    """
    purpose = "WAL is read by a pg_waldump of version"
    return find_same_version("pg_waldump", major, purpose=purpose, runner=runner, bin_dir=bin_dir)


def commits(
    archive: WalArchive,
    segments: Iterable[tuple[Segment, str]],
    *,
    runner: ProcessRunner,
    bin_dir: Path | None,
    with_rows: bool = False,
) -> Iterator[Commit]:
    """The commits in segments, in order.

    Arguments:
        with_rows: also count removed rows, which takes longer.

    Raises:
        ClientToolError: there is no pg_waldump of the server's version.
        NotIntactError: a segment is damaged.
    """
    program = find_wal_reader(archive.cluster.major, runner=runner, bin_dir=bin_dir)
    waiting = iter(segments)
    deleted: defaultdict[int, Counter[Relation]] = defaultdict(Counter)
    while batch := list(islice(waiting, _AT_ONCE)):
        with tempfile.TemporaryDirectory(prefix="kekkai-wal-") as directory:
            for run in _runs(batch):
                names = [name for _, name in run if archive.read(name, Path(directory) / name)]
                if not names:
                    continue
                command: list[str | Path] = [program, f"--path={directory}", "--rmgr=Transaction"]
                command += ["--rmgr=Heap"] if with_rows else []
                environment = client_environment() | {"TZ": "UTC"}
                process = runner.start([*command, names[0], names[-1]], environment=environment)
                try:
                    for line in process.stdout:
                        if commit := _read(line.decode("utf-8", "replace"), deleted):
                            yield commit
                finally:
                    with suppress(OSError):
                        process.stdout.close()
                    process.kill()


def last_commit(
    archive: WalArchive,
    segments: Sequence[Segment],
    moment: datetime | None,
    *,
    runner: ProcessRunner,
    bin_dir: Path | None,
) -> datetime | None:
    """The commit time of the last transaction before a moment, or None if the last segments have none.

    Arguments:
        segments: the segments up to the moment, in order; they are read backwards from the last.
        moment: the moment; None for the end of the WAL.

    Raises:
        ClientToolError: there is no pg_waldump of the server's version.
        NotIntactError: a segment is damaged.
    """
    named = [(segment, segment.name(archive.cluster.segment_bytes)) for segment in segments]
    for end in range(len(named), max(0, len(named) - _LOOK_BACK), -_LOOK_BACK_STEP):
        some = named[max(0, end - _LOOK_BACK_STEP - 1) : end]  # one more: a record may begin in it
        found = commits(archive, some, runner=runner, bin_dir=bin_dir)
        last = max((one.moment for one in found if moment is None or one.moment <= moment), default=None)
        if last is not None:
            return last
    return None


def _runs(batch: list[tuple[Segment, str]]) -> Iterator[list[tuple[Segment, str]]]:
    """Split segments into runs of consecutive ones on one timeline."""
    run: list[tuple[Segment, str]] = []
    for segment, name in batch:
        if run and (run[-1][0].timeline, run[-1][0].number + 1) != (segment.timeline, segment.number):
            yield run
            run = []
        run.append((segment, name))
    if run:
        yield run


def _read(line: str, deleted: defaultdict[int, Counter[Relation]]) -> Commit | None:
    """Parse one line; return the commit if it is one."""
    transaction = _TRANSACTION.search(line)
    if transaction is None:
        return None
    number = int(transaction[1])
    if row := _DELETE.search(line):
        deleted[number][int(row[1]), int(row[2])] += 1
        return None
    found = _COMMIT.search(line)
    if found is None:
        if "desc: ABORT" in line:
            deleted.pop(number, None)
        return None
    rows = deleted.pop(number, Counter())
    if children := _SUBTRANSACTIONS.search(found[2]):
        for child in children[1].split():
            rows.update(deleted.pop(int(child), Counter()))
    files = _FILES.search(found[2])
    return Commit(
        moment=datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S.%f").replace(tzinfo=UTC),
        transaction=number,
        deleted=dict(rows),
        removed=tuple((int(one[1]), int(one[2])) for one in _FILE.finditer(files[1])) if files else (),
    )
