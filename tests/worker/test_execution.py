"""What a task does by itself around the engine: outcomes, and what is written down of what the engine has not done."""

from __future__ import annotations

import errno
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.errors import BusyError, ConfigurationError, OpsError
from portal.ops.repository.access_log import AccessEntry, AccessLog, process_user
from portal.ops.repository.access_log import Outcome as AccessOutcome
from portal.ops.repository.repository import Repository
from portal.ops.settings.load import Settings, load_settings
from worker.errors import EXIT_CODE
from worker.execution import Outcome, TaskRequest, carry_out, unusable, write_down
from worker.operations import (
    BACKUP_FULL,
    PING,
    PRUNE_REPOSITORY,
    RESTORE_ROLLBACK,
    VERIFY_ARCHIVE,
    Operation,
    Requester,
)

if TYPE_CHECKING:
    from pathlib import Path

FAULT: dict[str, Exception] = {}


def handle(request: TaskRequest) -> Outcome:
    """Stands for the engine."""
    raise FAULT["raised"]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """The settings of a worker."""
    (tmp_path / "archives").mkdir()
    return load_settings({"BACKUP_LOCAL_PATH": str(tmp_path / "archives")}, lambda _: "")


def logged(settings: Settings) -> list[AccessEntry]:
    """The access log."""
    return list(AccessLog(Repository(settings.local_path)).entries())


class TestOutcomes:
    """What a result of the engine means for a task."""

    @pytest.mark.parametrize(
        ("success", "retryable", "expected"), [(True, True, False), (False, True, True), (False, False, False)]
    )
    def test_a_failure_may_be_worth_another_try(self, success: bool, retryable: bool, expected: bool) -> None:
        """A success is not; a result that says nothing of it is not either."""
        result: Any = SimpleNamespace(
            success=success, retryable=retryable, exit_code=4, to_dict=lambda: {"success": success}
        )
        outcome = Outcome.of(result)
        assert outcome == Outcome(result={"success": success, EXIT_CODE: 4}, success=success, retryable=expected)
        assert outcome.is_new
        del result.retryable
        assert not Outcome.of(result).retryable

    def test_an_outcome_is_new_and_final_unless_it_says_otherwise(self) -> None:
        """What nobody has said to be worth another try is not tried again."""
        outcome = Outcome(result={"success": False}, success=False)
        assert (outcome.retryable, outcome.is_new, outcome.fault) == (False, True, None)

    def test_an_error_is_an_outcome(self) -> None:
        """With its hint and its exit code; whether another try helps is the error's to say."""
        for error in (BusyError("locked", hint="Wait."), ConfigurationError("odd")):
            assert Outcome.of_error(error) == Outcome(
                result={"success": False, "error": str(error), EXIT_CODE: error.exit_code},
                success=False,
                retryable=error.retryable,
                fault=error,
            )

    def test_errors_that_are_expected_are_caught(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        """Others are faults of ours."""
        request = TaskRequest(
            operation=replace(VERIFY_ARCHIVE, handler=f"{__name__}:handle"),
            task_id="one",
            given={},
            requester=Requester.COMMAND,
            signed_at=datetime(2026, 11, 22, tzinfo=UTC),
            attempt=1,
            settings=settings,
            progress=lambda step: None,
            observer=lambda entry: None,
        )
        busy, fault = BusyError("locked", hint="Wait."), OSError(errno.EROFS, "Read-only file system", "/there")
        monkeypatch.setitem(FAULT, "raised", busy)
        assert carry_out(request).fault is busy
        monkeypatch.setitem(FAULT, "raised", fault)
        assert carry_out(request).result["error"] == str(unusable(fault))
        assert str(unusable(fault)).startswith("the repository cannot be used: read-only file system (/there)")
        monkeypatch.setitem(FAULT, "raised", KeyError("odd"))
        with pytest.raises(KeyError):
            carry_out(request)
        assert request.known(SimpleNamespace(actor="ann")) == {  # type: ignore[arg-type]
            "actor": "ann",
            "observer": request.observer,
        }


class TestWrittenDown:
    """What is written down of a task that the engine has not written down."""

    @pytest.mark.parametrize(
        ("operation", "given", "subject"),
        [
            (VERIFY_ARCHIVE, {"archive": "latest"}, "latest"),
            (VERIFY_ARCHIVE, {"archive": ["a\nb"]}, r"['a\nb']"),
            (VERIFY_ARCHIVE, {"archive": "a\nb"}, r"a\nb"),
            (RESTORE_ROLLBACK, {"restore_id": "restore_1"}, "restore_1"),
            (PRUNE_REPOSITORY, {}, "one"),
            (BACKUP_FULL, {"moment": "2026-11-22T09:00:00+00:00"}, "full_20261122_090000_"),
            (BACKUP_FULL, {"moment": "yesterday"}, "one"),
            (BACKUP_FULL, {}, "one"),
        ],
    )
    def test_the_subject_is_what_the_task_is_about(
        self, settings: Settings, operation: Operation, given: dict[str, Any], subject: str
    ) -> None:
        """The archive, the restore, the archive that was to be made, or the task itself."""
        write_down(settings, operation, "one", given, OpsError("no\ndisk", hint="Buy one."))
        (line,) = logged(settings)
        assert line.subject.startswith(subject) and len(line.subject) <= len(subject) + 6
        assert (line.action, line.outcome) == (operation.action, AccessOutcome.FAILED)
        assert line.details == {"task_id": "one", "error": r"no\ndisk", "hint": "Buy one."}

    @pytest.mark.parametrize(
        ("given", "dry_run"),
        [({"dry_run": True}, True), ({"dry_run": False}, None), ({"dry_run": "yes"}, None), ({}, None)],
    )
    def test_a_dry_run_is_written_down_as_one(
        self, settings: Settings, given: dict[str, Any], dry_run: bool | None
    ) -> None:
        """If it is one."""
        write_down(settings, PRUNE_REPOSITORY, "one", given, OpsError("no"))
        assert logged(settings)[0].details.get("dry_run") is dry_run

    @pytest.mark.parametrize(("actor", "who"), [("ann\n", r"ann\n"), (7, None), (None, None)])
    def test_who_asked_is_written_down_if_it_is_a_name(
        self, settings: Settings, actor: Any, who: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Otherwise the user of the worker; observers hear of it, too."""
        heard: list[AccessEntry] = []
        monkeypatch.setattr("worker.execution.Observers", lambda settings: heard.append)
        write_down(settings, VERIFY_ARCHIVE, "a\nb", {"actor": actor, "archive": "x"}, OpsError("no"))
        (line,) = logged(settings)
        assert line.who == (who or process_user())
        assert line.details["task_id"] == r"a\nb"
        assert heard == [line]

    def test_a_ping_is_not(self, settings: Settings) -> None:
        """It does nothing."""
        write_down(settings, PING, "one", {}, OpsError("no"))
        assert logged(settings) == []
