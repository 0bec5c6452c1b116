"""A permit for a restore: left in the repository by the command that a person started, and good for one task.

Whoever can reach the broker, or Flower, can put a task on the queue. What changes live data is therefore done only
where a file `.permits/<task_id>.json` says that it was asked for, with the very arguments that the task has: and that
file can only be written by somebody who may read the backups anyway.
"""

from __future__ import annotations

import json
import os
import time
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from portal.ops.errors import RepositoryError
from portal.ops.repository import write_durably
from worker.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from worker.names import TaskName

DIRECTORY: Final = ".permits"
LIFETIME_SECONDS: Final = 24 * 3600


class Permits:
    """The permits of a repository.

    Arguments:
        repository: its directory.
    """

    def __init__(self, repository: Path) -> None:
        self._directory = repository / DIRECTORY

    def grant(self, task: TaskName, task_id: str, arguments: Mapping[str, Any]) -> None:
        """Permit one task.

        Raises:
            RepositoryError: this user may not write to the repository.
        """
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            write_durably(self._path(task_id), json.dumps({"digest": _digest(task, arguments)}).encode())
        except OSError as error:
            raise RepositoryError(
                f"a restore by a worker needs a permit in {self._directory}, which cannot be written: {error.strerror}",
                hint="Run this as the user that the backups belong to, or give --local to restore without a worker.",
            ) from error

    def check(self, task: TaskName, task_id: str, arguments: Mapping[str, Any]) -> None:
        """Make sure that there is a permit for the task as it is.

        Raises:
            RefusedError: there is none, or it is for something else, or too old.
        """
        path = self._path(task_id)
        try:
            age = time.time() - path.stat().st_mtime
            digest = json.loads(path.read_bytes())["digest"]
        except (OSError, ValueError, KeyError, TypeError):
            raise RefusedError(
                "nobody who may read the backups has asked for this restore",
                hint="Start restores with ./tools/restore.sh; a task that comes from elsewhere is refused.",
            ) from None
        if age > LIFETIME_SECONDS or digest != _digest(task, arguments):
            raise RefusedError(
                "the permit for this restore is for other arguments, or more than a day old",
                hint="Start it again with ./tools/restore.sh.",
            )

    def revoke(self, task_id: str) -> None:
        """Take a permit back, used or not; harmless where there is none."""
        self._path(task_id).unlink(missing_ok=True)

    def _path(self, task_id: str) -> Path:
        return self._directory / f"{os.path.basename(task_id)}.json"


def _digest(task: TaskName, arguments: Mapping[str, Any]) -> str:
    return sha256(json.dumps([task.value, dict(arguments)], sort_keys=True).encode()).hexdigest()
