"""Messages that are no valid tasks: logged, counted in the repository, and kept in the broker.

The counts are in `.rejected.json`, which the metrics read. The messages are in the broker's list
`kekkai-backup-rejected`, newest first and at most a hundred, to help find their sender.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from typing import TYPE_CHECKING, Any, Final

from portal.ops.repository.durable import give_to_owner
from portal.ops.repository.locks import holder, lock_within
from portal.ops.runtime.logs import engine_log
from portal.ops.units import printable

if TYPE_CHECKING:
    from io import BufferedIOBase
    from pathlib import Path

    from redis import Redis

    from worker.errors import Rejection

NAME: Final = ".rejected.json"
ASIDE: Final = "kekkai-backup-rejected"

_MOST_KEPT: Final = 100
_MOST_BYTES: Final = 65_536
_LOCK_SECONDS: Final = 5.0

log = engine_log("worker.gate")


class Rejections:
    """Records the messages rejected by a repository's workers.

    Arguments:
        repository: the repository's directory.
    """

    def __init__(self, repository: Path) -> None:
        self._path = repository / NAME

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
            self._count(reason.value)
        except (OSError, ValueError) as error:
            log.error("rejection_uncounted", error=str(error))
        if client is not None:
            client.lpush(ASIDE, message[:_MOST_BYTES])
            client.ltrim(ASIDE, 0, _MOST_KEPT - 1)

    def counts(self) -> dict[str, int]:
        """The number of rejected messages, by reason."""
        try:
            with self._path.open("rb") as file:
                _lock(file, fcntl.LOCK_SH)
                return _parse(file.read(_MOST_BYTES))
        except OSError:
            return {}

    def _count(self, reason: str) -> None:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "r+b") as file:
            _lock(file, fcntl.LOCK_EX)
            give_to_owner(file.fileno(), self._path.parent)
            counts = _parse(file.read(_MOST_BYTES))
            counts[reason] = counts.get(reason, 0) + 1
            file.seek(0)
            file.truncate()
            file.write(json.dumps(counts).encode() + b"\n")


def _lock(file: BufferedIOBase, kind: int) -> None:
    if not lock_within(file.fileno(), kind, _LOCK_SECONDS):
        raise OSError(errno.EBUSY, f"locked by {holder(file.fileno())}")


def _parse(text: bytes) -> dict[str, int]:
    try:
        found: dict[str, Any] = json.loads(text)
        return {str(reason): int(count) for reason, count in found.items()}
    except (ValueError, TypeError, AttributeError):
        return {}
