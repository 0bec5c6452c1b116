"""Authorizations for restores: files that a person's command leaves in the repository, each valid for one task.

A task that changes live data is only done if `.authorizations/<task_id>.json` exists, with exactly the task's
arguments. Only users who may read the backups can write this file.

A worker that begins takes the authorization by renaming it to `<task_id>.begun`; until then the command can withdraw
it. So exactly one of them has it, and each knows who.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from contextlib import suppress
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from portal.ops.repository.durable import make_hidden, sync_directory, write_durably
from portal.ops.repository.faults import explain
from worker.command_lines import RESTORE
from worker.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from worker.operations import Operation

DIRECTORY: Final = ".authorizations"

_LIFETIME_SECONDS: Final = 24 * 3600
_CLOCK_SECONDS: Final = 300
_DENIED: Final = "Run this as the user that the backups belong to, or give --local to restore without a worker."


class Authorizations:
    """The authorizations in a repository.

    Arguments:
        repository: its directory.
    """

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._directory = repository / DIRECTORY

    def grant(self, operation: Operation, task_id: str, arguments: Mapping[str, Any]) -> None:
        """Authorize one task.

        Raises:
            RepositoryError: this user cannot write to the repository.
        """
        path = self._path(task_id)
        try:
            make_hidden(self._directory)
            write_durably(path, json.dumps({"digest": _digest(operation, arguments)}).encode())
        except OSError as error:
            raise explain(error, "cannot authorize a restore by a worker in", path, denied=_DENIED) from error

    def withdraw(self, task_id: str) -> bool:
        """Withdraw an authorization unless its task has begun; return whether it was withdrawn."""
        try:
            self._path(task_id).unlink()
            sync_directory(self._directory)
        except OSError:
            return False
        return True

    def take(self, operation: Operation, task_id: str, arguments: Mapping[str, Any]) -> None:
        """Take the authorization for a task; the same task can take it again after an interruption.

        Raises:
            RefusedError: there is none, or it is for other arguments, or too old.
        """
        begun = self._begun(task_id)
        with suppress(FileNotFoundError):
            if not -_CLOCK_SECONDS <= time.time() - self._path(task_id).stat().st_mtime <= _LIFETIME_SECONDS:
                raise RefusedError("the authorization for this restore is more than a day old", hint=_AGAIN)
            self._path(task_id).rename(begun)
        try:
            digest = json.loads(begun.read_bytes())["digest"]
        except PermissionError:
            raise RefusedError(
                f"the authorization for this restore belongs to another user, and the worker may not read it: {begun}",
                hint=f"chown -R --reference={shlex.quote(str(self._repository))} {shlex.quote(str(self._directory))}",
            ) from None
        except (OSError, ValueError, KeyError, TypeError):
            raise RefusedError(
                "nobody who may read the backups has asked for this restore",
                hint=f"Start restores with {RESTORE}; a task that comes from elsewhere is refused.",
            ) from None
        if digest != _digest(operation, arguments):
            raise RefusedError("the authorization for this restore is for other arguments", hint=_AGAIN)

    def use_up(self, task_id: str) -> None:
        """Remove an authorization, if there is one."""
        for path in (self._path(task_id), self._begun(task_id)):
            with suppress(OSError):
                path.unlink()
                sync_directory(self._directory)

    def _path(self, task_id: str) -> Path:
        return self._directory / f"{os.path.basename(task_id)}.json"

    def _begun(self, task_id: str) -> Path:
        return self._directory / f"{os.path.basename(task_id)}.begun"


_AGAIN: Final = f"Start it again with {RESTORE}."


def _digest(operation: Operation, arguments: Mapping[str, Any]) -> str:
    return sha256(json.dumps([operation.name, dict(arguments)], sort_keys=True).encode()).hexdigest()
