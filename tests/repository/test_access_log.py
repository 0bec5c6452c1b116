"""The access log can only grow: whatever else becomes of it is found and named, and nothing is made up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from billiard.exceptions import SoftTimeLimitExceeded

from portal.ops.errors import BusyError, NotIntactError, OpsError, RepositoryError
from portal.ops.repository import access_log
from portal.ops.repository.access_entry import AccessEntry, canonical, sealed
from portal.ops.repository.access_entry import decode as decoded
from portal.ops.repository.access_log import HEAD_NAME, NAME, AccessLog, Action, Outcome, Witness, sudo_user
from portal.ops.repository.repository import Repository
from tests.support.access_logs import NOW, add
from tools.terminal import StoppedError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def log(tmp_path: Path) -> AccessLog:
    """A log of six entries."""
    found = AccessLog(Repository(tmp_path))
    for number in range(6):
        add(found, f"full_2026010{number}_000000_abcdef")
    return found


def decode(line: bytes) -> AccessEntry:
    found = decoded(line)
    assert found is not None
    return found


def lines(log: AccessLog) -> list[bytes]:
    return log.path.read_bytes().splitlines(keepends=True)


class TestWriting:
    def test_entries_come_back_as_they_were_written(self, tmp_path: Path) -> None:
        """What was appended is read again, in order, with all its details."""
        log = AccessLog(Repository(tmp_path))
        add(log, "first", error="ünd\n")
        add(log, "second")
        first, second = log.entries()
        assert (first.number, first.subject, first.details, first.moment) == (1, "first", {"error": "ünd\n"}, NOW)
        assert second.previous == first.hash

    def test_files_are_for_their_owner_alone(self, log: AccessLog) -> None:
        """Nobody else may read who did what."""
        assert log.path.stat().st_mode & 0o777 == 0o600
        assert log.head_path.stat().st_mode & 0o777 == 0o600

    def test_processes_at_once_make_one_chain(self, tmp_path: Path) -> None:
        """Appends of several processes neither tear nor overtake one another."""
        program = (
            "import sys\nfrom pathlib import Path\nfrom portal.ops.repository.access_log import AccessLog\n"
            "from portal.ops.repository.repository import Repository\nfrom tests.support.access_logs import add\n"
            "log = AccessLog(Repository(Path(sys.argv[1])))\n[add(log, str(n)) for n in range(20)]"
        )
        running = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) for _ in range(3)]
        assert [process.wait() for process in running] == [0, 0, 0]
        report = AccessLog(Repository(tmp_path)).verify()
        assert (report.intact, report.entries, report.notes) == (True, 60, ())

    def test_an_append_reads_the_end_only(self, log: AccessLog, monkeypatch: pytest.MonkeyPatch) -> None:
        """As much as it takes to find the last line that was noted, and never more than so much."""
        monkeypatch.setattr(access_log, "_TAIL_BYTES", 1000)
        monkeypatch.setattr(access_log, "_MOST_TAIL_BYTES", 20_000)
        first = (log.head_path.read_bytes(), log.path.stat().st_size)
        for number in range(500):
            add(log, str(number))
        read, seen = os.pread, []

        def pread(descriptor: int, length: int, at: int) -> bytes:
            seen.append(length)
            return read(descriptor, length, at)

        monkeypatch.setattr(os, "pread", pread)
        add(log, "usual")
        assert max(seen) <= 1000
        seen.clear()
        log.head_path.write_bytes(first[0])
        add(log, "behind")
        assert max(seen) <= 64_000 < log.path.stat().st_size
        report = log.verify()
        assert report.entries == 508
        assert report.intact

    def test_the_newest_lines_are_read_first_and_no_others(
        self, log: AccessLog, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whatever block a line begins in; an invalid line is passed over."""
        monkeypatch.setattr(access_log, "_TAIL_BYTES", 1000)
        for number in range(100):
            add(log, "x" * number)
        with log.path.open("ab") as file:
            file.write(b"torn\n")
        add(log, "last")
        assert list(log.newest_first()) == list(log.entries())[::-1]
        read, seen = os.pread, []

        def pread(descriptor: int, length: int, at: int) -> bytes:
            seen.append(length)
            return read(descriptor, length, at)

        monkeypatch.setattr(os, "pread", pread)
        assert next(log.newest_first()).subject == "last"
        assert sum(seen) <= 1000
        assert list(AccessLog(Repository(log.path.parent / "absent")).newest_first()) == []

    def test_a_log_that_cannot_be_read_is_an_error_from_its_end_too(self, log: AccessLog) -> None:
        """Beat would else take every slot for one whose work was never done."""
        log.path.unlink(missing_ok=True)
        log.path.mkdir()
        with pytest.raises(RepositoryError, match="cannot read"):
            next(log.newest_first())

    def test_what_cannot_be_written_breaks_nothing(self, tmp_path: Path) -> None:
        """Where there is no directory for the log, the work that it logs goes on."""
        log = AccessLog(Repository(tmp_path / "absent"))
        assert log.append(Action.PRUNE, "x", Outcome.DONE, who="ada", host="h", moment=NOW) is None

    def test_a_full_disk_leaves_no_piece_of_a_line(self, log: AccessLog, tmp_path: Path) -> None:
        """A line that does not fit is rolled back whole."""
        program = (
            "import resource, signal, sys\nfrom pathlib import Path\n"
            "from portal.ops.repository.access_log import AccessLog\n"
            "from portal.ops.repository.repository import Repository\nfrom tests.support.access_logs import add\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "size = (Path(sys.argv[1]) / '.access.jsonl').stat().st_size\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, size + 50))\n"
            "add(AccessLog(Repository(Path(sys.argv[1]))), 'more')"
        )
        before = log.path.read_bytes()
        subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, capture_output=True)
        assert log.path.read_bytes() == before
        add(log, "after")
        assert log.verify().intact


