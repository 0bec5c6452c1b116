"""The keys for signing tasks and results: `.keys/tasks.json` in the repository, readable by its owner alone.

Whoever may read the backups may request tasks; access to the broker alone is not enough. The file's first key signs,
all of them verify. A rotation adds a new first key; older keys stay valid as long as a task or result signed with them
can still arrive, and the rotation after that removes them.
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
from portal.ops.filesystem.temporary import temporary_name
from portal.ops.repository.durable import make_directories, make_hidden, sync_directory, write_durably
from portal.ops.repository.faults import explain
from portal.ops.repository.locks import locked_file
from portal.ops.repository.repository import Repository

if TYPE_CHECKING:
    from pathlib import Path

DIRECTORY: Final = ".keys"
NAME: Final = "tasks.json"
LOCK: Final = ".lock"
RETIRED_SECONDS: Final = 8 * 24 * 3600
"""Seconds that a retired key stays valid: tasks and results are valid for 7 days, and clocks and long tasks need one
more."""

_KEY_BYTES: Final = 32
_LOCK_SECONDS: Final = 10.0
_MOST_BYTES: Final = 1 << 20
_DENIED: Final = "Run this as the user that the backups belong to, or give --local to work without a worker."


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key.

    Arguments:
        name: the key's name in signatures.
        secret: the key.
        retired: when it stopped signing, in seconds since 1970; None for the current key.
    """

    name: str
    secret: bytes
    retired: float | None = None

    def __repr__(self) -> str:
        return f"Key({self.name})"


class TaskKeys:
    """The keys of a repository, read again when the file changes.

    Arguments:
        repository: the repository's directory.
    """

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._path = repository / DIRECTORY / NAME
        self._keys: tuple[Key, ...] = ()
        self._read_as: tuple[int, int] | None = None

    @property
    def path(self) -> Path:
        """The path of the file."""
        return self._path

    def current(self, *, may_be_new: bool = False) -> Key:
        """The key that signs; the first call in a repository creates it.

        Arguments:
            may_be_new: create a key even if the repository used at this path before is absent.

        Raises:
            RepositoryError: the key can neither be read nor created, or that repository is absent.
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
        """The key of that name, or None.

        Raises:
            RepositoryError: the file cannot be read.
        """
        try:
            return next((key for key in self._all() if key.name == name), None)
        except OSError as error:
            raise self._unusable(error) from error

    def rotate(self) -> Key:
        """Sign with a new key from now on; the previous one stays valid for a while.

        Raises:
            BusyError: another rotation did not end in time.
            RepositoryError: the file cannot be read or written, or the repository used here before is absent.
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
        """All keys, the signing one first; empty before the first task.

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
        """Write the first key; if two processes do that at once, one key stays."""
        make_directories(self._repository)
        make_hidden(self._path.parent)
        mine = self._path.with_name(temporary_name(NAME))
        write_durably(mine, _encode([_new_key()]))
        try:
            os.link(mine, self._path)
        except FileExistsError:
            pass
        finally:
            mine.unlink()
            sync_directory(self._path.parent)

    def _unusable(self, error: OSError) -> RepositoryError:
        return explain(error, "cannot use the key that signs tasks,", self._path, denied=_DENIED)


def _new_key() -> Key:
    return Key(name=secrets.token_hex(4), secret=secrets.token_bytes(_KEY_BYTES))


def _encode(keys: list[Key]) -> bytes:
    said = [{"name": key.name, "secret": key.secret.hex(), "retired": key.retired} for key in keys]
    return json.dumps({"version": 1, "keys": said}).encode() + b"\n"


def _decode(text: bytes) -> tuple[Key, ...]:
    found: list[dict[str, Any]] = json.loads(text)["keys"]
    if not found:
        raise ValueError("there is no key")
    return tuple(
        Key(name=str(one["name"]), secret=bytes.fromhex(one["secret"]), retired=one["retired"]) for one in found
    )


def main() -> int:
    """`python -m worker.keys`: show or rotate the keys; return the exit code."""
    from portal.ops.errors import OpsError
    from portal.ops.runtime.environment import current_settings

    parser = argparse.ArgumentParser(
        prog="tools/service.sh keys", description="Show or rotate the keys that tasks are signed with."
    )
    parser.add_argument(
        "action",
        nargs="?",
        choices=["list", "rotate"],
        default="list",
        help="list: show them (default); rotate: sign with a new key from now on",
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
