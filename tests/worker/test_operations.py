"""The registry of operations: every entry is complete, and everything else is made from it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pkgutil import resolve_name

import pytest

from beat.due import expression_of
from portal.ops.settings.load import ScheduleSettings, load_settings
from worker.arguments import Arguments, MediaArguments
from worker.configuration import configuration
from worker.errors import OperationFailedError
from worker.operations import (
    BACKUP_FULL,
    BACKUP_MEDIA,
    OPERATIONS,
    PING,
    RESTORE_ARCHIVE,
    SCHEDULED,
    Operation,
    Requester,
    of_task_id,
)
from worker.tasks import TASKS

every_operation = pytest.mark.parametrize("operation", list(OPERATIONS.values()), ids=str)


@every_operation
def test_every_operation_can_be_carried_out(operation: Operation) -> None:
    """Its handler can be imported, its tasks have its name and description, and go to its queue."""
    assert callable(resolve_name(operation.handler))
    assert TASKS[operation.name].name == operation.name
    assert operation.description in str(TASKS[operation.name].__doc__)
    routes = configuration(load_settings({}, lambda _: ""))["task_routes"]
    assert routes[operation.name] == {"queue": operation.queue.value}


@every_operation
def test_every_operation_checks_its_arguments(operation: Operation) -> None:
    """They are a class of arguments, so that nothing reaches a handler unchecked."""
    assert issubclass(operation.arguments, Arguments)


def test_each_schedule_has_a_setting() -> None:
    """The settings have an expression for each operation with a schedule."""
    expressions = {field.name for field in fields(ScheduleSettings)}
    assert {entry.schedule.setting for entry in SCHEDULED if entry.schedule} <= expressions
    assert expression_of(BACKUP_FULL, load_settings({}, lambda _: "").schedules) == "0 2 * * *"


def test_what_changes_live_data_is_requested_by_a_command_alone() -> None:
    """Neither Flower nor a schedule may start a restore."""
    families = {"restore"}
    for operation in OPERATIONS.values():
        if operation.family in families:
            assert operation.requesters == {Requester.COMMAND}


@pytest.mark.parametrize(
    ("task_id", "operation"),
    [
        ("full-2026-11-22T02:00Z", BACKUP_FULL),
        ("scan-2026-11-22T02:00:00Z-0123456789", BACKUP_MEDIA),
        ("media-2026-11-22T02:00:00Z-0123456789", BACKUP_MEDIA),
        ("restore.archive-20261122T020000-01234567", RESTORE_ARCHIVE),
        ("0b1f0c8e-0000-4000-8000-000000000000", None),
    ],
)
def test_a_task_id_tells_the_operation(task_id: str, operation: Operation | None) -> None:
    """The ids of commands, beat and the watcher do; those that Celery makes up do not."""
    assert of_task_id(task_id) is operation


def test_arguments_travel_without_their_defaults() -> None:
    """What a message has is checked into the same arguments again."""
    asked = MediaArguments(moment="2026-11-22T02:00:00+00:00", changed=("a", "b"))
    assert asked.to_dict() == {"moment": "2026-11-22T02:00:00+00:00", "changed": ["a", "b"]}
    assert MediaArguments.of(asked.to_dict()) == asked


def test_pings_are_not_shown() -> None:
    """They would soon be all that there is to see."""
    assert [operation for operation in OPERATIONS.values() if not operation.is_shown] == [PING]


def test_naming_an_operation_costs_a_command_little() -> None:
    """The registry imports neither Celery nor the engine's jobs."""
    code = "import sys, worker.operations; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True).stdout
    heavy = {"celery", "kombu", "structlog", "psycopg", "portal.ops.backup.job", "portal.ops.restore.job"}
    assert not heavy & set(loaded.split())


@every_operation
def test_every_task_has_the_form_that_celery_needs(operation: Operation) -> None:
    """Its errors are expected ones, and only what is shown sends events."""
    task = TASKS[operation.name]
    assert (task.throws, task.send_events) == ((OperationFailedError,), operation.is_shown)
    assert task.__name__ == operation.name.replace(".", "_")
