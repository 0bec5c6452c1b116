"""Health checks."""

from __future__ import annotations

import os

from worker.arguments import Arguments
from worker.execution import Outcome, TaskRequest


def ping(request: TaskRequest) -> Outcome:
    """Answer."""
    Arguments.of(request.given)
    return Outcome(result={"success": True, "pid": os.getpid()}, success=True)
