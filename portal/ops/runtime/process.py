"""The interface through which the engine runs programs (pg_dump, pg_restore), and its implementation.

A `ProcessRunner` has one method, so that a test can replace it with a fake. A started program has its own session, can
be killed as a group, and ends with the process that started it. Secrets are only in the environment, since everyone can
read a process's arguments.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import select
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import IO, TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PIPE = subprocess.PIPE
DEVNULL = subprocess.DEVNULL

Stream = int | IO[bytes]
"""An open file, a file descriptor, `PIPE` or `DEVNULL`."""

_LAUNCHER = Path(__file__).with_name("launcher.py")
_STDERR_TAIL_BYTES = 64 * 1024
_PIPE_BYTES = 1024 * 1024
_WORTH_READING_BYTES = _PIPE_BYTES // 2
_GATHERING_SECONDS = 0.001
"""How long to wait for more than a little. A fast program fills a third of the pipe meanwhile."""
_INT = Struct("i")
_POLL_SECONDS = 0.01
_PATIENCE_SECONDS = 1.0
_DRAIN_SECONDS = 2.0


class RunningProcess(Protocol):
    """A running program: its streams, its exit code, and its standard error.

    `stdin` and `stdout` are empty files unless a `PIPE` was requested.
    """

    stdin: IO[bytes]
    stdout: IO[bytes]

    @property
    def pid(self) -> int:
        """The number of the process and of its group."""

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None until `wait` or `kill` has seen the end."""

    def wait(self, timeout_seconds: float | None = None) -> int:
        """Wait for the end and return the exit code; raises `TimeoutError` after so many seconds."""

    def kill(self, grace_seconds: float = 5.0) -> None:
        """End the whole group: SIGTERM, then SIGKILL after the grace period; does nothing after the end."""

    def stderr_tail(self) -> str:
        """Return the last 64 KiB of its standard error."""


