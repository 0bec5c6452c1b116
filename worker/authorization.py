"""A permit for a restore: left in the repository by the command that a person started, and good for one task.

Whoever can reach the broker, or Flower, can put a task on the queue. What changes live data is therefore done only
where a file `.permits/<task_id>.json` says that it was asked for, with the very arguments that the task has: and that
file can only be written by somebody who may read the backups anyway.

A worker that begins takes the permit, by a rename to `<task_id>.begun`; the command that asked can withdraw it until
then. So exactly one of them has it, and each knows whether it is the one.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from contextlib import suppress
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from portal.ops.errors import RepositoryError
from portal.ops.repository.durable import make_hidden, write_durably
from worker.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from worker.names import TaskName

DIRECTORY: Final = ".permits"
LIFETIME_SECONDS: Final = 24 * 3600

_CLOCK_SECONDS: Final = 300


class Permits:
    """The permits of a repository.

    Arguments:
        repository: its directory.
    """

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._directory = repository / DIRECTORY

    def grant(self, task: TaskName, task_id: str, arguments: Mapping[str, Any]) -> None:
        """Permit one task.

        Raises:
            RepositoryError: this user may not write to the repository.
        """
        path = self._path(task_id)
        try:
            make_hidden(self._directory)
            write_durably(path, json.dumps({"digest": _digest(task, arguments)}).encode())
        except OSError as error:
            raise RepositoryError(
                f"a restore by a worker needs a permit in {self._directory}, which cannot be written: {error.strerror}",
                hint="Run this as the user that the backups belong to, or give --local to restore without a worker.",
            ) from error

    def withdraw(self, task_id: str) -> bool:
        """Take a permit back that nobody has begun to use; whether that is so, and the task will not be done."""
        try:
            self._path(task_id).unlink()
        except OSError:
            return False
        return True

    def take(self, task: TaskName, task_id: str, arguments: Mapping[str, Any]) -> None:
        """Begin to use the permit for the task as it is; the same task can do so again after it was cut off.

        Raises:
            RefusedError: there is none, or it is for something else, or too old.
        """
        begun = self._begun(task_id)
        with suppress(FileNotFoundError):
            if not -_CLOCK_SECONDS <= time.time() - self._path(task_id).stat().st_mtime <= LIFETIME_SECONDS:
                raise RefusedError("the permit for this restore is more than a day old", hint=_AGAIN)
            self._path(task_id).rename(begun)
        try:
            digest = json.loads(begun.read_bytes())["digest"]
        except PermissionError:
            raise RefusedError(
                f"the permit for this restore is another user's, and the worker may not read it: {begun}",
                hint=f"chown -R --reference={shlex.quote(str(self._repository))} {shlex.quote(str(self._directory))}",
            ) from None
        except (OSError, ValueError, KeyError, TypeError):
            raise RefusedError(
                "nobody who may read the backups has asked for this restore",
                hint="Start restores with ./tools/restore.sh; a task that comes from elsewhere is refused.",
            ) from None
        if digest != _digest(task, arguments):
            raise RefusedError("the permit for this restore is for other arguments", hint=_AGAIN)

    def use_up(self, task_id: str) -> None:
        """Be done with a permit; harmless where there is none."""
        for path in (self._path(task_id), self._begun(task_id)):
            with suppress(OSError):
                path.unlink()

    def _path(self, task_id: str) -> Path:
        return self._directory / f"{os.path.basename(task_id)}.json"

    def _begun(self, task_id: str) -> Path:
        return self._directory / f"{os.path.basename(task_id)}.begun"


_AGAIN: Final = "Start it again with ./tools/restore.sh."


def _digest(task: TaskName, arguments: Mapping[str, Any]) -> str:
    return sha256(json.dumps([task.value, dict(arguments)], sort_keys=True).encode()).hexdigest()
