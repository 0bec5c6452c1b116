"""What the watcher has to send, while the broker answers and while it does not: without a kernel or a broker."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from beat.watcher import outbox as module
from beat.watcher.change_set import ChangeSet
from beat.watcher.debounce import MOST_PATHS
from beat.watcher.outbox import Outbox
from worker.errors import BrokerAwayError
from worker.operations import BACKUP_MEDIA

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from worker.operations import Operation

NOW = datetime(2026, 11, 22, 9, 10, 5, tzinfo=UTC)


class Office:
    """An outbox with everything around it: workers that note what they get, or are away, and clocks that a test sets.

    Arguments:
        repository: where unsent changes are kept.
    """

    def __init__(self, repository: Path) -> None:
        self.kept = repository / ".watch" / "dirty.json"
        self.sent: list[tuple[str, Any, bool]] = []
        self.asked: list[str] = []
        self.away_after = 1000
        self.busy = False
        self.seconds = 0.0
        self.outbox = Outbox(repository, self, lambda: self.now, lambda: 50.0 + self.seconds)

    @property
    def now(self) -> datetime:
        """The time."""
        return NOW + timedelta(seconds=self.seconds)

    def submit(self, operation: Operation, arguments: Mapping[str, Any], task_id: str) -> None:
        """Note a task, or be away."""
        assert operation is BACKUP_MEDIA
        if len(self.sent) >= self.away_after:
            raise BrokerAwayError("the broker does not answer", hint="none")
        self.sent.append((task_id, arguments.get("changed"), arguments["incremental"]))

    def is_at_work(self, task_id: str) -> bool:
        """Whatever the test says."""
        self.asked.append(task_id)
        if len(self.sent) >= self.away_after:
            raise BrokerAwayError("the broker does not answer", hint="none")
        return self.busy

    def on_disk(self) -> Any:
        """What would be sent after the next start."""
        return json.loads(self.kept.read_text()) if self.kept.exists() else None


@pytest.fixture
def office(tmp_path: Path) -> Office:
    (tmp_path / "archives").mkdir()
    return Office(tmp_path / "archives")


def test_changes_are_sent_before_a_scan_and_nothing_is_kept(office: Office, caplog: pytest.LogCaptureFixture) -> None:
    """Each once; it is logged, and no file is written while the broker answers."""
    caplog.set_level("INFO")
    office.outbox.want_scan()
    office.seconds = 5
    office.outbox.want_scan()
    office.outbox.put(frozenset({"b", "a"}))
    office.outbox.put(frozenset())
    assert office.outbox.dirty_since == NOW
    office.outbox.post()
    office.outbox.post()
    scan = ChangeSet(moment=NOW, is_scan=True)
    changes = ChangeSet(moment=office.now, paths=frozenset({"a", "b"}))
    assert office.sent == [(changes.task_id, ["a", "b"], True), (scan.task_id, None, True)]
    assert office.outbox.dirty_since is None and office.outbox.again_at is None and office.on_disk() is None
    assert not office.kept.parent.exists()
    said = [f"task_id='{changes.task_id}' paths=2 scan=False", f"task_id='{scan.task_id}' paths=0 scan=True"]
    assert [line.partition("event='changes_sent' ")[2] for line in caplog.text.splitlines()] == said


def test_without_changes_nothing_is_dirty(office: Office) -> None:
    """An empty set of them is no change."""
    office.outbox.put(frozenset())
    office.outbox.post()
    assert (office.outbox.dirty_since, office.sent) == (None, [])


def test_what_cannot_be_sent_is_kept_and_sent_later(office: Office, caplog: pytest.LogCaptureFixture) -> None:
    """It is tried after a second, then two; what comes meanwhile goes with it. The outage is said once, and its end."""
    caplog.set_level("INFO")
    office.away_after = 0
    office.outbox.put(frozenset({"a"}))
    office.outbox.post()
    assert office.on_disk() == {"moment": NOW.isoformat(), "paths": ["a"], "scan": False}
    assert office.kept.read_bytes().endswith(b"\n")
    assert office.outbox.again_at == 51.0
    office.seconds = 0.9
    office.outbox.put(frozenset({"b"}))
    office.outbox.want_scan()
    office.away_after = 1000
    office.outbox.post()
    assert office.sent == []
    assert office.on_disk() == {"moment": NOW.isoformat(), "paths": ["a", "b"], "scan": True}
    assert office.outbox.dirty_since == NOW
    office.away_after, office.seconds = 0, 1.0
    office.outbox.post()
    assert office.outbox.again_at == 53.0
    office.away_after, office.seconds = 1000, 3.04
    office.outbox.post()
    assert [changed for _, changed, _ in office.sent] == [["a", "b"], None]
    assert office.sent[0][0] == ChangeSet(moment=NOW, paths=frozenset({"a", "b"})).task_id
    assert office.outbox.dirty_since is None and office.outbox.again_at is None and office.on_disk() is None
    assert caplog.text.count("broker_away") == caplog.text.count("broker_back") == 1
    assert "seconds=3.0\n" in caplog.text


def test_what_was_sent_before_the_broker_went_is_not_kept(office: Office) -> None:
    """The changes arrived, the scan did not."""
    office.away_after = 1
    office.outbox.put(frozenset({"a"}))
    office.seconds = 5
    office.outbox.want_scan()
    office.outbox.post()
    assert office.on_disk() == {"moment": office.now.isoformat(), "paths": [], "scan": True}
    office.away_after, office.seconds = 1000, 10
    office.outbox.post()
    assert [changed for _, changed, _ in office.sent] == [["a"], None]
    assert office.on_disk() is None


def test_what_is_kept_already_is_not_written_again(office: Office) -> None:
    """An outage of a night writes the file once, unless something comes."""
    office.away_after = 0
    office.outbox.put(frozenset({"a"}))
    office.outbox.post()
    before = office.kept.stat().st_ino, office.kept.stat().st_mtime_ns
    for seconds in (1, 3, 7):
        office.seconds = seconds
        office.outbox.post()
    assert (office.kept.stat().st_ino, office.kept.stat().st_mtime_ns) == before


@pytest.mark.parametrize(
    ("kept", "sent"),
    [
        (ChangeSet(moment=NOW, paths=frozenset({"a"}), is_scan=True), [["a"], None]),
        (ChangeSet(moment=NOW, paths=frozenset({"a"})), [["a"]]),
        (ChangeSet(moment=NOW, is_scan=True), [None]),
    ],
)
def test_another_process_sends_what_was_kept(
    office: Office, tmp_path: Path, kept: ChangeSet, sent: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """With the moment that it had, so as the same task; then it is not kept any more."""
    caplog.set_level("INFO")
    office.away_after = 0
    if kept.paths:
        office.outbox.put(kept.paths)
    if kept.is_scan:
        office.outbox.want_scan()
    office.outbox.post()
    assert office.on_disk() == kept.to_dict()
    later = Office(tmp_path / "archives")
    later.seconds = 3600
    later.outbox.recover()
    assert f"paths={len(kept.paths)} scan={kept.is_scan}" in caplog.text
    assert later.outbox.dirty_since == NOW
    later.outbox.post()
    assert [changed for _, changed, _ in later.sent] == sent
    assert [task_id for task_id, _, _ in later.sent] == [
        ChangeSet(moment=NOW, paths=frozenset(changed or ()), is_scan=not changed).task_id for changed in sent
    ]
    assert later.on_disk() is None


@pytest.mark.parametrize("text", ["", "[]", "7", "{}", '{"moment": 3, "paths": [], "scan": true}', "[" * 100_000])
def test_what_was_kept_and_makes_no_sense_is_passed_over(
    office: Office, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said; the scan at the start makes up for it."""
    office.kept.parent.mkdir(parents=True)
    office.kept.write_text(text)
    office.outbox.recover()
    assert office.outbox.dirty_since is None
    assert "unsent_changes_unreadable" in caplog.text


