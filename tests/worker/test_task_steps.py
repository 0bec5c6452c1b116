"""One delivery of a task, from the queue to its result: with a broker, and without a worker around it."""

from __future__ import annotations

import errno
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from celery import states

from portal.ops.errors import BusyError, ConfigurationError
from portal.ops.repository.access_log import AccessEntry, AccessLog, Action
from portal.ops.repository.access_log import Outcome as AccessOutcome
from portal.ops.repository.repository import Repository
from portal.ops.runtime.event_log import structlog
from portal.ops.settings.load import Settings, load_settings
from tests.support.workers import client_environ
from worker import tasks as module
from worker.application import make_app
from worker.authorization import Authorizations
from worker.errors import EXIT_CODE, BrokerAwayError, OperationFailedError
from worker.execution import Outcome, TaskRequest
from worker.operations import (
    BACKUP_FULL,
    OFFSITE_COPY,
    PING,
    VERIFY_ARCHIVE,
    Operation,
    Requester,
)
from worker.signing import is_signed_result, sign_result
from worker.tasks import _perform

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from demo.redis import EmbeddedRedis

SIGNED = datetime(2026, 11, 22, 9, 10, tzinfo=UTC)
GIVEN = {"moment": "2026-11-22T09:00:00+00:00", "actor": "ann"}
DONE = Outcome(result={"success": True, EXIT_CODE: 0, "backup_id": "one"}, success=True)
DEEDS: list[Callable[[TaskRequest], Outcome]] = []
"""What the handler does, call by call; the last one again and again."""

REQUESTS: list[TaskRequest] = []
"""What it was called with."""


def handle(request: TaskRequest) -> Outcome:
    """Stands for the engine."""
    REQUESTS.append(request)
    return (DEEDS.pop(0) if len(DEEDS) > 1 else DEEDS[0])(request)


def failing(*, retryable: bool, error: str = "busy") -> Callable[[TaskRequest], Outcome]:
    """A result of the engine that is no success."""
    result = {"success": False, "error": error, EXIT_CODE: 3}
    return lambda request: Outcome(result=result, success=False, retryable=retryable)


def raising(error: BaseException) -> Callable[[TaskRequest], Outcome]:
    """An error of the engine."""

    def fail(request: TaskRequest) -> Outcome:
        raise error

    return fail


class Request:
    """A request of Celery, as far as a task looks at it."""

    def __init__(self) -> None:
        self.id = "one"
        self.delivery_info: dict[str, Any] | None = {"redelivered": False}
        self.headers = {"kekkai": {"requester": "beat", "at": SIGNED.isoformat()}}

    def get(self, name: str) -> Any:
        """A header."""
        return self.headers[name]


class Observers:
    """Stands for whoever follows operations: notes what it is told, and when a series is at its end.

    Arguments:
        told: receives the subjects, and an empty word at the end.
    """

    def __init__(self, told: list[str]) -> None:
        self._told = told

    def __call__(self, entry: AccessEntry) -> None:
        """An operation has ended."""
        self._told.append(entry.subject)

    def settle(self) -> None:
        """The series has ended."""
        self._told.append("")


