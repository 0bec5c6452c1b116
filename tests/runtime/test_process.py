"""Starting, watching and ending programs, with real ones and with the fake that other tests use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from portal.ops.runtime.process import PIPE, SystemRunner, run
from tests.support.fake_runner import FakeRunner, Script
from tests.support.waiting import LONG_SECONDS, ends_soon, names_of, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from portal.ops.runtime.process import ProcessRunner

ENVIRONMENT = {"PATH": os.environ["PATH"]}
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Play:
    """The same behaviour, once as a shell command and once as a script for the fake."""

    command: str
    script: Script


GREETING = Play(command="echo hello", script=Script(stdout=b"hello\n"))
COMPLAINT = Play(command="echo 'no such table' >&2; exit 3", script=Script(stderr="no such table\n", returncode=3))
SLEEP = Play(command="sleep 600", script=Script(hangs=True))

Stage = tuple["ProcessRunner", "list[str]"]


@pytest.fixture(params=["system", "fake"])
def stage(request: pytest.FixtureRequest) -> Callable[[Play], Stage]:
    """Set a play on one of the runners: returns the runner and the command."""

    def prepare(play: Play) -> Stage:
        runner: ProcessRunner = SystemRunner() if request.param == "system" else FakeRunner({"sh": play.script})
        return runner, ["sh", "-c", play.command]

    return prepare


def test_output_is_read_from_a_pipe(stage: Callable[[Play], Stage]) -> None:
    """What a program prints can be read to its end."""
    runner, command = stage(GREETING)
    process = runner.start(command, environment=ENVIRONMENT)
    assert process.stdout.read() == b"hello\n"
    assert process.wait() == 0


def test_the_exit_code_is_passed_on(stage: Callable[[Play], Stage]) -> None:
    """A program's exit code is that of the process."""
    runner, command = stage(COMPLAINT)
    assert runner.start(command, environment=ENVIRONMENT).wait() == 3


def test_complaints_are_kept(stage: Callable[[Play], Stage]) -> None:
    """What a program wrote to stderr can be asked for after its end."""
    runner, command = stage(COMPLAINT)
    process = runner.start(command, environment=ENVIRONMENT)
    process.wait()
    assert process.stderr_tail() == "no such table\n"


def test_there_is_no_exit_code_before_the_end(stage: Callable[[Play], Stage]) -> None:
    """A process that runs has no exit code."""
    runner, command = stage(SLEEP)
    process = runner.start(command, environment=ENVIRONMENT)
    assert process.returncode is None
    process.kill()


def test_waiting_has_a_limit(stage: Callable[[Play], Stage]) -> None:
    """Waiting for a program that hangs ends with a TimeoutError."""
    runner, command = stage(SLEEP)
    process = runner.start(command, environment=ENVIRONMENT)
    with pytest.raises(TimeoutError):
        process.wait(0.05)
    process.kill()


def test_a_killed_process_reports_the_signal(stage: Callable[[Play], Stage]) -> None:
    """Kill ends a program, and its exit code names the signal."""
    runner, command = stage(SLEEP)
    process = runner.start(command, environment=ENVIRONMENT)
    process.kill()
    assert process.returncode == -signal.SIGTERM


def test_killing_twice_is_harmless(stage: Callable[[Play], Stage]) -> None:
    """A second kill changes nothing."""
    runner, command = stage(SLEEP)
    process = runner.start(command, environment=ENVIRONMENT)
    process.kill()
    process.kill()
    assert process.returncode == -signal.SIGTERM


def test_run_returns_all_of_it(stage: Callable[[Play], Stage]) -> None:
    """A short program's output and exit code come back together."""
    runner, command = stage(GREETING)
    finished = run(runner, command, environment=ENVIRONMENT, timeout_seconds=LONG_SECONDS)
    assert (finished.returncode, finished.stdout) == (0, "hello\n")


def test_run_has_a_limit(stage: Callable[[Play], Stage]) -> None:
    """A program that does not end in time is killed, and that is an error."""
    runner, command = stage(SLEEP)
    with pytest.raises(TimeoutError, match=r"did not end within 0\.1 s"):
        run(runner, command, environment=ENVIRONMENT, timeout_seconds=0.1)


@pytest.mark.parametrize("runner", [SystemRunner(), FakeRunner({})], ids=["system", "fake"])
def test_an_absent_program_is_an_error_at_once(runner: ProcessRunner) -> None:
    """Starting a program that does not exist raises FileNotFoundError."""
    with pytest.raises(FileNotFoundError):
        runner.start(["no-such-program"], environment=ENVIRONMENT)


def test_a_deaf_process_is_killed_after_the_grace(runner: SystemRunner) -> None:
    """A program that ignores SIGTERM gets SIGKILL."""
    process = runner.start(["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"], environment=ENVIRONMENT)
    process.stdout.readline()
    process.kill(grace_seconds=0.1)
    assert process.returncode == -signal.SIGKILL


