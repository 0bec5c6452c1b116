"""Notifications and the ping: what is told, when and how often, to real servers; and that no secret is in it."""

from __future__ import annotations

import fcntl
import json
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portal.ops.backup.job import BackupConfig, BackupJob
from portal.ops.drill.job import DrillJob
from portal.ops.model import BackupType
from portal.ops.monitoring.alerts import NAME, AlertSender
from portal.ops.monitoring.model import Miss
from portal.ops.monitoring.observer import Observers
from portal.ops.monitoring.send import notify, ping_url
from portal.ops.repository.access_log import START, AccessEntry, Action, Observer, Outcome, Witness
from portal.ops.repository.repository import Repository
from portal.ops.restore.config import RestoreConfig
from portal.ops.retention.prune import PruneJob
from portal.ops.settings.database_url import Secret
from portal.ops.settings.load import SETTINGS
from tests.support.histories import NOW, History
from tests.support.waiting import LONG_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.support.http_server import Server

    Step = tuple[AccessEntry | None, Sequence[Miss] | None]

HOUR = timedelta(hours=1)
LATE = Miss(target="rpo_database", what="the newest backup is 3 h old, and 2 h are allowed", mend="Make one.")
FULL = "full_20261122_020000_abcdef"
HIDDEN = "********"


def entry(
    outcome: Outcome = Outcome.FAILED, *, action: Action = Action.BACKUP, subject: str = FULL, **details: Any
) -> AccessEntry:
    return AccessEntry(
        number=1,
        moment=NOW,
        who="kekkai",
        host="portal-server",
        action=action,
        subject=subject,
        outcome=outcome,
        details=details,
        previous=START,
    )


@dataclass
class Person:
    """Somebody who is told, in a process whose clock can be set."""

    directory: Path
    hears: bool = True
    now: datetime = NOW
    heard: list[tuple[str, str]] = field(default_factory=list)

    def notices(self) -> AlertSender:
        """A new process with the same memory."""
        return AlertSender(self.directory, host="portal-server", tell=self._tell, clock=lambda: self.now, patience=0.2)

    @property
    def headlines(self) -> list[str]:
        """What the titles say, without the machine's name."""
        return [title.partition(": ")[2] for title, _ in self.heard]

    def _tell(self, title: str, text: str) -> bool:
        self.heard.append((title, text))
        return self.hears


@pytest.fixture
def person(tmp_path: Path) -> Person:
    """Nobody was told anything yet."""
    return Person(directory=tmp_path)