class TestTampering:
    def test_an_untouched_log_is_intact(self, log: AccessLog) -> None:
        """Nothing is found where nothing was done."""
        report = log.verify()
        assert (report.faults, report.notes, report.entries, report.last[0]) == ((), (), 6, 6)

    @pytest.mark.parametrize("line", range(6))
    def test_a_changed_line(self, log: AccessLog, line: int) -> None:
        """A line that says something else than it did is named."""
        found = lines(log)
        found[line] = found[line].replace(b'"ada"', b'"bob"')
        log.path.write_bytes(b"".join(found))
        assert f"line {line + 1}: entry {line + 1} was changed" in log.verify().faults[0]

    def test_a_line_with_something_added(self, log: AccessLog) -> None:
        """A key that was not there is a change too."""
        found = lines(log)
        found[2] = found[2].replace(b'{"action"', b'{"aaa":1,"action"')
        log.path.write_bytes(b"".join(found))
        assert "line 3" in log.verify().faults[0]

    def test_a_changed_line_with_a_hash_that_fits(self, log: AccessLog) -> None:
        """Who makes a new hash for a changed line breaks the link of the next one."""
        from dataclasses import replace

        from portal.ops.repository.access_entry import canonical, sealed

        found = lines(log)
        forged = sealed(replace(list(log.entries())[3], who="bob"))
        found[3] = canonical(forged.to_dict()) + b"\n"
        log.path.write_bytes(b"".join(found))
        assert log.verify().faults == ("line 5: entry 5 does not follow the one before: one was exchanged",)

    @pytest.mark.parametrize("line", range(5))
    def test_a_removed_line(self, log: AccessLog, line: int) -> None:
        """A gap is named."""
        found = lines(log)
        log.path.write_bytes(b"".join(found[:line] + found[line + 1 :]))
        assert log.verify().faults == (f"line {line + 1}: entry {line + 1} is missing before it",)

    def test_lines_that_changed_places(self, log: AccessLog) -> None:
        """Another order is found."""
        found = lines(log)
        found[2], found[3] = found[3], found[2]
        log.path.write_bytes(b"".join(found))
        assert not log.verify().intact

    def test_a_line_that_was_put_in(self, log: AccessLog) -> None:
        """A copy of a line, or garbage with an end, was not written by us."""
        found = lines(log)
        log.path.write_bytes(b"".join([*found[:3], found[1], *found[3:]]))
        assert not log.verify().intact
        log.path.write_bytes(b"".join([*found[:3], b"garbage\n", *found[3:]]))
        assert log.verify().faults == ("line 4 is invalid: it was changed or put in",)

    def test_an_end_that_is_cut_off(self, log: AccessLog) -> None:
        """What is missing at the end is known from the head."""
        log.path.write_bytes(b"".join(lines(log)[:4]))
        assert log.verify().faults == ("the log is truncated: entries 5 to 6 are missing",)

    def test_a_cut_stays_to_be_seen(self, log: AccessLog) -> None:
        """Entries after a cut do not close the gap."""
        log.path.write_bytes(b"".join(lines(log)[:4]))
        add(log, "later")
        assert log.verify().faults == ("line 5: entries 5 to 6 are missing before it",)

    def test_a_log_that_is_gone(self, log: AccessLog) -> None:
        """A log that was removed as a whole does not start again at 1."""
        log.path.unlink()
        assert "entries 1 to 6" in log.verify().faults[0]
        add(log, "later")
        assert "entries 1 to 6" in log.verify().faults[0]

    @pytest.mark.parametrize("head", [b"", b"{}", b"[1]", b'{"number": "x", "hash": 1}', b"\xff"])
    def test_a_head_that_is_gone_or_damaged(self, log: AccessLog, head: bytes) -> None:
        """Without a head the log says that a cut could not be noticed, and goes on."""
        log.head_path.write_bytes(head)
        assert HEAD_NAME in log.verify().faults[0]
        log.head_path.unlink()
        assert HEAD_NAME in log.verify().faults[0]
        add(log, "later")
        assert "a cut could not be noticed" in log.verify().faults[0]

    def test_a_last_line_that_was_replaced_stays_visible(self, log: AccessLog) -> None:
        """Also one that was sealed anew, and however much is appended after it."""
        *others, last = lines(log)
        forged = sealed(replace(decode(last), who="mallory"))
        log.path.write_bytes(b"".join(others) + canonical(forged.to_dict()) + b"\n")
        assert len(log.verify().faults) == 1
        for subject in ("later", "and later"):
            add(log, subject)
            faults = log.verify().faults
            assert "entry 7 does not follow the one before: one was exchanged" in faults[0]
            assert "not the one that had been written" in faults[1]

    def test_lines_that_were_replaced_before_a_head_that_is_behind(self, log: AccessLog) -> None:
        """The entry that was written down is looked for, also where others have come after it."""
        *others, last = lines(log)
        forged = sealed(replace(decode(last), who="mallory"))
        seventh = sealed(replace(forged, number=7, previous=forged.hash))
        log.path.write_bytes(b"".join([*others, *(canonical(one.to_dict()) + b"\n" for one in (forged, seventh))]))
        add(log, "later")
        assert "not the one that had been written" in log.verify().faults[0]

    def test_lines_that_were_put_in_at_the_end_are_noted(self, log: AccessLog) -> None:
        """They may have been kept back by a crash; that they were there stays known."""
        seventh = sealed(replace(decode(lines(log)[-1]), number=7, previous=decode(lines(log)[-1]).hash))
        log.path.write_bytes(log.path.read_bytes() + canonical(seventh.to_dict()) + b"\n")
        add(log, "later")
        add(log, "and later")
        report = log.verify()
        assert report.intact
        assert "were not all written down" in report.notes[0]


