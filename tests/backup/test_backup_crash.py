"""A backup that is killed, at any instant: what is left on the disk, in the server, among the processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, ClassVar
from uuid import uuid4

import pytest

from portal.ops.verify.verify import Verifier
from tests.support.crashes import SEED, endless_dump, lock_is_free, rounds
from tests.support.portal import BIG_TABLE, Portal, execute, portal_in, succeeded
from tests.support.servers import no_session_soon
from tests.support.waiting import LONG_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from demo.postgres import EmbeddedPostgres
    from portal.ops.settings.load import DatabaseTarget

ROOT = Path(__file__).parents[2]
KILLS = rounds(12, in_long=100)
SHARES = 4
"""The instants are shared out among so many tests, so that they run side by side."""

MARK = "PGSSLTESTMARK"
"""A variable that every process of a backup inherits, pg_dump too: libpq's names begin with PG."""


class Run:
    """A backup command in a process of its own."""

    started: ClassVar[list[Run]] = []

    def __init__(self, portal: Portal, kind: str = "full", **environ: str) -> None:
        self._mark = uuid4().hex
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-m", "tools.backup", kind],
            cwd="/",
            env=portal.environ(**{MARK: self._mark}, **environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(self)

    def processes(self) -> list[int]:
        """Every process that belongs to it."""
        mark = f"{MARK}={self._mark}".encode()
        found = []
        for environment in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark in environment.read_bytes():
                    found.append(int(environment.parent.name))
            except OSError:
                continue
        return found

    def all_ended_soon(self, seconds: float = LONG_SECONDS) -> bool:
        """Wait for the end of every process that belongs to it."""
        deadline = time.monotonic() + seconds
        while self.processes():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def end(self, number: signal.Signals) -> tuple[int, str, str]:
        """Send a signal to the main process alone; exit code and output."""
        self.process.send_signal(number)
        output, complaints = self.process.communicate(timeout=LONG_SECONDS)
        return self.process.returncode, output, complaints


MOST_ATTEMPTS = 10
"""So often a backup is begun that may be done before a signal comes, where this process has to wait for its turn."""


@pytest.fixture(autouse=True)
def signals_count() -> Iterator[None]:
    """No signal is ignored from the start, as it is where a shell runs the tests in the background."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def portal(tmp_path: Path, portal_database: DatabaseTarget, postgres: EmbeddedPostgres) -> Iterator[Portal]:
    """A portal that takes a moment to back up."""
    found = portal_in(tmp_path, portal_database, postgres)
    execute(found.database, BIG_TABLE)
    noise = Random(SEED)
    for number in range(40):
        (found.uploads / f"noise-{number}").write_bytes(noise.randbytes(200_000))
    yield found
    while Run.started:
        Run.started.pop().process.kill()
    assert no_session_soon(postgres, found.database)


def visible(portal: Portal) -> set[str]:
    """What a person sees in the repository."""
    return {name for name in portal.left() if not name.startswith(".")}


def clear(portal: Portal) -> None:
    """Remove everything from the repository but its lock, which has its id."""
    for path in portal.archives.iterdir():
        if path.name != ".lock":
            path.unlink()


def usual_seconds(portal: Portal) -> float:
    """How long a backup takes that is left alone."""
    started = time.monotonic()
    run = Run(portal)
    assert run.process.wait(60) == 0
    run.process.communicate()
    clear(portal)
    return time.monotonic() - started


@pytest.mark.parametrize("share", range(SHARES))
def test_a_kill_leaves_nothing_or_a_whole_archive(portal: Portal, postgres: EmbeddedPostgres, share: int) -> None:
    """After SIGKILL of the main process at a random instant everything of it ends, and what is visible is whole."""
    instants = Random(SEED * 1000 + share)
    usual = usual_seconds(portal)
    for _ in range(KILLS // SHARES):
        run = Run(portal)
        time.sleep(instants.uniform(0.1, usual))
        run.end(signal.SIGKILL)
        assert run.all_ended_soon()
        assert no_session_soon(postgres, portal.database)
        assert lock_is_free(portal)
        archives = {name for name in visible(portal) if name.endswith(".tar.gz")}
        for name in archives:
            assert Verifier().verify(portal.archives / name).intact
        assert len(archives) <= 1
        # A sidecar comes before its archive: alone it is the one thing that a crash may leave to be seen.
        assert len(visible(portal) - archives) <= 1
        succeeded(portal.job().backup_full())
        # What a small write that was killed leaves behind goes a day later.
        assert not [name for name in portal.left() if name.startswith(".") and not name.endswith(".tmp")]
        assert len(visible(portal)) == 2 * len(archives) + 2
        clear(portal)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("phase", ["dump", "files", "any"])
def test_a_signal_takes_back_what_was_begun(portal: Portal, number: signal.Signals, phase: str) -> None:
    """Whoever asks the command to end finds nothing of it, in no phase, and is told."""
    environ = {"BACKUP_PG_BIN_DIR": str(endless_dump(portal))} if phase == "dump" else {}
    for _ in range(MOST_ATTEMPTS):
        run = Run(portal, "media" if phase == "files" else "full", **environ)
        wait_for(portal.left)
        if phase == "dump":
            wait_for(lambda run=run: any(b"sleep\0" in arguments(pid) for pid in run.processes()))  # type: ignore[misc]
        elif phase == "any":
            time.sleep(Random(number).uniform(0, 0.05))
        code, output, complaints = run.end(number)
        if code != 0:
            break
        clear(portal)  # it was done before the signal came
    assert code == 128 + number
    assert run.all_ended_soon()
    assert portal.left() == set()
    assert lock_is_free(portal)
    assert f'"error": "stopped by {number.name}: unfinished work has been undone\\n  hint: Start it' in output
    assert f"error: stopped by {number.name}" in complaints
    assert "Traceback" not in complaints


def wait_for(condition: Callable[[], object]) -> None:
    """Look until it is so."""
    deadline = time.monotonic() + LONG_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def arguments(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_impatience_does_not_stop_the_cleaning_up(portal: Portal) -> None:
    """A second signal right after the first changes nothing."""
    for _ in range(MOST_ATTEMPTS):
        run = Run(portal)
        wait_for(portal.left)
        run.process.send_signal(signal.SIGINT)
        run.process.send_signal(signal.SIGTERM)
        code, _, complaints = run.end(signal.SIGTERM)
        if code != 0:
            break
        clear(portal)
    assert code in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    assert "Traceback" not in complaints
    assert portal.left() == set()


def test_a_backup_that_ignores_the_hangup_goes_on(portal: Portal) -> None:
    """Started by nohup, a backup outlives the terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run = Run(portal)
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_for(portal.left)
    code, _, _ = run.end(signal.SIGHUP)
    assert code == 0
    assert len(visible(portal)) == 2


def test_a_helper_that_is_killed_fails_the_backup(portal: Portal) -> None:
    """A helper process that the kernel ended for want of memory is an error, no wait for ever, and leaves nothing."""
    (portal.uploads / "tenant-001" / "large").write_bytes(Random(SEED).randbytes(80 << 20))
    run = Run(portal, "media")

    def helpers() -> list[int]:
        return [pid for pid in run.processes() if b"packer import main" in arguments(pid)]

    wait_for(helpers)
    for pid in helpers():
        os.kill(pid, signal.SIGKILL)
    output, _ = run.process.communicate(timeout=LONG_SECONDS)
    assert run.process.returncode == 1
    assert "a helper process of the backup ended unexpectedly" in output
    assert portal.left() == set()