def test_where_nothing_was_kept_nothing_is_said(office: Office, caplog: pytest.LogCaptureFixture) -> None:
    """As at the first start."""
    caplog.set_level("INFO")
    office.outbox.recover()
    assert (office.outbox.dirty_since, caplog.text) == (None, "")
    office.kept.mkdir(parents=True)
    office.outbox.recover()
    assert "unsent_changes_unreadable" in caplog.text


def test_more_changes_than_a_list_may_have_are_a_scan(office: Office) -> None:
    """Those that were listed before are in it."""
    office.outbox.put(frozenset({"first"}))
    office.outbox.put(frozenset(map(str, range(MOST_PATHS - 1))))
    office.outbox.post()
    assert len(office.sent[0][1]) == MOST_PATHS
    office.outbox.put(frozenset({"first"}))
    office.outbox.put(frozenset(map(str, range(MOST_PATHS))))
    office.outbox.post()
    assert [changed for _, changed, _ in office.sent[1:]] == [None]


def test_a_scan_is_on_its_way_while_workers_have_it(office: Office) -> None:
    """Not before one was sent, nor so long after that it has to be lost, nor where nobody knows."""
    longest = timedelta(hours=1)
    office.busy = True
    assert not office.outbox.is_scan_on_its_way(longest)
    office.outbox.put(frozenset({"a"}))
    office.outbox.post()
    assert not office.outbox.is_scan_on_its_way(longest)
    assert office.asked == []
    office.outbox.want_scan()
    office.outbox.post()
    office.seconds = 3600
    assert office.outbox.is_scan_on_its_way(longest)
    assert office.asked == [ChangeSet(moment=NOW, is_scan=True).task_id]
    office.busy = False
    assert not office.outbox.is_scan_on_its_way(longest)
    office.busy, office.away_after = True, 0
    assert not office.outbox.is_scan_on_its_way(longest)
    office.away_after, office.seconds = 1000, 3601
    assert not office.outbox.is_scan_on_its_way(longest)


def test_a_repository_that_takes_nothing_is_said_once(
    office: Office, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another reason is said as well; what cannot be kept is still sent."""
    (tmp_path / "archives").rmdir()
    (tmp_path / "archives").write_text("in the way")
    office.away_after = 0
    for number in range(3):
        office.outbox.put(frozenset({f"{number}"}))
        office.outbox.post()
    assert caplog.text.count("unsent_changes_unsaved") == 1

    def full(*_: Any) -> None:
        raise OSError("full")

    monkeypatch.setattr(module, "make_hidden", full)
    office.outbox.post()
    assert caplog.text.count("unsent_changes_unsaved") == 2
    office.away_after, office.seconds = 1000, 100
    office.outbox.post()
    assert office.sent[0][1] == ["0", "1", "2"]


def test_a_file_that_cannot_be_removed_stops_nothing(office: Office, tmp_path: Path) -> None:
    """Sending it again after the next start is harmless."""
    office.away_after = 0
    office.outbox.put(frozenset({"a"}))
    office.outbox.post()
    office.kept.unlink()
    office.kept.mkdir()
    office.away_after, office.seconds = 1000, 1
    office.outbox.post()
    assert len(office.sent) == 1
    office.outbox.put(frozenset({"b"}))
    office.outbox.post()
    assert len(office.sent) == 2
