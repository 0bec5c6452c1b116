"""The keys that tasks and results are signed with: `.keys/tasks.json` in the repository, readable by its owner alone.

Whoever may read the backups may request tasks; whoever can only reach the broker may not. The first key of the file
signs, all of them verify. A rotation puts a new key first; the keys before it remain valid for as long as a task or a
result can still be under way, and are removed by the rotation after that.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import secrets
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from portal.ops.errors import RepositoryError
from portal.ops.repository.durable import make_directories, make_hidden, sync_directory, write_durably
from portal.ops.repository.locks import locked_file
from portal.ops.repository.repository import Repository
from portal.ops.units import system_reason

if TYPE_CHECKING:
    from pathlib import Path

DIRECTORY: Final = ".keys"
NAME: Final = "tasks.json"
LOCK: Final = ".lock"
RETIRED_SECONDS: Final = 8 * 24 * 3600
"""A task is valid for 7 days, and its result is kept for 7 days; a day more covers clocks and long tasks."""

_KEY_BYTES: Final = 32
_LOCK_SECONDS: Final = 10.0
_MOST_BYTES: Final = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key.

    Arguments:
        name: how signatures name it.
        secret: the key itself.
        retired: when it stopped signing, in seconds since the epoch; nothing for the current key.
    """

    name: str
    secret: bytes
    retired: float | None = None

    def __repr__(self) -> str:
        return f"Key({self.name})"


class TaskKeys:
    """The keys of a repository, read again whenever the file has changed.

    Arguments:
        repository: the directory of the archives.
    """

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._path = repository / DIRECTORY / NAME
        self._keys: tuple[Key, ...] = ()
        self._read_as: tuple[int, int] | None = None

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    def current(self, *, may_be_new: bool = False) -> Key:
        """The key to sign with; the first call in a repository creates it.

        Arguments:
            may_be_new: create one also where the repository that was used at this path is not there.

        Raises:
            RepositoryError: it can neither be read nor created, or that repository is not there.
        """
        try:
            if not self._all():
                if not may_be_new:
                    Repository(self._repository).refuse_absent()
                self._create()
            return self._all()[0]
        except OSError as error:
            raise self._unusable(error) from error

    def named(self, name: str) -> Key | None:
        """The key of that name; nothing where there is none.

        Raises:
            RepositoryError: the file cannot be read.
        """
        try:
            return next((key for key in self._all() if key.name == name), None)
        except OSError as error:
            raise self._unusable(error) from error

    def rotate(self) -> Key:
        """Sign with a new key from now on; the one before is still accepted for a while.

        Raises:
            BusyError: another rotation did not end in time.
            RepositoryError: the file cannot be read or written, or the repository that was used here is not there.
        """
        now = time.time()
        Repository(self._repository).refuse_absent()
        try:
            make_directories(self._path.parent.parent)
            make_hidden(self._path.parent)
            with locked_file(self._path.with_name(LOCK), fcntl.LOCK_EX, _LOCK_SECONDS, what="the keys for tasks"):
                kept = [key for key in self._all() if key.retired is None or now - key.retired <= RETIRED_SECONDS]
                retired = [Key(name=key.name, secret=key.secret, retired=key.retired or now) for key in kept]
                write_durably(self._path, _encode([_new_key(), *retired]))
                self._read_as = None
                return self._all()[0]
        except OSError as error:
            raise self._unusable(error) from error

    def all(self) -> tuple[Key, ...]:
        """Every key, the one that signs first; none before the first task.

        Raises:
            RepositoryError: the file cannot be read.
        """
        try:
            return self._all()
        except OSError as error:
            raise self._unusable(error) from error

    def _all(self) -> tuple[Key, ...]:
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                if self._read_as != (found.st_ino, found.st_mtime_ns):
                    self._keys = _decode(file.read(_MOST_BYTES))
                    self._read_as = (found.st_ino, found.st_mtime_ns)
        except FileNotFoundError:
            return ()
        except (ValueError, KeyError, TypeError) as error:
            raise RepositoryError(
                f"the keys for tasks are damaged: {self._path}",
                hint="Remove the file; a new key is created, and tasks that are queued are requested again.",
            ) from error
        return self._keys

    def _create(self) -> None:
        """Write the first key; of two processes that do so at once, the key of one stays."""
        make_directories(self._repository)
        make_hidden(self._path.parent)
        mine = self._path.with_name(f"{NAME}.{os.getpid()}.{secrets.token_hex(4)}")
        write_durably(mine, _encode([_new_key()]))
        try:
            os.link(mine, self._path)
        except FileExistsError:
            pass
        finally:
            mine.unlink()
            sync_directory(self._path.parent)

    def _unusable(self, error: OSError) -> RepositoryError:
        return RepositoryError(
            f"tasks are signed with a key in {self._path}, which cannot be used: {system_reason(error)}",
            hint="Run this as the user that the backups belong to, or give --local to work without a worker.",
        )


def _new_key() -> Key:
    return Key(name=secrets.token_hex(4), secret=secrets.token_bytes(_KEY_BYTES))


def _encode(keys: list[Key]) -> bytes:
    said = [{"name": key.name, "secret": key.secret.hex(), "retired": key.retired} for key in keys]
    return json.dumps({"version": 1, "keys": said}).encode() + b"\n"


def _decode(text: bytes) -> tuple[Key, ...]:
    found: list[dict[str, Any]] = json.loads(text)["keys"]
    return tuple(
        Key(name=str(one["name"]), secret=bytes.fromhex(one["secret"]), retired=one["retired"]) for one in found
    )


def main() -> int:
    """`python -m worker.keys`: show the keys, or rotate them; the exit code."""
    from portal.ops.errors import OpsError
    from portal.ops.runtime.environment import current_settings

    parser = argparse.ArgumentParser(prog="tools/service.sh keys", description="The keys that tasks are signed with.")
    parser.add_argument(
        "action", nargs="?", choices=["list", "rotate"], default="list", help="list (default) or rotate"
    )
    action = parser.parse_args().action
    try:
        keys = TaskKeys(current_settings().local_path)
        if action == "rotate":
            keys.rotate()
        for key in keys.all():
            sys.stdout.write(f"{_described(key)}\n")
    except OpsError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


def _described(key: Key) -> str:
    if key.retired is None:
        return f"{key.name}  signs"
    until = datetime.fromtimestamp(key.retired + RETIRED_SECONDS, UTC)
    return f"{key.name}  is accepted until {until:%Y-%m-%d %H:%M} UTC"


if __name__ == "__main__":
    sys.exit(main())
