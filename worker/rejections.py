"""Messages that are no valid tasks: logged, counted in the repository, and kept in the broker.

The counts are in `.rejected.json`, which the metrics read. The messages are in the broker's list
`kekkai-backup-rejected`, newest first and at most a hundred, to help find their sender.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from portal.ops.repository.rejected import count_rejected
from portal.ops.runtime.logs import engine_log
from portal.ops.units import printable

if TYPE_CHECKING:
    from pathlib import Path

    from redis import Redis

    from worker.errors import Rejection

ASIDE: Final = "kekkai-backup-rejected"

_MOST_KEPT: Final = 100
_MOST_BYTES: Final = 65_536

log = engine_log("worker.gate")


class Rejections:
    """Records the messages rejected by a repository's workers.

    Arguments:
        repository: the repository's directory.
    """

    def __init__(self, repository: Path) -> None:
        self._repository = repository

    def note(
        self, reason: Rejection, message: bytes, *, queue: str, task: str, task_id: str, client: Redis | None
    ) -> None:
        """Log, count and keep a message."""
        log.warning(
            "message_rejected",
            reason=reason.value,
            queue=printable(queue),
            task=printable(task),
            rejected_id=printable(task_id),
            bytes=len(message),
        )
        try:
            count_rejected(self._repository, reason.value)
        except (OSError, ValueError) as error:
            log.error("rejection_uncounted", error=str(error))
        if client is not None:
            client.lpush(ASIDE, message[:_MOST_BYTES])
            client.ltrim(ASIDE, 0, _MOST_KEPT - 1)
