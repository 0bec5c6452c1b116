"""Measures one process: its time, its tree's memory, and whether it succeeded.

The time is that from before the fork until the process is gone. A failed process gives no measurement, but an error.
"""

from __future__ import annotations

import os
import shlex
import statistics
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

INHERITED = ("HOME", "LANG", "LC_ALL", "PATH", "TMPDIR", "TZ", "USER")
"""The variables of our environment that a measured process gets; others could change its behaviour."""
NOT_OURS = frozenset({"postgres", "pg_dump"})
"""The command names of programs that use PostgreSQL's shared memory."""
SAMPLING_INTERVAL = 0.015
OUTPUT_SHOWN = 4000
PROC = Path("/proc")


@dataclass(frozen=True, kw_only=True)
class Command:
    """A program to run.

    Arguments:
        argv: the program and its arguments.
        env: additional variables.
        discards_output: discard its standard output, like `>/dev/null` in a shell.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    discards_output: bool = False

    def environment(self) -> dict[str, str]:
        """Return all variables for the program."""
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        return inherited | dict(self.env)

    def filled(self, words: Mapping[str, str]) -> Command:
        """Return the command with its `{placeholders}` replaced.

        Raises:
            CommandFailedError: a placeholder has no value, since an expected archive is missing.
        """
        try:
            return replace(
                self,
                argv=tuple(argument.format_map(words) for argument in self.argv),
                env={name: value.format_map(words) for name, value in self.env.items()},
            )
        except KeyError as error:
            raise CommandFailedError(self, f"there is no {error.args[0]}", "") from error


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory of a process tree in bytes: PSS counts a shared page once, RSS once for each process."""

    pss: int = 0
    rss: int = 0

    def __add__(self, other: Memory) -> Memory:
        return Memory(pss=self.pss + other.pss, rss=self.rss + other.rss)

    def maximum(self, other: Memory) -> Memory:
        """Return the larger of each figure."""
        return Memory(pss=max(self.pss, other.pss), rss=max(self.rss, other.rss))


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The cost of a successful process: seconds, CPU seconds, bytes at its peak; and its output."""

    wall: float
    cpu: float
    stdout: str = ""
    peak: Memory | None = None


@dataclass(frozen=True, kw_only=True)
class Statistic:
    """Median, minimum and maximum of repeated measurements."""

    median: float
    minimum: float
    maximum: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """Summarise at least one value."""
        ordered = sorted(values)
        return cls(median=statistics.median(ordered), minimum=ordered[0], maximum=ordered[-1])


class CommandFailedError(Exception):
    """Raised if a command failed; the message has the command and its output."""

    def __init__(self, command: Command, reason: str, output: str) -> None:
        super().__init__(f"{shlex.join(command.argv)}\n{reason}\n{output[-OUTPUT_SHOWN:]}".rstrip())


def run(command: Command, *, watches_memory: bool = False) -> Measurement:
    """Run a command to its end and measure it.

    Arguments:
        command: the command.
        watches_memory: sample the memory of its process tree, which slows it a little.

    Raises:
        CommandFailedError: it could not be started, or its exit code was not zero.
    """
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        started = time.monotonic()
        process = _start(command, stdout, stderr)
        watch = MemoryWatch(process.pid) if watches_memory else None
        code, cpu = _wait(process)
        wall = time.monotonic() - started
        peak = watch.stop() if watch else None
        printed = _text(stdout)
        if code != 0:
            raise CommandFailedError(command, f"exit code {code}", _text(stderr) + printed)
        return Measurement(wall=wall, cpu=cpu, stdout=printed, peak=peak)


def _start(command: Command, stdout: IO[bytes], stderr: IO[bytes]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command.argv,
            env=command.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if command.discards_output else stdout,
            stderr=stderr,
        )
    except OSError as error:
        raise CommandFailedError(command, "could not be started", str(error)) from error


def _wait(process: subprocess.Popen[bytes]) -> tuple[int, float]:
    """Return the exit code, and the CPU seconds of the process and all descendants it waited for."""
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        process.kill()
        process.wait()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_utime + usage.ru_stime


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


class MemoryWatch:
    """Samples the memory of a process and its descendants until it is stopped, and keeps the peak."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._peak = Memory()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> Memory | None:
        """Stop sampling; return the peak, or None without any sample."""
        self._stopped.set()
        self._thread.join()
        return self._peak if self._peak.pss else None

    def _sample(self) -> None:
        while not self._stopped.wait(SAMPLING_INTERVAL):
            self._peak = self._peak.maximum(tree_memory(self._pid))


def tree_memory(pid: int) -> Memory:
    """Return the present memory of a process and its descendants, without PostgreSQL's own programs."""
    return sum((_memory(member) for member in _tree(pid) if _name(member) not in NOT_OURS), Memory())


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for thread in _threads(pid):
        for child in _read(thread / "children").split():
            yield from _tree(int(child))


def _threads(pid: int) -> list[Path]:
    try:
        return list((PROC / str(pid) / "task").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return []


def _name(pid: int) -> str:
    return _read(PROC / str(pid) / "comm").strip()


def _memory(pid: int) -> Memory:
    lines = _read(PROC / str(pid) / "smaps_rollup").splitlines()
    fields = {name: kilobytes for name, kilobytes, *_ in map(str.split, lines)}
    return Memory(pss=int(fields.get("Pss:", 0)) * 1024, rss=int(fields.get("Rss:", 0)) * 1024)


def _read(path: Path) -> str:
    """Return the text of a file in /proc; empty if the process is gone."""
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
