"""Lines for an access log."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from portal.ops.repository.access_log import AccessLog, Action, Outcome

NOW: Final = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def add(log: AccessLog, subject: str, **details: object) -> None:
    """Append one line about a backup."""
    log.append(Action.BACKUP, subject, Outcome.DONE, who="ada", host="portal", moment=NOW, **details)
