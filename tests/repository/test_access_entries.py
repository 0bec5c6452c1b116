"""The lines of an access log, each by itself: their format, their limits, and who gets them."""

from __future__ import annotations

import fcntl
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.errors import RepositoryError
from portal.ops.repository import access_log
from portal.ops.repository.access_entry import START, AccessEntry, Found, canonical, decode, sealed
from portal.ops.repository.access_log import AccessLog, Action, Outcome, Witness, process_user, sudo_user
from portal.ops.repository.repository import Repository
from tests.support.access_logs import NOW, add
from tests.support.events import Events

if TYPE_CHECKING:
    from pathlib import Path

LINE = (
    b'{"action":"backup","details":{"bytes":1},"hash":"%s","host":"portal","moment":"2026-11-22T12:00:00+00:00",'
    b'"number":1,"outcome":"done","previous":"%s","subject":"\\u00fc","version":1,"who":"ada"}'
)
HASH = b"c82d7a4c2303866eba7ffa2e0cd7c3946917c40c6616a00c40b9c731a735acdf"


@pytest.fixture
def log(tmp_path: Path) -> AccessLog:
    """An empty log."""
    return AccessLog(Repository(tmp_path))


def entry(**facts: Any) -> AccessEntry:
    known = {"number": 1, "moment": NOW, "who": "ada", "host": "portal", "action": Action.BACKUP, "previous": START}
    return AccessEntry(**{**known, "subject": "ü", "outcome": Outcome.DONE, "details": {"bytes": 1}, **facts})


class TestLines:
    def test_the_format_is_frozen(self) -> None:
        """A line as the first release writes it: sorted, without spaces, in ASCII, without marks that are absent."""
        line = LINE % (HASH, START.encode())
        assert canonical(sealed(entry()).to_dict()) == line
        assert decode(line) == sealed(entry())
        marked = sealed(entry(torn="ab", found=Found.REPLACED))
        assert (marked.to_dict()["torn"], marked.to_dict()["found"]) == ("ab", "replaced")
        assert decode(canonical(marked.to_dict())) == marked

    def test_what_cannot_be_a_line(self) -> None:
        """One without a number, or of another version."""
        facts = sealed(entry()).to_dict()
        assert decode(canonical(facts)) is not None
        for change in ({"number": 0}, {"number": -1}, {"version": 2}, {"version": 0}, {"action": "sing"}):
            assert decode(canonical({**facts, **change})) is None

    def test_the_last_part_of_a_log(self, log: AccessLog) -> None:
        """Whole lines only; all of it where it is small, nothing where it is not there."""
        assert log.recent() == []
        for number in range(5):
            add(log, str(number))
        size = log.path.stat().st_size
        each = log.path.read_bytes().splitlines(keepends=True)
        assert [one.subject for one in log.recent()] == list("01234")
        assert [one.subject for one in log.recent(size)] == list("01234")
        assert [one.subject for one in log.recent(size - 1)] == list("1234")
        assert [one.subject for one in log.recent(len(each[4]) + len(each[3]) + 1)] == list("34")
        assert log.recent(10) == []
        log.path.unlink()
        log.path.mkdir()
        for read in (log.recent, lambda: list(log.entries()), log.verify):
            with pytest.raises(RepositoryError, match=f"cannot read {log.path}: is a directory"):
                read()


