"""Ids for tasks without one."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worker.operations import Operation


def new_task_id(operation: Operation) -> str:
    """A new task id that people can recognise."""
    return f"{operation.name}-{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