class TestCrashes:
    @pytest.mark.parametrize("left", [1, 30, -2, -1])
    def test_a_torn_last_line_is_no_tampering(self, log: AccessLog, left: int) -> None:
        """A crash in the middle of the last line is explained, and the chain goes on after it."""
        found = lines(log)
        head = log.head_path.read_bytes()
        add(log, "torn")
        log.path.write_bytes(b"".join(found) + lines(log)[-1][:left])
        log.head_path.write_bytes(head)
        assert log.verify().intact
        add(log, "after")
        add(log, "and on")
        report = log.verify()
        assert report.intact
        assert [entry.subject for entry in log.entries()][-2:] == ["after", "and on"]

    def test_a_torn_line_that_was_changed_later(self, log: AccessLog) -> None:
        """What was torn is known by its hash, so nothing can be hidden in its place."""
        with log.path.open("ab") as file:
            file.write(b'{"action":"ba')
        add(log, "after")
        log.path.write_bytes(log.path.read_bytes().replace(b'{"action":"ba\n', b'{"action":"pr\n'))
        assert log.verify().faults == ("line 7 is invalid: it was changed or put in",)

    def test_a_torn_line_that_was_removed_later(self, log: AccessLog) -> None:
        """That something was torn there stays known."""
        with log.path.open("ab") as file:
            file.write(b'{"action":"ba')
        add(log, "after")
        log.path.write_bytes(log.path.read_bytes().replace(b'{"action":"ba\n', b""))
        assert log.verify().faults == ("line 7: the torn line before it is missing",)

    def test_a_crash_before_the_head_was_written(self, log: AccessLog) -> None:
        """A head that is one entry behind is explained."""
        head = log.head_path.read_bytes()
        add(log, "seventh")
        log.head_path.write_bytes(head)
        report = log.verify()
        assert (report.intact, len(report.notes)) == (True, 1)

    def test_garbage_is_never_an_exception(self, tmp_path: Path) -> None:
        """Any bytes can be read, verified and appended to."""
        for garbage in (b"\n\n", b"\xff\xfe", b"[]\n", b"{}\n", b'{"number": 1e999}\n', b"[" * 100_000, b"0\x00" * 99):
            (tmp_path / NAME).write_bytes(garbage)
            (tmp_path / HEAD_NAME).unlink(missing_ok=True)
            log = AccessLog(Repository(tmp_path))
            assert list(log.entries()) == []
            log.verify()
            add(log, "x")
            assert [entry.number for entry in log.entries()] == [1]