class TestWriting:
    def test_a_log_that_stays_locked(self, log: AccessLog, monkeypatch: pytest.MonkeyPatch) -> None:
        """The work goes on without its line; that and who has the lock is logged."""
        events = Events(monkeypatch, "portal.ops.repository.access_log")
        monkeypatch.setattr(access_log, "_LOCK_SECONDS", 0.0)
        add(log, "first")
        before = len(os.listdir("/proc/self/fd"))
        with log.path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            add(log, "second")
        assert [one.subject for one in log.entries()] == ["first"]
        ((level, event, facts),) = events.all
        assert (level, event, facts["action"]) == ("warning", "access_unlogged", "backup")
        assert f"{log.path} is locked by process {os.getpid()}" in facts["error"]
        assert len(os.listdir("/proc/self/fd")) == before

    def test_everybody_who_listens_gets_each_line(self, tmp_path: Path) -> None:
        """With its number, or without one where the log could not be written; nothing unknown is in it."""
        heard: list[AccessEntry] = []
        for place in (tmp_path, tmp_path / "absent"):
            witness = Witness(repository=Repository(place), who="ada", clock=lambda: NOW, observer=heard.append)
            witness.saw(Action.PIN, "x", Outcome.FAILED, error="bad\n  hint: Do this.", reason="", size=None, count=0)
        logged, unlogged = heard
        assert [logged] == list(AccessLog(Repository(tmp_path)).entries())
        assert logged.details == unlogged.details == {"error": "bad", "hint": "Do this.", "count": 0}
        assert (logged.number, unlogged.number, unlogged.previous, unlogged.hash) == (1, 0, START, "")
        assert (unlogged.subject, unlogged.outcome, unlogged.host) == ("x", Outcome.FAILED, logged.host)

    def test_how_long_it_took_is_in_the_line(self, tmp_path: Path) -> None:
        """In seconds, with what was noted meanwhile."""
        started = time.monotonic()
        with Witness(repository=Repository(tmp_path), who="ada").watching(Action.PIN, "x", reason="r") as seen:
            seen.note(Outcome.REFUSED, more=1)
            seen.subject = "y"
        (line,) = AccessLog(Repository(tmp_path)).entries()
        seconds = line.details["seconds"]
        assert 0 <= seconds <= round(time.monotonic() - started, 3) + 0.001
        assert seconds == round(seconds, 3)
        assert (line.subject, line.outcome, line.details["reason"], line.details["more"]) == ("y", "refused", "r", 1)

    @pytest.mark.parametrize(("number", "said"), [(99_999, "odd"), ("x", "odd"), (True, "stopped by SIGHUP")])
    def test_a_number_that_is_no_signal(self, tmp_path: Path, number: object, said: str) -> None:
        """Other exceptions have numbers too: their text counts, with what to do next."""
        error = ArithmeticError("odd")
        error.number = number  # type: ignore[attr-defined]
        with (
            pytest.raises(ArithmeticError),
            Witness(repository=Repository(tmp_path), who="ada").watching(Action.PIN, "x"),
        ):
            raise error
        (line,) = AccessLog(Repository(tmp_path)).entries()
        assert (line.details["error"], bool(line.details["hint"])) == (said, True)

    def test_a_user_without_a_name_has_a_number(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As in a container; who is nobody's sudo is nobody."""
        monkeypatch.setattr(os, "getuid", lambda: 54_321)
        assert process_user() == "54321"
        assert sudo_user({"SUDO_USER": ""}) is None


class TestChecks:
    def test_a_first_line_needs_no_note_of_it(self, log: AccessLog) -> None:
        """A cut before it would leave nothing; a second one does."""
        add(log, "first")
        log.head_path.unlink()
        assert log.verify().faults == ()
        add(log, "second")
        assert [one.found for one in log.entries()] == [None, None]
        log.head_path.unlink()
        assert log.verify().faults == (".access.head is missing, so that a cut at the end cannot be noticed",)
        add(log, "third")
        assert [one.found for one in log.entries()] == [None, None, Found.HEAD_MISSING]

    def test_what_is_found_is_told(self, log: AccessLog) -> None:
        """As text, with the line and the entry, and as JSON."""
        for number in range(3):
            add(log, str(number))
        whole, head = log.path.read_bytes(), log.head_path.read_bytes()
        each = whole.splitlines(keepends=True)
        log.path.write_bytes(whole + each[1])
        assert log.verify().faults[0] == "line 4: entry 2 after 3 was put in, or moved"
        forged = canonical(
            sealed(replace(list(AccessLog(Repository(log.path.parent)).entries())[2], who="eve")).to_dict()
        )
        log.path.write_bytes(each[0] + each[1] + forged + b"\n")
        assert log.verify().faults == ("line 3: entry 3 is not the one that was written, by .access.head",)
        log.path.write_bytes(whole)
        add(log, "3")
        last = list(log.entries())[-1]
        log.head_path.write_bytes(head)
        assert log.verify().to_dict() == {
            "intact": True,
            "entries": 4,
            "last_number": 4,
            "last_hash": last.hash,
            "faults": [],
            "notes": [".access.head knows the entries up to 3 only: a crash or a full disk kept it back"],
        }
        log.path.write_bytes(whole + b"torn")
        assert log.verify().notes == ("line 4, the last one, was torn by a crash",)
        add(log, "after")
        assert log.verify().notes == ("line 4 was torn by a crash; the next says so, and goes on from the one before",)

    def test_no_more_than_a_hundred_faults_are_told(self, log: AccessLog) -> None:
        """A log of garbage has as many as lines."""
        log.path.write_bytes(b"garbage\n" * 150)
        assert len(log.verify().faults) == 100