class ProcessRunner(Protocol):
    """Starts programs."""

    def start(
        self,
        argv: Sequence[str | Path],
        *,
        environment: Mapping[str, str],
        stdin: Stream = DEVNULL,
        stdout: Stream = PIPE,
    ) -> RunningProcess:
        """Start a program.

        Arguments:
            argv: the program, by path or looked up in the environment's PATH, and its arguments. No secrets.
            environment: the whole environment of the program; nothing is inherited.
            stdin: its standard input.
            stdout: its standard output. If it is a `PIPE`, the caller has to read it.

        Raises:
            FileNotFoundError: there is no such program.
        """


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The result of a short program."""

    returncode: int
    stdout: str
    stderr: str


def run(
    runner: ProcessRunner, argv: Sequence[str | Path], *, environment: Mapping[str, str], timeout_seconds: float
) -> Finished:
    """Run a program with little output to its end.

    Raises:
        FileNotFoundError: there is no such program.
        TimeoutError: it took longer than `timeout_seconds` and was killed.
    """
    process = runner.start(argv, environment=environment)
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        process.kill()

    timer = threading.Timer(timeout_seconds, expire)
    try:
        timer.start()
        with process.stdout as stream:
            output = stream.read()
        returncode = process.wait()
    finally:
        timer.cancel()
        process.kill()
    if expired.is_set():
        raise TimeoutError(f"{argv[0]} did not end within {timeout_seconds:g} s")
    return Finished(returncode=returncode, stdout=output.decode(errors="replace"), stderr=process.stderr_tail())


def launch_command(
    argv: Sequence[str | Path],
    *,
    death_signal: signal.Signals = signal.SIGTERM,
    owner: tuple[int, int] | None = None,
) -> list[str]:
    """Wrap a command so that it ends with this process, or more exactly, with the thread that starts it.

    On SIGTERM, pg_dump and pg_restore cancel their work on the server; after SIGKILL it would continue.

    Arguments:
        argv: absolute path of the program, and its arguments.
        death_signal: the signal for the program when the starting thread ends.
        owner: user and group number to run as; only for root.
    """
    who = "-" if owner is None else f"{owner[0]}:{owner[1]}"
    launcher = [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), str(int(death_signal)), who]
    return [*launcher, *map(str, argv)]


class SystemRunner:
    """Starts real processes. Each ends with the thread that started it, so that thread must stay."""

    def start(
        self,
        argv: Sequence[str | Path],
        *,
        environment: Mapping[str, str],
        stdin: Stream = DEVNULL,
        stdout: Stream = PIPE,
    ) -> RunningProcess:
        """Start a program; see `ProcessRunner.start`."""
        program = shutil.which(argv[0], path=environment.get("PATH", os.defpath))
        if program is None:
            raise FileNotFoundError(errno.ENOENT, "no such program", str(argv[0]))
        return SystemProcess(
            subprocess.Popen(
                launch_command([program, *argv[1:]]),
                env=dict(environment),
                stdin=stdin,
                stdout=stdout,
                stderr=PIPE,
                pipesize=_PIPE_BYTES,
                start_new_session=True,
            )
        )


class _WakefulReader(io.RawIOBase):
    """Reads a pipe for a thread that must notice signals soon, even if the other end is silent.

    Python runs a signal's handler between two bytecodes of the main thread. A signal that arrives just before the
    thread blocks in the kernel is noticed only after that, so each wait is short.

    pg_dump writes 4 KiB at a time. Reading each of these by itself would wake this thread 70,000 times for 300 MB, so
    it lets them gather.

    Arguments:
        pipe: the pipe to read and to close.
    """

    def __init__(self, pipe: io.RawIOBase) -> None:
        self._pipe = pipe
        self._poll = select.poll()
        self._poll.register(pipe, select.POLLIN)

    def readable(self) -> bool:
        """Always true."""
        return True

    def fileno(self) -> int:
        """The number of the descriptor."""
        return self._pipe.fileno()

    def readinto(self, buffer: memoryview, /) -> int | None:  # type: ignore[override]  # what BufferedReader passes
        """Read what is available; wait until there is something, and a moment more if that is little."""
        while not (ready := self._poll.poll(_PATIENCE_SECONDS * 1000)):
            pass
        if ready[0][1] == select.POLLIN and self._available() < min(len(buffer), _WORTH_READING_BYTES):
            time.sleep(_GATHERING_SECONDS)
        return self._pipe.readinto(buffer)

    def _available(self) -> int:
        """How many bytes lie in the pipe."""
        (count,) = _INT.unpack(fcntl.ioctl(self._pipe.fileno(), termios.FIONREAD, _INT.pack(0)))
        return int(count)

    def close(self) -> None:
        """Close the pipe."""
        self._pipe.close()
        super().close()


class SystemProcess:
    """A real process that leads its own session and group; see `RunningProcess`."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self.stdin: IO[bytes] = popen.stdin or io.BytesIO()
        self.stdout: IO[bytes] = _wakeful(popen.stdout) if popen.stdout else io.BytesIO()
        self._collecting = threading.Lock()
        self._tail = bytearray()
        self._drain = threading.Thread(target=self._drain_stderr, name=f"stderr-{popen.pid}", daemon=True)
        self._drain.start()

    @property
    def pid(self) -> int:
        """The number of the process and of its group."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None until `wait` or `kill` has seen the end."""
        return self._popen.returncode

    def wait(self, timeout_seconds: float | None = None) -> int:
        """Wait for the end and return the exit code; see `RunningProcess.wait`."""
        if not self._ended_within(timeout_seconds):
            raise TimeoutError(f"process {self.pid} did not end within {timeout_seconds:g} s")
        return self._collect()

    def kill(self, grace_seconds: float = 5.0) -> None:
        """End the whole group; see `RunningProcess.kill`."""
        self._signal_group(signal.SIGTERM)
        if not self._ended_within(grace_seconds):
            self._signal_group(signal.SIGKILL)
        self._ended_within(None)
        self._collect()

    def stderr_tail(self) -> str:
        """Return the last 64 KiB of its standard error, complete after `wait`."""
        if self.returncode is not None:
            self._drain.join(_DRAIN_SECONDS)
        return bytes(self._tail).decode(errors="replace")

    def _ended_within(self, timeout_seconds: float | None) -> bool:
        """Wait for the end without collecting the exit code, so that the group's number cannot be reused yet."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        pause = _POLL_SECONDS / 10
        try:
            while os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
                if deadline is not None and time.monotonic() >= deadline:
                    return False
                time.sleep(pause)  # in short waits: see `_WakefulReader`
                pause = min(2 * pause, _POLL_SECONDS)
        except ChildProcessError:
            pass
        return True

    def _collect(self) -> int:
        """Kill the rest of the group, and collect the leader's exit code."""
        self._signal_group(signal.SIGKILL)
        with self._collecting:
            return self._popen.wait()

    def _signal_group(self, number: signal.Signals) -> None:
        with self._collecting:
            if self._popen.returncode is None:
                os.killpg(self.pid, number)

    def _drain_stderr(self) -> None:
        assert self._popen.stderr is not None
        with self._popen.stderr as stream:
            while block := os.read(stream.fileno(), 8192):
                self._tail += block
                del self._tail[:-_STDERR_TAIL_BYTES]


def _wakeful(stream: IO[bytes]) -> IO[bytes]:
    """The same stream, for a thread that must notice signals."""
    pipe = cast("io.BufferedReader", stream).detach()
    return io.BufferedReader(_WakefulReader(pipe))
