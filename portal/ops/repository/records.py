"""Small records about archives: one JSON file each, in a hidden directory of the repository.

A record is replaced as a whole and has the version of its format, so that every later release can read it. A damaged
record is reported with a hint and counts as absent: it is only knowledge about an archive.
"""

from __future__ import annotations

import json
import os
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from portal.ops.errors import OpsError, RepositoryError
from portal.ops.repository.durable import make_hidden, sync_directory, write_durably
from portal.ops.repository.faults import explain
from portal.ops.runtime.logs import engine_log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

log = engine_log("portal.ops.repository.records")

VERSION: Final = 1
ENVELOPE: Final = frozenset(["version"])
"""What a record has besides the fields of its subject."""

_SUFFIX: Final = ".json"
_MOST_BYTES: Final = 16 << 20
"""A larger file is none of our records."""


class DamagedRecordError(RepositoryError):
    """Raised if a record is invalid; its subject may be intact."""


class RecordStore:
    """The records of one kind.

    Arguments:
        directory: their directory, which need not exist yet.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, name: str, facts: Mapping[str, Any]) -> str:
        """Write a record durably, replacing an older one; return the SHA-256 of its file.

        Raises:
            RepositoryError: it cannot be written.
        """
        data = json.dumps({"version": VERSION, **facts}, indent=2).encode("ascii") + b"\n"
        try:
            make_hidden(self.directory)
            write_durably(self._path(name), data)
        except OSError as error:
            raise explain(error, "cannot write", self._path(name)) from error
        return sha256(data).hexdigest()

    def read(self, name: str) -> dict[str, Any] | None:
        """Read a record; None if there is none.

        Raises:
            DamagedRecordError: it is invalid.
            RepositoryError: it cannot be read.
        """
        path = self._path(name)
        try:
            with path.open("rb") as file:
                data = file.read(_MOST_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise explain(error, "cannot read", path) from error
        try:
            found: dict[str, Any] = json.loads(data)
            version = found["version"]  # a TypeError where it is no object
        except (KeyError, RecursionError, TypeError, ValueError) as error:
            raise self.damaged(name) from error
        if version != VERSION:
            raise self.damaged(name)
        return found

    def digest(self, name: str) -> str | None:
        """The SHA-256 of a record's file, or None if there is none.

        Raises:
            RepositoryError: it cannot be read.
        """
        try:
            return sha256(self._path(name).read_bytes()).hexdigest()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise explain(error, "cannot read", self._path(name)) from error

    def names(self) -> list[str]:
        """The names of the records, sorted.

        Raises:
            RepositoryError: the directory cannot be read.
        """
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise explain(error, "cannot read", self.directory) from error
        return sorted(name.removesuffix(_SUFFIX) for name in names if is_record(name))

    def each(self, decode: Callable[[dict[str, Any]], Any]) -> Iterator[tuple[str, Any]]:
        """Every record, decoded; None for a damaged one, which is logged.

        Arguments:
            decode: converts the facts; errors that it raises count as damage.
        """
        for name in self.names():
            try:
                yield name, self.decoded(name, decode)
            except OpsError as error:
                log.warning("record_unreadable", path=str(self._path(name)), error=str(error))
                yield name, None

    def decoded(self, name: str, decode: Callable[[dict[str, Any]], Any]) -> Any:
        """One record, decoded, or None if there is none.

        Raises:
            DamagedRecordError: it is invalid.
            RepositoryError: it cannot be read.
        """
        found = self.read(name)
        if found is None:
            return None
        try:
            return decode(found)
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise self.damaged(name) from error

    def remove(self, name: str) -> bool:
        """Remove a record; return whether there was one.

        Raises:
            RepositoryError: it cannot be removed.
        """
        try:
            self._path(name).unlink()
            sync_directory(self.directory)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise explain(error, "cannot remove", self._path(name)) from error
        return True

    def damaged(self, name: str) -> DamagedRecordError:
        """The error for an invalid record."""
        path = self._path(name)
        return DamagedRecordError(
            f"the record {path} is invalid",
            hint=f"Move it away ({path.name} in {path.parent}): the archive itself is not touched by that.",
        )

    def _path(self, name: str) -> Path:
        return self.directory / f"{name}{_SUFFIX}"


def is_record(name: str) -> bool:
    """True if a file name is that of a record, not of an unfinished write."""
    return name.endswith(_SUFFIX) and not name.startswith(".")
