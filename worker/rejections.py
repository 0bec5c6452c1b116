"""Messages that are no valid tasks: logged, counted in the repository, and kept in the broker.

The counts are in `.rejected.json`, which the metrics read. The messages are in the broker's list
`kekkai-backup-rejected`, newest first and at most a hundred, to help find their sender.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from portal.ops.repository.rejected import count_rejected
from portal.ops.runtime.logs import engine_log
from portal.ops.units import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from redis import Redis

    from worker.errors import Rejection

ASIDE: Final = "kekkai-backup-rejected"

_MOST_KEPT: Final = 100
_MOST_BYTES: Final = 65_536
_MOST_AT_ONCE: Final = 200
_EACH_SECOND: Final = 10
_LATER_SECONDS: Final = 1.0

log = engine_log("worker.gate")


class Rejections:
    """Records the messages rejected by a repository's workers.

    Arguments:
        repository: the repository's directory.
        clock: returns seconds of a monotonic clock.
    """

    def __init__(self, repository: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._repository = repository
        self._lock = threading.Lock()
        self._at = clock()
        self._free: float = _MOST_AT_ONCE
        self._others: Counter[str] = Counter()

    def note(
        self, reason: Rejection, message: bytes, *, queue: str, task: str, task_id: str, client: Redis | None
    ) -> bool:
        """Log, count and keep a message; if there are very many, only count it, a second later.

        Returns:
            False if there are very many.
        """
        if self._is_flood(reason):
            return False
        log.warning(
            "message_rejected",
            reason=reason.value,
            queue=printable(queue),
            task=printable(task),
            rejected_id=printable(task_id),
            bytes=len(message),
        )
        self._count({reason.value: 1})
        if client is not None:
            client.lpush(ASIDE, message[:_MOST_BYTES])
            client.ltrim(ASIDE, 0, _MOST_KEPT - 1)
        return True

    def _is_flood(self, reason: Rejection) -> bool:
        """True if there are very many messages: then the time for each would delay genuine tasks for hours."""
        with self._lock:
            now = self._clock()
            self._free = min(_MOST_AT_ONCE, self._free + (now - self._at) * _EACH_SECOND)
            self._at = now
            if self._free >= 1:
                self._free -= 1
                return False
            if not self._others:
                timer = threading.Timer(_LATER_SECONDS, self._count_others)
                timer.daemon = True
                timer.start()
            self._others[reason.value] += 1
            return True

    def _count_others(self) -> None:
        with self._lock:
            counts, self._others = dict(self._others), Counter()
        log.warning("messages_rejected", **counts)
        self._count(counts)

    def _count(self, counts: Mapping[str, int]) -> None:
        try:
            for reason, number in counts.items():
                count_rejected(self._repository, reason, number)
        except (OSError, ValueError) as error:
            log.error("rejection_uncounted", error=str(error))
