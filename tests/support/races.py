"""Several processes of ours that work beside each other, one of which may be killed again and again."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NoReturn

from portal.ops.errors import ArchiveAbsentError, BusyError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_LIMIT_SECONDS: Final = 60.0
"""A process that works on one operation for longer waits without a limit."""

_LOOK_SECONDS: Final = 0.02


@dataclass(kw_only=True)
class Race:
    """Processes that each repeat operations, chosen by chance.

    Arguments:
        directory: for what the processes say.
        rounds: how many operations each of them does.
        seed: of all choices.
    """

    directory: Path
    rounds: int
    seed: int
    _running: dict[int, tuple[int, Path]] = field(default_factory=dict)

    def run(self, *processes: Sequence[Callable[[random.Random], Any]], is_first_killed: bool = False) -> int:
        """Run the processes to their end; an assertion fails if one of them met what must not be; the number of kills.

        Arguments:
            processes: the operations of each.
            is_first_killed: kill the first one at random instants, and start it again, until the others have ended.
        """
        chance = random.Random(self.seed)
        kills = 0
        try:
            for number, operations in enumerate(processes):
                self._start(number, operations, chance.random())
            while self._running:
                others = [pid for pid, (number, _) in self._running.items() if number or not is_first_killed]
                first = [pid for pid in self._running if pid not in others]
                if not others:
                    self._kill(first)
                    break
                kills += len(first)
                self._wait(chance.uniform(0.05, 0.6) if is_first_killed else _LIMIT_SECONDS)
                if is_first_killed and others:
                    self._kill([pid for pid, (number, _) in self._running.items() if not number])
                    self._start(0, processes[0], chance.random())
        finally:
            self._kill(list(self._running))
        return kills

    def _start(self, number: int, operations: Sequence[Callable[[random.Random], Any]], seed: float) -> None:
        said = self.directory / f"process-{number}-{seed}"
        said.write_text("")
        pid = os.fork()
        if pid == 0:
            _work(operations, random.Random(seed), self.rounds, said)
        self._running[pid] = number, said

    def _wait(self, seconds: float) -> None:
        """Wait until all have ended, at most for some seconds; none may work on one operation for too long."""
        until = time.monotonic() + seconds
        while self._running and time.monotonic() < until:
            for pid in list(self._running):
                _, said = self._running[pid]
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    del self._running[pid]
                    assert os.waitstatus_to_exitcode(status) == 0, said.read_text()
                else:
                    assert time.time() - said.stat().st_mtime < _LIMIT_SECONDS, f"it waits: {said.read_text()}"
            time.sleep(_LOOK_SECONDS)

    def _kill(self, pids: Sequence[int]) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
            self._running.pop(pid, None)


def _work(
    operations: Sequence[Callable[[random.Random], Any]], chance: random.Random, rounds: int, said: Path
) -> NoReturn:
    """The life of a process: it must not become a second run of the tests."""
    name = ""
    try:
        for number in range(rounds):
            operation = chance.choice(operations)
            name = operation.__name__
            said.write_text(f"{number}: {name}")
            with suppress(BusyError, ArchiveAbsentError):  # somebody else was first, and it says so
                operation(chance)
    except BaseException:
        said.write_text(f"{name}\n{traceback.format_exc()}")
        os._exit(1)
    finally:
        sys.stdout.flush()
    os._exit(0)