class TestWitness:
    @pytest.mark.parametrize(
        ("error", "outcome", "said"),
        [
            (NotIntactError("a", hint="b"), "failed", "a"),
            (BusyError("a"), "refused", "a"),
            (KeyboardInterrupt(), "failed", "stopped by SIGINT"),
            (StoppedError(signal.SIGTERM), "failed", "stopped by SIGTERM"),
            (SystemExit(-253), "failed", "the process was asked to end"),
            (SoftTimeLimitExceeded(), "failed", "it took longer than a task may"),
            (ValueError(), "failed", "ValueError"),
        ],
    )
    def test_what_is_raised_is_an_outcome(self, tmp_path: Path, error: BaseException, outcome: str, said: str) -> None:
        """Failures, refusals and signals are written down, each with what to do next, and go on."""
        witness = Witness(repository=Repository(tmp_path), who="ada", clock=lambda: NOW)
        with pytest.raises(type(error)), witness.watching(Action.VERIFY, "latest"):
            raise error
        (entry,) = AccessLog(Repository(tmp_path)).entries()
        assert (entry.outcome, entry.who) == (outcome, "ada")
        assert entry.details["error"] == said
        if isinstance(error, OpsError):
            assert entry.details.get("hint", "") == error.hint
        else:
            assert entry.details["hint"]

    def test_the_user_of_the_process_by_default(self, tmp_path: Path) -> None:
        """Without a name, the process's own user is who did it."""
        Witness(repository=Repository(tmp_path)).saw(Action.PIN, "x", Outcome.DONE)
        (entry,) = AccessLog(Repository(tmp_path)).entries()
        assert entry.who == __import__("pwd").getpwuid(os.getuid()).pw_name

    def test_sudo_knows_the_person(self) -> None:
        """Behind sudo, the person is the one who called it."""
        assert sudo_user({"SUDO_USER": "ada"}) == "ada"
        assert sudo_user({}) is None


@pytest.mark.parametrize(
    ("error", "text"),
    [
        ("no room\n  hint: Make some.", "no room"),
        ("no room", "no room"),
        ("two\nlines", "two\nlines"),
        ("", ""),
        (None, ""),
    ],
)
def test_an_error_in_brief_has_no_hint(error: str | None, text: str) -> None:
    """The hint is for whoever started it."""
    assert access_log.brief(error) == text


def test_what_is_a_refusal() -> None:
    """Wrong usage, a missing confirmation and somebody else's lock, by their exit codes; all others are failures."""
    outcomes = {code: Outcome.of(code) for code in (-9, 0, 1, 2, 3, 4, 5, 6, 130)}
    assert [code for code, outcome in outcomes.items() if outcome is Outcome.DONE] == [0]
    assert [code for code, outcome in outcomes.items() if outcome is Outcome.REFUSED] == [2, 3, 5]
    assert {outcomes[code] for code in (-9, 1, 4, 6, 130)} == {Outcome.FAILED}