class TestWhen:
    """When people are told."""

    def test_the_first_failure_is_told_with_what_to_do(self, person: Person) -> None:
        """Title, who, when, the reason and the hint."""
        person.notices().after(entry(error="the disk is full", hint="Make room."), [])
        title, text = person.heard[0]
        assert title == "Kekkai backup on portal-server: full backup failed"
        assert "the disk is full\nWhat to do: Make room." in text
        assert f"{FULL}, started by kekkai on portal-server, at 2026-11-22 12:30 UTC" in text

    def test_the_next_failure_of_the_same_kind_is_not_told(self, person: Person) -> None:
        """Not even after a restart."""
        for _ in range(3):
            person.notices().after(entry(), [])
        assert len(person.heard) == 1

    def test_a_failure_of_another_kind_is(self, person: Person) -> None:
        """The database is another matter than everything."""
        person.notices().after(entry(), [])
        person.notices().after(entry(subject="database_20261122_020000_abcdef"), [])
        assert len(person.heard) == 2

    def test_the_first_success_after_a_failure_is_told_once(self, person: Person) -> None:
        """And nothing after it."""
        person.notices().after(entry(), [])
        for _ in range(2):
            person.notices().after(entry(Outcome.DONE), [])
        assert [title.partition(": ")[2] for title, _ in person.heard] == [
            "full backup failed",
            "full backup works again",
        ]

    def test_a_success_without_a_failure_is_not_told(self, person: Person) -> None:
        """All is well, so nobody is disturbed."""
        person.notices().after(entry(Outcome.DONE), [])
        assert person.heard == []

    def test_a_missed_target_is_told_when_it_begins_and_ends(self, person: Person) -> None:
        """Once each."""
        for misses in ([LATE], [LATE], [], []):
            person.notices().after(None, misses)
        assert len(person.heard) == 2
        assert (
            "TARGET MISSED: The newest backup is 3 h old, and 2 h are allowed\nWhat to do: Make one."
            in person.heard[0][1]
        )
        assert "target met again: age of the newest backup of the database" in person.heard[1][1]

    def test_a_status_that_is_not_known_ends_nothing(self, person: Person) -> None:
        """Where the repository cannot be read, a target is not met again by that."""
        person.notices().after(None, [LATE])
        person.notices().after(None, None)
        assert len(person.heard) == 1

    def test_what_goes_on_is_told_again_once_a_day(self, person: Person) -> None:
        """As a reminder, not as news."""
        person.notices().after(entry(error="the disk is full"), [])
        for hours in (23, 25, 26):
            person.now = NOW + hours * HOUR
            person.notices().after(None, [])
        assert len(person.heard) == 2
        assert person.heard[1][1].startswith("STILL FAILING: full backup, since 2026-11-22 12:30 UTC\nthe disk is full")

    def test_what_could_not_be_delivered_is_told_again_after_a_while(self, person: Person) -> None:
        """Half an hour later, not at each step."""
        person.hears = False
        person.notices().after(entry(), [])
        person.notices().after(None, [])
        assert len(person.heard) == 1
        person.now = NOW + HOUR
        person.notices().after(None, [])
        assert len(person.heard) == 2

    @pytest.mark.parametrize(
        ("begun", "ended", "headline"),
        [
            ((entry(), None), (entry(Outcome.DONE), None), "full backup works again"),
            ((None, [LATE]), (None, []), "target met again: age of the newest backup of the database"),
        ],
        ids=["failure", "target"],
    )
    def test_an_end_that_could_not_be_delivered_is_told_again_until_it_is(
        self, person: Person, begun: Step, ended: Step, headline: str
    ) -> None:
        """By whoever comes next, half an hour later and not sooner; once it has arrived, never again."""
        person.notices().after(*begun)
        person.hears = False
        person.notices().after(*ended)
        for minutes in (29, 30, 59):
            person.now = NOW + timedelta(minutes=minutes)
            person.notices().after(None, None)
        person.hears = True
        for minutes in (60, 120, 2000):
            person.now = NOW + timedelta(minutes=minutes)
            person.notices().after(None, None)
        assert person.headlines[1:] == [headline] * 3
        assert "RESOLVED" in person.heard[-1][1]
        assert " since 2026-11-22 12:30 UTC." in person.heard[-1][1]

    def test_a_failure_after_an_end_that_was_not_heard_of_takes_its_place(self, person: Person) -> None:
        """It is told as a new one, and its end too; that the earlier one is over is of no use any more."""
        person.notices().after(entry(), None)
        person.hears = False
        person.notices().after(entry(Outcome.DONE), None)
        person.hears = True
        for done in (entry(error="another reason"), entry(error="another reason"), entry(Outcome.DONE)):
            person.now += HOUR
            person.notices().after(done, None)
        assert person.headlines[2:] == ["full backup failed", "full backup works again"]

    def test_an_end_is_told_again_where_its_process_died_while_telling(self, person: Person) -> None:
        """What is over is forgotten when people know of it, not before."""
        person.notices().after(entry(), None)
        dying = AlertSender(person.directory, host="portal-server", tell=_die, clock=lambda: NOW)
        with pytest.raises(KeyboardInterrupt):
            dying.after(entry(Outcome.DONE), None)
        person.now = NOW + HOUR
        person.notices().after(None, None)
        assert person.headlines == ["full backup failed", "full backup works again"]

    def test_a_memory_of_an_earlier_release_is_read(self, person: Person) -> None:
        """What goes on by it is not told once more, and its end is."""
        old = {"since": "2026-11-20T02:00:00+00:00", "told": NOW.isoformat(), "what": "the disk is full"}
        (person.directory / NAME).write_text(json.dumps({"version": 1, "troubles": {"failure backup full": old}}))
        person.notices().after(entry(), None)
        person.notices().after(entry(Outcome.DONE), None)
        assert person.headlines == ["full backup works again"]
        assert "Failing since 2026-11-20 02:00 UTC." in person.heard[0][1]

    def test_several_news_come_as_one_message(self, person: Person) -> None:
        """The title says how many."""
        person.notices().after(entry(), [LATE])
        assert person.heard[0][0].endswith(": full backup failed, and 1 more")

    @pytest.mark.parametrize("damage", ["", "{}", "[]", '{"troubles": {"a": 1}}', "\x00"])
    def test_a_damaged_memory_breaks_nothing(self, person: Person, damage: str) -> None:
        """What is going on is told once more."""
        (person.directory / NAME).write_text(damage)
        person.notices().after(entry(), [])
        assert len(person.heard) == 1

    def test_without_a_repository_the_process_remembers(self, person: Person, tmp_path: Path) -> None:
        """A disk that is gone is told of, and not at each attempt of a worker."""
        person.directory = tmp_path / "gone"
        notices = person.notices()
        for _ in range(2):
            notices.after(entry(error="there is no repository"), None)
        assert len(person.heard) == 1


