"""The operator's commands: how they are run, what they are told, and what becomes of their output."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.errors import CommandFailedError, ConfigurationError
from portal.ops.runtime.commands import (
    MOST_OUTPUT_BYTES,
    Around,
    AroundCommands,
    command_environment,
    run_command,
    within,
)
from portal.ops.runtime.process import SystemRunner
from portal.ops.settings.database_url import DatabaseTarget, Secret
from tests.support.waiting import LONG_SECONDS, ends_soon, wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from portal.ops.runtime.commands import CommandResult
    from portal.ops.runtime.process import ProcessRunner, RunningProcess

TARGET = DatabaseTarget(host="db", port=5432, name="defectdojo", user="dojo", password=Secret("hunter22"))


def shell(
    script: str, *, seconds: float = LONG_SECONDS, secrets: tuple[Secret, ...] = (), runner: ProcessRunner | None = None
) -> CommandResult:
    environment = {"PATH": os.environ["PATH"]}
    return run_command(
        runner or SystemRunner(),
        ["sh", "-c", script],
        environment=environment,
        timeout_seconds=seconds,
        secrets=secrets,
    )


class Prepared(SystemRunner):
    """A runner whose programs have made a file by the time that they count as started."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def start(self, argv: Sequence[str | Path], **options: Any) -> RunningProcess:
        """Start a program, and wait for its file."""
        process = super().start(argv, **options)
        wait_until(self._file.exists)
        return process


def test_its_output_and_its_end_are_known() -> None:
    """What it wrote to both streams is kept, and the last line of it is in the message."""
    ended = shell("echo one; echo two >&2; exit 3")
    assert (ended.succeeded, ended.exit_code, ended.output) == (False, 3, "one\ntwo\n")
    assert ended.failure() == "ended with 3: two"


def test_one_that_says_much_is_not_held_up_and_not_kept() -> None:
    """It runs to its end, and the last of its output is kept."""
    ended = shell("yes 0123456789 2>/dev/null | head -c 3000000; echo the end")
    assert ended.succeeded
    assert len(ended.output) == MOST_OUTPUT_BYTES
    assert ended.output.endswith("the end\n")


def test_one_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    """With everything that it has started."""
    script = f"sleep 600 & echo $! >{tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; wait"
    ended = shell(script, seconds=0.1, runner=Prepared(tmp_path / "pid"))
    assert ended.exit_code is None
    assert ended.failure().startswith("was stopped after ")
    assert ends_soon(int((tmp_path / "pid").read_text()))


def test_what_it_leaves_running_does_not_hold_us_up() -> None:
    """A process that has its output open is ended with it."""
    started = time.monotonic()
    assert shell("sleep 600 & echo started").output == "started\n"
    assert time.monotonic() - started < LONG_SECONDS


def test_a_secret_that_it_prints_is_masked() -> None:
    """The result goes into reports and logs."""
    assert shell("echo password=hunter22", secrets=(Secret("hunter22"),)).output == "password=********\n"


def test_a_secret_at_the_edge_of_what_is_kept_is_masked() -> None:
    """Of long output the end is shown, and no half of a secret."""
    for shown in range(1, len("hunter22")):
        script = (
            f"printf x%.0s $(seq 1 100); printf hunter22; head -c {MOST_OUTPUT_BYTES - shown} /dev/zero | tr '\\0' y"
        )
        output = shell(script, secrets=(Secret("hunter22"),)).output
        assert len(output) == MOST_OUTPUT_BYTES
        assert set(output) <= {"x", "*", "y"}


def test_there_is_no_such_program() -> None:
    """It is a fault of the setting, and the program is named."""
    with pytest.raises(ConfigurationError, match="/no/such/program"):
        run_command(SystemRunner(), ["/no/such/program"], environment={}, timeout_seconds=1)


def test_our_secrets_are_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command gets this process's variables but for ours that are secret, by value or by file."""
    for name in ("CELERY_BROKER_URL", "BACKUP_NOTIFY_URLS_FILE", "DD_CREDENTIAL_AES_256_KEY"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("BACKUP_JOBS", "2")
    environment = command_environment({"KEKKAI_RESULT": "succeeded"})
    assert "secret" not in environment.values()
    assert (environment["BACKUP_JOBS"], environment["KEKKAI_RESULT"]) == ("2", "succeeded")


class TestAround:
    """A command before the work, and one after it."""

    def commands(self, before: str = "", after: str = "", seconds: float = LONG_SECONDS) -> Around:
        """Work with these scripts around it."""
        words = [("sh", "-c", script) if script else () for script in (before, after)]
        commands = AroundCommands(before=words[0], after=words[1], timeout_seconds=seconds)
        return Around(commands=commands, runner=SystemRunner(), target=TARGET)

    def test_both_know_what_it_is_about(self, tmp_path: Path) -> None:
        """The database is in the environment of both, and the result in that of the second."""
        out = tmp_path / "out"
        line = f"echo $DD_DATABASE_NAME $PGPASSWORD $KEKKAI_RESULT $KEKKAI_BACKUP_ID >>{out}"
        wrapped = self.commands(before=line, after=line)
        with within(wrapped):
            wrapped.note(result="succeeded", backup_id="full_1")
        assert out.read_text().splitlines() == ["defectdojo hunter22 failed", "defectdojo hunter22 succeeded full_1"]

    def test_a_failure_before_it_prevents_the_work(self, tmp_path: Path) -> None:
        """The second command runs all the same: the first one may have stopped the portal half way."""
        wrapped = self.commands(before="echo no; exit 7", after=f"echo $KEKKAI_RESULT >{tmp_path}/out")
        with pytest.raises(CommandFailedError, match="BACKUP_BEFORE_COMMAND ended with 7: no"), within(wrapped):
            pytest.fail("the work was begun")
        assert (tmp_path / "out").read_text() == "failed\n"

    def test_a_failure_after_it_is_a_warning(self) -> None:
        """The work is done by then."""
        wrapped = self.commands(after="echo still busy >&2; exit 1")
        with within(wrapped):
            wrapped.note(result="succeeded")
        assert wrapped.warnings == ["BACKUP_AFTER_COMMAND ended with 1: still busy"]

    def test_the_work_fails(self, tmp_path: Path) -> None:
        """The second command knows of it, also where the work is interrupted."""
        for error in (ValueError("disk full"), KeyboardInterrupt()):
            wrapped = self.commands(after=f"echo $KEKKAI_RESULT $KEKKAI_ERROR >{tmp_path}/out")
            with pytest.raises(type(error)), within(wrapped):
                wrapped.note(result="succeeded")
                raise error
            assert (tmp_path / "out").read_text().startswith("failed")

    def test_a_limit_of_time(self) -> None:
        """One that hangs is ended, and so the work does not start."""
        with pytest.raises(CommandFailedError, match="was stopped after"), within(self.commands("sleep 600", "", 0.3)):
            pytest.fail("the work was begun")


def test_it_is_ended_with_us(tmp_path: Path) -> None:
    """A command does not outlive the process that started it, even one that is killed."""
    import signal
    import subprocess

    script = (
        "from portal.ops.runtime.commands import run_command\n"
        "from portal.ops.runtime.process import SystemRunner\n"
        f"command = ['sh', '-c', 'echo $$ >{tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; exec sleep 600']\n"
        "run_command(SystemRunner(), command, environment={'PATH': '/usr/bin:/bin'}, timeout_seconds=600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    while not (tmp_path / "pid").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert ends_soon(int((tmp_path / "pid").read_text()))