class Delivery:
    """A task that is delivered, with what is around it.

    Arguments:
        redis: the broker, which has the results.
        repository: the repository's directory.
    """

    def __init__(self, redis: EmbeddedRedis, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        environ = {**client_environ(redis), "BACKUP_LOCAL_PATH": str(repository), "BACKUP_TASK_ATTEMPTS": "3"}
        self.repository = repository
        self.monkeypatch = monkeypatch
        self.settings: Settings = load_settings(environ, lambda _: "")
        self.app = make_app(self.settings)
        self.request = Request()
        self.pauses: list[float] = []
        self.told: list[str] = []
        self.copies: list[tuple[Any, ...]] = []
        self.use(self.settings)
        monkeypatch.setattr("worker.tasks.time.sleep", self.pauses.append)
        monkeypatch.setattr(module, "Observers", lambda settings: Observers(self.told))

    def use(self, settings: Settings) -> None:
        """Have other settings."""
        self.settings = settings
        self.monkeypatch.setattr(module, "current_settings", lambda: settings)

    def run(self, operation: Operation = VERIFY_ARCHIVE, given: Mapping[str, Any] = GIVEN) -> dict[str, Any]:
        """Have it done; the result that Celery stores."""
        task = SimpleNamespace(app=self.app, backend=self.app.backend, name=operation.name, request=self.request)
        self.app.backend._cache.clear()  # another process would do it
        return _perform(task, replace(operation, handler=f"{__name__}:handle"), given)

    def fails(self, operation: Operation = VERIFY_ARCHIVE, given: Mapping[str, Any] = GIVEN) -> dict[str, Any]:
        """Have it fail; the result in the error."""
        with pytest.raises(OperationFailedError) as caught:
            self.run(operation, given)
        return caught.value.result

    def logged(self) -> list[AccessEntry]:
        """The access log."""
        return list(AccessLog(Repository(self.repository)).entries())

    def is_signed(self, result: Any, *, success: bool) -> bool:
        """Whether a command believes it."""
        return is_signed_result("one", result, self.app.task_keys.named, success=success)

    def begin(self, times: int) -> None:
        """Have the task begun so many times by processes that were killed."""
        (self.repository / ".deliveries").mkdir(parents=True, exist_ok=True)
        (self.repository / ".deliveries" / "one").write_text("." * times)

    def store(self, result: Mapping[str, Any], *, success: bool = True, signed: bool = True) -> None:
        """Have the result of an earlier delivery in the broker."""
        told = dict(result)
        if signed:
            told = sign_result(self.app.task_keys.current(), "one", told, success=success)
        stored = told if success else OperationFailedError(told)
        self.app.backend.store_result("one", stored, states.SUCCESS if success else states.FAILURE)


@pytest.fixture
def delivery(
    redis: EmbeddedRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[Delivery]:
    caplog.set_level("INFO")
    DEEDS[:] = [lambda request: DONE]
    REQUESTS.clear()
    (tmp_path / "archives").mkdir()
    yield Delivery(redis, tmp_path / "archives", monkeypatch)
    structlog.contextvars.clear_contextvars()


def test_a_task_that_succeeds_returns_its_signed_result(delivery: Delivery, caplog: pytest.LogCaptureFixture) -> None:
    """The engine is told who asked, when, and the how manieth start it is."""
    result = delivery.run()
    assert delivery.is_signed(result, success=True)
    assert result | {"_signature": None} == {**DONE.result, "_signature": None}
    (request,) = REQUESTS
    assert (request.task_id, request.given, request.attempt) == ("one", GIVEN, 1)
    assert (request.requester, request.signed_at) == (Requester.BEAT, SIGNED)
    assert (request.settings, request.repository) == (delivery.settings, delivery.repository)
    assert structlog.contextvars.get_contextvars()["attempt"] == 1
    assert caplog.text.count("event='task_begun'") == caplog.text.count("event='task_ended'") == 1
    assert "success=True" in caplog.text and "is_redelivered=False" in caplog.text
    assert not list((delivery.repository / ".deliveries").iterdir())
    assert (delivery.pauses, delivery.told, delivery.logged()) == ([], [""], [])


def test_a_ping_is_not_logged_unless_it_fails(delivery: Delivery, caplog: pytest.LogCaptureFixture) -> None:
    """They would soon be all that there is to see."""
    delivery.run(PING)
    assert "event='task_" not in caplog.text
    DEEDS[:] = [failing(retryable=False)]
    delivery.fails(PING)
    assert "event='task_begun'" not in caplog.text
    assert "event='task_ended' success=False" in caplog.text
    assert delivery.logged() == []


def test_a_task_that_fails_is_a_failure_with_its_signed_result(
    delivery: Delivery, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not repeated where that cannot help."""
    DEEDS[:] = [failing(retryable=False, error="no disk")]
    result = delivery.fails()
    assert delivery.is_signed(result, success=False)
    assert (result["error"], result[EXIT_CODE]) == ("no disk", 3)
    assert len(REQUESTS) == 1
    assert delivery.pauses == []
    assert "success=False" in caplog.text and "error='no disk'" in caplog.text
    assert delivery.logged() == []  # the engine has written it down


def test_what_may_help_is_tried_again_with_growing_pauses(delivery: Delivery, caplog: pytest.LogCaptureFixture) -> None:
    """As often as the setting says."""
    DEEDS[:] = [failing(retryable=True), failing(retryable=True), lambda request: DONE]
    assert delivery.run()["success"]
    assert delivery.pauses == [2.0, 8.0]
    assert caplog.text.count("event='task_postponed'") == 2
    assert "seconds=2.0 error='busy'" in caplog.text
    DEEDS[:] = [failing(retryable=True)]
    REQUESTS.clear()
    delivery.pauses.clear()
    assert delivery.fails()["error"] == "busy"
    assert (len(REQUESTS), delivery.pauses) == (3, [2.0, 8.0])
    DEEDS[:] = [lambda request: replace(DONE, retryable=True)]
    REQUESTS.clear()
    delivery.run()
    assert len(REQUESTS) == 1


def entry(subject: str) -> AccessEntry:
    return AccessEntry(
        number=1,
        moment=SIGNED,
        who="ann",
        host="here",
        action=Action.VERIFY,
        subject=subject,
        outcome=AccessOutcome.FAILED,
        details={},
        previous="",
    )


def observed(subject: str, outcome: Callable[[TaskRequest], Outcome]) -> Callable[[TaskRequest], Outcome]:
    """What the engine has told on the way to a result."""

    def do(request: TaskRequest) -> Outcome:
        request.observer(entry(subject))
        return outcome(request)

    return do


def test_people_hear_of_the_last_try_alone(delivery: Delivery) -> None:
    """A failure that is repaired by the next try is none."""
    DEEDS[:] = [observed("first", failing(retryable=True)), observed("second", lambda request: DONE)]
    delivery.run()
    assert delivery.told == ["second", ""]
    delivery.told.clear()
    DEEDS[:] = [observed("third", raising(SoftTimeLimitExceeded()))]
    delivery.fails()
    assert delivery.told == ["third", ""]
    delivery.told.clear()
    DEEDS[:] = [observed("fourth", raising(SystemExit(0)))]
    with pytest.raises(SystemExit):
        delivery.run()
    assert "fourth" not in delivery.told


def test_what_the_engine_has_not_written_down_is(delivery: Delivery) -> None:
    """A refusal, as the access log has it; once, whether or not it was repeated."""
    DEEDS[:] = [raising(ConfigurationError("no such level", hint="Another one."))]
    refused = delivery.fails(given={"archive": "latest", "actor": "ann"})
    assert (refused["error"], refused[EXIT_CODE]) == ("no such level\n  hint: Another one.", 2)
    DEEDS[:] = [raising(BusyError("locked", hint="Wait."))]
    assert delivery.fails()[EXIT_CODE] == BusyError.exit_code
    assert len(delivery.pauses) == 2
    DEEDS[:] = [observed("told", raising(ConfigurationError("told", hint="")))]
    delivery.fails()
    first, second = delivery.logged()
    assert (first.subject, first.who, first.action, first.outcome) == (
        "latest",
        "ann",
        Action.VERIFY,
        AccessOutcome.REFUSED,
    )
    assert second.details["error"] == "locked"
    assert delivery.told == ["", "", "told", ""]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (SoftTimeLimitExceeded(), "verify.archive took longer than a task may, and was ended; nothing of it is left"),
        (
            OSError(errno.EIO, "Input/output error", "/there"),
            "the repository cannot be used: input/output error (/there)",
        ),
    ],
)
def test_other_errors_are_results_too(delivery: Delivery, error: BaseException, said: str) -> None:
    """Nobody waits for a task that ended in a traceback."""
    DEEDS[:] = [raising(error)]
    result = delivery.fails()
    assert result["error"].startswith(said)
    assert delivery.is_signed(result, success=False)
    assert not list((delivery.repository / ".deliveries").iterdir())


def test_a_task_that_was_begun_too_often_is_given_up(delivery: Delivery) -> None:
    """Its authorization is used up, and it is written down; a start less is one more try."""
    delivery.begin(2)
    delivery.run()
    assert REQUESTS[0].attempt == 3
    delivery.begin(3)
    Authorizations(delivery.repository).grant(VERIFY_ARCHIVE, "one", {})
    result = delivery.fails(given={"archive": "latest", "actor": "ann"})
    assert result["error"].startswith("verify.archive was begun 3 times, and each time")
    assert (len(REQUESTS), result[EXIT_CODE]) == (1, 1)
    assert not list((delivery.repository / ".authorizations").iterdir())
    (line,) = delivery.logged()
    assert (line.subject, line.outcome) == ("latest", AccessOutcome.FAILED)
    assert not list((delivery.repository / ".deliveries").iterdir())


def test_an_id_that_is_no_file_name_is_refused_and_written_down(delivery: Delivery) -> None:
    """The gate lets none pass; `celery call` may be used without one."""
    delivery.request.id = "../one"
    result = delivery.fails(given={"archive": "latest"})
    assert result[EXIT_CODE] == 2
    assert [line.outcome for line in delivery.logged()] == [AccessOutcome.REFUSED]
    assert REQUESTS == []


def test_settings_that_cannot_be_used_are_an_unsigned_failure(
    delivery: Delivery, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the repository is, is one of them."""

    def fail() -> Settings:
        raise ConfigurationError("no such setting", hint="Another one.")

    delivery.monkeypatch.setattr(module, "current_settings", fail)
    result = delivery.fails()
    assert result == {"success": False, "error": "no such setting\n  hint: Another one.", EXIT_CODE: 2}
    assert "event='result_unsigned'" in caplog.text


def test_a_repository_that_cannot_be_written_is_an_unsigned_failure(delivery: Delivery) -> None:
    """It says what to look at."""
    delivery.repository.rmdir()
    delivery.repository.write_text("in the way")
    result = delivery.fails()
    assert result["error"].startswith("the repository cannot be used: ")
    assert "_signature" not in result


class TestEarlierDeliveries:
    """A task may be delivered again after it was done."""

    @pytest.mark.parametrize("again", [True, False])
    def test_a_success_is_the_result(self, delivery: Delivery, caplog: pytest.LogCaptureFixture, again: bool) -> None:
        """Nothing is done, logged as done, or copied a second time."""
        delivery.use(with_destination(delivery.settings))
        delivery.monkeypatch.setattr(module, "Client", None)
        delivery.request.delivery_info = {"redelivered": again}
        archive = delivery.repository / "one.tar.gz"
        archive.touch()
        for told in ({"success": True, "path": str(archive)}, {"success": True}, {"success": True, "path": ""}):
            delivery.app.backend.delete("celery-task-meta-one")
            delivery.store(told)
            result = delivery.run(BACKUP_FULL)
            assert result | {"_signature": None} == told | {"_signature": None}
            assert delivery.is_signed(result, success=True)
        assert REQUESTS == []
        assert caplog.text.count("event='result_found'") == 3
        assert "event='task_begun'" not in caplog.text and "event='task_ended'" not in caplog.text

    def test_a_success_whose_archive_is_gone_is_none(self, delivery: Delivery) -> None:
        """It may have been removed, and another one wanted."""
        delivery.store({"success": True, "path": str(delivery.repository / "gone.tar.gz")})
        delivery.run()
        assert len(REQUESTS) == 1

    @pytest.mark.parametrize("success", [True, False])
    def test_a_result_that_nobody_signed_is_none(
        self, delivery: Delivery, caplog: pytest.LogCaptureFixture, success: bool
    ) -> None:
        """It is logged that there was one."""
        delivery.request.delivery_info = {"redelivered": True}
        delivery.store({"success": success, "error": "no"}, success=success, signed=False)
        assert delivery.run()["backup_id"] == "one"
        assert len(REQUESTS) == 1
        assert f"event='result_rejected' status='{'SUCCESS' if success else 'FAILURE'}'" in caplog.text

    @pytest.mark.parametrize("information", [{"redelivered": False}, {}, None])
    def test_a_failure_is_tried_again_if_the_task_was_sent_again(
        self, delivery: Delivery, information: dict[str, Any] | None
    ) -> None:
        """Whoever sends it wants that."""
        delivery.store({"success": False, "error": "no disk", EXIT_CODE: 1}, success=False)
        delivery.request.delivery_info = information
        assert delivery.run()["success"]

    def test_a_failure_is_the_result_if_the_message_came_again(self, delivery: Delivery) -> None:
        """The delivery before could not acknowledge it."""
        delivery.store({"success": False, "error": "no disk", EXIT_CODE: 1}, success=False)
        delivery.request.delivery_info = {"redelivered": True}
        assert delivery.fails()["error"] == "no disk"
        assert REQUESTS == []

    def test_progress_is_no_result(self, delivery: Delivery, caplog: pytest.LogCaptureFixture) -> None:
        """The delivery before was killed."""
        delivery.app.backend.store_result("one", {"phase": "media", "done": 1, "total": 2}, "PROGRESS")
        delivery.request.delivery_info = {"redelivered": True}
        assert delivery.run()["success"]
        assert "event='result_rejected'" not in caplog.text
        assert "is_redelivered=True" in caplog.text


def with_destination(settings: Settings) -> Settings:
    """Settings with copies elsewhere."""
    environ = {
        "BACKUP_LOCAL_PATH": str(settings.local_path),
        "CELERY_BROKER_URL": settings.worker.broker_url.reveal() if settings.worker.broker_url else "",
        "BACKUP_OFFSITE_URLS": "file:///elsewhere",
    }
    return load_settings(environ, lambda _: "")


class TestCopies:
    """A new archive is copied soon after."""

    @pytest.fixture
    def copying(self, delivery: Delivery) -> Delivery:
        """A delivery in a site with copies elsewhere."""
        delivery.use(with_destination(delivery.settings))
        copies = delivery.copies

        class Copier:
            def __init__(self, settings: Settings, requester: Requester) -> None:
                assert (settings, requester) == (delivery.settings, Requester.WORKER)

            def submit(self, *arguments: Any) -> None:
                copies.append(arguments)

        delivery.monkeypatch.setattr(module, "Client", Copier)
        return delivery

    def test_a_backup_asks_for_a_copy_of_its_archive(self, copying: Delivery) -> None:
        """By a task that has its name."""
        copying.run(BACKUP_FULL)
        assert copying.copies == [(OFFSITE_COPY, {"actor": "worker"}, "offsite-one")]

    @pytest.mark.parametrize(
        ("operation", "result"),
        [
            (VERIFY_ARCHIVE, {"success": True, "backup_id": "one"}),
            (BACKUP_FULL, {"success": True, "backup_id": "one", "unchanged": True}),
            (BACKUP_FULL, {"success": False, "error": "no"}),
        ],
    )
    def test_without_a_new_archive_nothing_is_copied(
        self, copying: Delivery, operation: Operation, result: dict[str, Any]
    ) -> None:
        """A verification, changes that were none, a failure."""
        success = result["success"]
        DEEDS[:] = [lambda request: Outcome(result=result, success=success)]
        copying.run(operation) if success else copying.fails(operation)
        assert copying.copies == []

    def test_without_a_destination_nothing_is_copied(self, copying: Delivery) -> None:
        """The repository is all that there is."""
        settings = load_settings({"BACKUP_LOCAL_PATH": str(copying.repository)}, lambda _: "")
        copying.use(settings)
        copying.run(BACKUP_FULL)
        assert copying.copies == []

    @pytest.mark.parametrize("error", [BrokerAwayError("away", hint=""), OSError("away")])
    def test_a_copy_that_cannot_be_asked_for_is_no_failure_of_the_backup(
        self, copying: Delivery, error: Exception, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Beat makes up for it."""

        def fail(*_: Any) -> None:
            raise error

        copying.monkeypatch.setattr(module, "Client", fail)
        assert copying.run(BACKUP_FULL)["success"]
        assert "event='offsite_copy_not_requested' error='away'" in caplog.text