def test_the_whole_group_is_killed(runner: SystemRunner) -> None:
    """Children of a program that is killed end with it."""
    process = runner.start(["sh", "-c", "sleep 600 & echo $!; wait"], environment=ENVIRONMENT)
    child = int(process.stdout.readline())
    process.kill()
    assert ends_soon(child)


def test_what_a_program_leaves_behind_is_killed(runner: SystemRunner) -> None:
    """Children that outlive a program by itself are ended once it was waited for."""
    process = runner.start(["sh", "-c", "sleep 600 >/dev/null 2>&1 & echo $!"], environment=ENVIRONMENT)
    child = int(process.stdout.readline())
    process.wait()
    assert ends_soon(child)


def test_only_the_end_of_stderr_is_kept(runner: SystemRunner) -> None:
    """A program that complains without end does not fill the memory."""
    command = ["sh", "-c", "yes complaint | head -c 1000000 >&2; echo last words >&2"]
    process = runner.start(command, environment=ENVIRONMENT)
    process.wait()
    tail = process.stderr_tail()
    assert len(tail) <= 64 * 1024
    assert tail.endswith("last words\n")


def test_input_can_be_a_pipe(runner: SystemRunner) -> None:
    """A program can be fed."""
    process = runner.start(["cat"], environment=ENVIRONMENT, stdin=PIPE)
    process.stdin.write(b"food")
    process.stdin.close()
    assert process.stdout.read() == b"food"
    process.wait()


def test_nothing_of_the_environment_is_inherited(runner: SystemRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program gets the environment that was passed in, and nothing else."""
    monkeypatch.setenv("UNRELATED", "secret")
    finished = run(runner, ["env"], environment=ENVIRONMENT, timeout_seconds=LONG_SECONDS)
    assert "UNRELATED" not in finished.stdout


def test_a_process_leads_its_own_session(runner: SystemRunner) -> None:
    """A program is not in the terminal's group, so that Ctrl-C reaches the engine alone."""
    process = runner.start(["sleep", "600"], environment=ENVIRONMENT)
    assert os.getsid(process.pid) == process.pid
    process.kill()


def test_a_process_ends_with_a_parent_that_is_killed() -> None:
    """After SIGKILL of the process that started it, a program is gone."""
    program = (
        "from portal.ops.runtime.process import SystemRunner\n"
        "command = ['sh', '-c', 'echo ready; exec sleep 600']\n"
        "process = SystemRunner().start(command, environment={'PATH': '/usr/bin:/bin'})\n"
        "process.stdout.readline()\n"
        "print(process.pid, flush=True)\n"
        "process.wait()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    assert ends_soon(child)


def test_a_process_ends_with_the_thread_that_started_it(runner: SystemRunner) -> None:
    """The kernel ties a child to the thread that started it: the documented limit."""
    started = []

    def start() -> None:
        process = runner.start(["sh", "-c", "echo ready; exec sleep 600"], environment=ENVIRONMENT)
        process.stdout.readline()
        started.append(process)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert started[0].wait(LONG_SECONDS) == -signal.SIGTERM


class _SignalledError(Exception):
    """The handler ran."""


@pytest.fixture
def unnoticed_signal() -> Iterator[None]:
    """A signal that does not interrupt what the main thread waits for: another thread takes it in its stead.

    This is how a signal goes by that arrives an instant before the main thread begins to wait. It comes when a program
    is read from or waited for.
    """
    main = threading.get_ident()

    def handle(*_: object) -> None:
        raise _SignalledError

    def raise_elsewhere() -> None:
        wait_until(lambda: {"readinto", "_ended_within"} & set(names_of(sys._current_frames()[main])))
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handle)
    thread = threading.Thread(target=raise_elsewhere)
    thread.start()
    yield
    thread.join()
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.usefixtures("unnoticed_signal")
def test_a_signal_ends_the_reading_of_a_silent_program(runner: SystemRunner) -> None:
    """Whoever reads from a program that says nothing notices a signal, also one that did not interrupt the reading."""
    process = runner.start(["sleep", "600"], environment=ENVIRONMENT)
    with pytest.raises(_SignalledError):
        process.stdout.readinto(bytearray(1 << 20))  # type: ignore[attr-defined]  # it is a buffered reader
    with pytest.raises(TimeoutError):  # it is still there
        process.wait(0)
    process.kill()


@pytest.mark.usefixtures("unnoticed_signal")
def test_a_signal_ends_the_waiting_for_a_program(runner: SystemRunner) -> None:
    """Whoever waits for the end of a program notices a signal, also one that did not interrupt the waiting."""
    process = runner.start(["sleep", "600"], environment=ENVIRONMENT)
    with pytest.raises(_SignalledError):
        process.wait()
    with pytest.raises(TimeoutError):  # it is still there
        process.wait(0)
    process.kill()
