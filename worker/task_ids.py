"""Names of tasks that nobody has named."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worker.operations import Operation


def new_task_id(operation: Operation) -> str:
    """A name for a task that nobody has asked for yet, which a person can tell from others."""
    return f"{operation.name}-{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
