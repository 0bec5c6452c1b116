"""The order of a benchmark: preparation, then the contenders in turn, round by round (A B C, A B C, …).

Only the run itself is timed. Each run starts with the data in the page cache, an empty output directory, and no pending
writes of another run. In cases that write many files, none are removed between runs: for a minute after that, ext4
examines freed inodes whenever a file is created.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.data import files_below, provide, read_everything
from benchmarks.database import Database, serving
from benchmarks.measure import CommandFailedError, run
from benchmarks.outcome import Outcome, Result
from portal.ops.errors import OpsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from benchmarks.case import Case, Contender, Data
    from benchmarks.measure import Command

TOOLS = Path(__file__).resolve().parents[1] / "tools"
PACKAGES = {"borg": "borgbackup"}
"""Debian packages whose name is not that of their program."""


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """Where benchmarks run, how many rounds, and where messages go.

    Arguments:
        directory: data sets are kept in `data`; output of contenders is in `runs`, and removed.
        rounds: how many times each contender runs.
        tell: receives messages for the person who waits.
        tools: the directory of our commands.
    """

    directory: Path
    rounds: int
    tell: Callable[[str], None]
    tools: Path = TOOLS


@dataclass(kw_only=True)
class Entry:
    """A contender while its case runs.

    Arguments:
        contender: the contender.
        words: the values of placeholders.
        results: its rounds so far.
        trouble: why it stopped taking part.
        failed: whether that is a failure.
    """

    contender: Contender
    words: dict[str, str]
    results: list[Result] = field(default_factory=list)
    trouble: str = ""
    failed: bool = False

    def outcome(self) -> Outcome:
        """Return its outcome: no figures if any round failed."""
        results = () if self.trouble else tuple(self.results)
        return Outcome(name=self.contender.name, results=results, trouble=self.trouble, failed=self.failed)


def play(case: Case, workshop: Workshop) -> dict[str, Outcome]:
    """Run one case; return the outcome of each contender, by name."""
    entries = [Entry(contender=each, words={}, trouble=install_hint(each.needs)) for each in case.contenders]
    with ExitStack() as stack:
        _make_ready(case, entries, workshop, stack)
        for number in range(1, workshop.rounds + 1):
            for entry in _remaining(entries):
                _play_round(case, entry, number, workshop, stack)
    return {entry.contender.name: entry.outcome() for entry in entries}


def install_hint(programs: Iterable[str]) -> str:
    """Return what to do about programs that are not installed; None if all are."""
    missing = [program for program in programs if shutil.which(program) is None]
    packages = " ".join(PACKAGES.get(program, program) for program in missing)
    return f"not installed: apt-get install {packages}" if missing else ""


def _remaining(entries: Iterable[Entry]) -> list[Entry]:
    return [entry for entry in entries if not entry.trouble]


def _fail(entry: Entry, error: Exception, workshop: Workshop) -> None:
    entry.trouble, entry.failed = "failed", True
    workshop.tell(f"{entry.contender.name} FAILED: {error}")


def _make_ready(case: Case, entries: list[Entry], workshop: Workshop, stack: ExitStack) -> None:
    """Provide the data of a case in the page cache, and set up its contenders; `stack` undoes everything."""
    workshop.tell(f"{case.name}: making the data ready")
    words: dict[Data, dict[str, str]] = {}
    for number, entry in enumerate(entries):
        data = entry.contender.data or case.data
        kept = stack.enter_context(_fresh_directory(workshop.directory / "runs" / f"kept-{number}"))
        try:
            if data not in words:
                words[data] = _provide(data, workshop, stack)
            entry.words = words[data] | {"tools": str(workshop.tools), "kept": str(kept)}
            if not entry.trouble:
                _set_up(entry)
        except (OpsError, CommandFailedError) as error:
            _fail(entry, error, workshop)


def _provide(data: Data, workshop: Workshop, stack: ExitStack) -> dict[str, str]:
    if isinstance(data, Database):
        return stack.enter_context(serving(data))
    directory = provide(data, workshop.directory / "data")
    read_everything(directory)
    files = files_below(directory)
    return {"data": str(directory), "member": str(files[len(files) // 2].relative_to(directory))}


def _set_up(entry: Entry) -> None:
    """Run a contender's setup, and find the archive it may have made."""
    kept = Path(entry.words["kept"])
    for command in entry.contender.setup:
        run(command.filled(entry.words))
    for archive in kept.glob("*.tar.gz"):
        entry.words["archive"] = str(archive)
    read_everything(kept)


def _play_round(case: Case, entry: Entry, number: int, workshop: Workshop, whole_case: ExitStack) -> None:
    directory = workshop.directory / "runs" / f"out-{number}-{case.contenders.index(entry.contender)}"
    with ExitStack() as this_run:
        out = (whole_case if case.keeps_outputs else this_run).enter_context(_fresh_directory(directory))
        words = entry.words | {"out": str(out)}
        try:
            result = _run_once(entry.contender, words, watches_memory=case.watches_memory)
        except CommandFailedError as error:
            _fail(entry, error, workshop)
            return
    entry.results.append(result)
    workshop.tell(f"{case.name} {number}/{workshop.rounds}  {entry.contender.name}: {result.wall:.2f} s")


def _run_once(contender: Contender, words: dict[str, str], *, watches_memory: bool) -> Result:
    for command in contender.prepare:
        run(command.filled(words))
    for place in ("data", "kept"):  # before each run: borg drops what it has read from the page cache
        if place in words:
            read_everything(Path(words[place]))
    os.sync()
    command = contender.run.filled(words)
    measured = run(command, watches_memory=watches_memory)
    if contender.says_success and not says_success(measured.stdout):
        raise CommandFailedError(command, "its output does not say that it succeeded", measured.stdout)
    for check in contender.check:
        run(check.filled(words))
    size = _size_of(command, Path(words["out"]), contender.output) if contender.output else None
    return Result(wall=measured.wall, cpu=measured.cpu, size=size, peak=measured.peak)


def says_success(output: str) -> bool:
    """Return whether a job's output is a JSON object with `"success": true`."""
    try:
        answer = json.loads(output)
    except ValueError:
        return False
    return isinstance(answer, dict) and answer.get("success") is True


def _size_of(command: Command, out: Path, pattern: str) -> int:
    """Return the size of the one file or directory that a command should have written to `out`."""
    matches = list(out.glob(pattern))
    files = [file for match in matches for file in (files_below(match) if match.is_dir() else [match])]
    size = sum(file.stat().st_size for file in files)
    if len(matches) != 1 or size == 0:
        raise CommandFailedError(command, f"should have written one {pattern}, and not an empty one", "")
    return size


@contextmanager
def _fresh_directory(path: Path) -> Iterator[Path]:
    """Yield an empty directory, and remove it afterwards."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path)