class TestLockedMemory:
    """Another process keeps the memory locked: it was stopped in the wrong moment, or hangs on a disk."""

    def test_it_is_waited_for_a_short_time_only(
        self, person: Person, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        """Then it is logged, and the failure is told all the same: nobody else would tell it."""
        with locked(person.directory):
            started = time.monotonic()
            person.notices().after(entry(error="the disk is full"), [LATE])
            assert time.monotonic() - started < LONG_SECONDS
        assert "alert_state_locked" in caplog.text + "".join(capfd.readouterr())
        assert person.headlines == ["full backup failed"]

    def test_what_was_not_told_meanwhile_is_told_by_the_next_one(self, person: Person) -> None:
        """An end and a target, each once."""
        person.notices().after(entry(), None)
        with locked(person.directory):
            person.notices().after(entry(Outcome.DONE), [LATE])
        assert person.headlines == ["full backup failed"]
        for _ in range(2):
            person.notices().after(entry(Outcome.DONE), [LATE])
        assert person.headlines[1:] == ["full backup works again, and 1 more"]

    def test_a_process_remembers_what_it_told_meanwhile(self, person: Person) -> None:
        """It tells each failure once, and the end of it when the lock is free."""
        notices = person.notices()
        with locked(person.directory):
            for _ in range(2):
                notices.after(entry(), None)
        notices.after(entry(Outcome.DONE), None)
        assert person.headlines == ["full backup failed", "full backup works again"]

    def test_a_failure_that_was_not_delivered_meanwhile_is_told_again(self, person: Person) -> None:
        """Half an hour later, as ever."""
        notices = person.notices()
        person.hears = False
        with locked(person.directory):
            notices.after(entry(), None)
        person.now = NOW + HOUR
        notices.after(None, None)
        assert person.headlines == ["full backup failed", "full backup: still failing"]


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """The memory's lock is held, as by another process: a lock belongs to who opened the file."""
    with (directory / ".notices.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _die(title: str, text: str) -> bool:
    raise KeyboardInterrupt


@pytest.fixture
def history(tmp_path: Path) -> History:
    """An empty repository."""
    found = History(path=tmp_path / "archives")
    found.path.mkdir()
    return found


def aftermath(history: History, web_server: Server, **variables: str) -> Observers:
    variables = {"BACKUP_NOTIFY_URLS": f"json://user:hunter22@{web_server.place}/"} | variables
    return Observers(history.settings(**variables), clock=lambda: NOW)


class TestDelivery:
    """How it gets there."""

    def test_a_failed_backup_reaches_people(self, history: History, web_server: Server) -> None:
        """From the job's end, over its observer, to a server of the web; the memory is in the repository."""
        observer: Observer = aftermath(history, web_server)
        config = BackupConfig(local_path=history.path, media_path="/nowhere/uploads")
        assert not BackupJob(config, observer=observer).backup_media().success
        message = json.loads(web_server.asked[0][1])
        assert "backup of the uploads failed" in message["title"]
        assert "/nowhere/uploads does not exist" in message["message"]
        assert (history.path / NAME).exists()

    def test_a_repository_that_cannot_be_written_is_told_too(self, web_server: Server, tmp_path: Path) -> None:
        """Although the access log could not have it."""
        (tmp_path / "archives").write_text("no directory")
        history = History(path=tmp_path / "archives")
        config = BackupConfig(local_path=history.path, media_path=tmp_path)
        assert not BackupJob(config, observer=aftermath(history, web_server)).backup_media().success
        assert "backup of the uploads failed" in web_server.asked[0][1]

    def test_a_server_that_hangs_is_given_up(self, web_server: Server) -> None:
        """In the time that is given; the answer is that it was not delivered."""
        web_server.hangs.set()
        assert not notify(Secret(f"json://{web_server.place}/"), "title", "text", seconds=2)

    def test_an_error_of_delivery_is_logged_without_the_url(
        self, history: History, web_server: Server, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        """Neither the address nor the password is anywhere."""
        variables = {
            "BACKUP_NOTIFY_URLS": "json://user:hunter22@127.0.0.1:1/",
            "BACKUP_PING_URL": "http://127.0.0.1:1/s3cr3t",
        }
        aftermath(history, web_server, **variables)(entry())
        said = caplog.text + "".join(capfd.readouterr())
        assert "message_undelivered" in said
        assert not any(secret in said for secret in ("hunter22", "s3cr3t", "127.0.0.1:1"))

    @pytest.mark.parametrize(
        ("done", "asked"),
        [
            (entry(Outcome.DONE), ["/ping?a=1"]),
            (entry(), ["/ping/fail?a=1"]),
            (entry(Outcome.REFUSED), ["/ping/fail?a=1"]),
        ],
        ids=["done", "failed", "refused"],
    )
    def test_the_dead_mans_url_is_called_after_a_full_backup(
        self, history: History, web_server: Server, done: AccessEntry, asked: list[str]
    ) -> None:
        """With /fail behind the path after one that failed."""
        variables = {"BACKUP_PING_URL": f"http://{web_server.place}/ping?a=1", "BACKUP_NOTIFY_URLS": ""}
        aftermath(history, web_server, **variables)(done)
        assert [path for path, _ in web_server.asked] == asked

    def test_the_dead_mans_url_is_not_called_after_others(self, history: History, web_server: Server) -> None:
        """A backup of the database alone proves nothing of the whole."""
        observer = aftermath(
            history, web_server, BACKUP_PING_URL=f"http://{web_server.place}/ping", BACKUP_NOTIFY_URLS=""
        )
        observer(entry(Outcome.DONE, subject="database_20261122_020000_abcdef"))
        observer(entry(Outcome.DONE, action=Action.VERIFY))
        assert web_server.asked == []

    def test_only_the_web_is_called(self, history: History, web_server: Server, tmp_path: Path) -> None:
        """A URL of a file is not opened, and breaks nothing."""
        aftermath(history, web_server, BACKUP_PING_URL=f"file://{tmp_path}", BACKUP_NOTIFY_URLS="")(entry())


class TestObserver:
    """What a job's observer may count on, and the job."""

    def test_it_is_told_what_was_written_down(self, history: History) -> None:
        """The entry has the error and its hint apart, and how long it took."""
        told: list[AccessEntry] = []
        witness = Witness(repository=history.repository, observer=told.append)
        with witness.watching(Action.PRUNE, "the repository") as seen:
            seen.note(Outcome.FAILED, error="no room\n  hint: Make some.")
        assert told[0].details["error"] == "no room"
        assert told[0].details["hint"] == "Make some."
        assert told[0].details["seconds"] >= 0
        assert told[0].number == 1

    def test_a_prune_and_a_drill_tell_too(self, history: History) -> None:
        """Every kind of job has the same observer."""
        told: list[AccessEntry] = []
        settings = history.settings(DD_DATABASE_PORT="1")
        policy = BackupConfig.from_settings(settings).retention
        PruneJob(history.repository, policy, observer=told.append).run()
        DrillJob(RestoreConfig.from_settings(settings), observer=told.append).run()
        assert [entry.action for entry in told] == [Action.PRUNE, Action.DRILL]
        assert told[1].details["error"]

    def test_nothing_it_meets_is_raised(self, tmp_path: Path) -> None:
        """Not even a status that cannot be made."""
        history = History(path=tmp_path / "archives")
        history.archive(BackupType.FULL, HOUR)
        (history.path / ".restores").mkdir()
        (history.path / ".restores" / "restore_1.json").write_text("[]")
        observer = Observers(history.settings(BACKUP_METRICS_FILE=str(tmp_path / "metrics.prom")))
        observer(entry())
        observer.refresh()

    def test_what_was_not_written_down_has_no_number(self, tmp_path: Path) -> None:
        """It is told all the same."""
        told: list[AccessEntry] = []
        Witness(repository=Repository(tmp_path / "gone"), observer=told.append).saw(Action.PRUNE, "x", Outcome.FAILED)
        assert told[0].number == 0


def test_fail_goes_behind_the_path() -> None:
    """Whatever the URL looks like."""
    assert ping_url("https://hc.example/uuid/", failed=True) == "https://hc.example/uuid/fail"
    assert ping_url("https://hc.example", failed=True) == "https://hc.example/fail"
    assert ping_url("https://hc.example/uuid", failed=False) == "https://hc.example/uuid"
    assert ping_url("https://[", failed=True) == "https://["


SECRETS = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_characters="*"), min_size=4, max_size=30)


class TestSecrets:
    """No secret is told, wherever it came from."""

    @given(secret=SECRETS)
    def test_no_secret_of_the_settings_is_in_a_text(
        self, secret: str, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """Should another program's error hold one, it is made unreadable."""
        history = History(path=tmp_path_factory.mktemp("archives"))
        settings = history.settings(DD_DATABASE_PASSWORD=secret, BACKUP_PING_URL=secret, CELERY_BROKER_URL=secret)
        text = Observers(settings)._scrubbed(f"it said: {secret} and {secret}{secret}")
        assert secret not in text

    @pytest.mark.parametrize("name", [one.name for one in SETTINGS if one.secret] + ["AWS_SECRET_ACCESS_KEY"])
    def test_every_secret_setting_counts(self, tmp_path: Path, name: str) -> None:
        """The text of each is masked, and of a URL the password."""
        url = f"postgres://me:sesame@{tmp_path.name}/db" if name.endswith("_URL") else "sesame"
        settings = History(path=tmp_path).settings(**{name: url})
        assert "sesame" not in Observers(settings)._scrubbed("it said: sesame")

    @given(password=st.text(st.sampled_from("abcdefXYZ0123456789-_~"), min_size=6))
    def test_no_password_of_a_url_is_in_a_text(self, password: str, tmp_path_factory: pytest.TempPathFactory) -> None:
        """Of one that is a setting, and of one that is not."""
        history = History(path=tmp_path_factory.mktemp("archives"))
        settings = history.settings(CELERY_BROKER_URL=f"redis://:{password}@redis:6379/5")
        scrubbed = Observers(settings)._scrubbed(f"cannot reach redis://:{password}@redis:6379/5, password {password}!")
        assert password not in scrubbed
        assert f"postgres://{HIDDEN}@host/" in Observers(settings)._scrubbed("postgres://me:other@host/")
