"""Remembers a database that a restore created where there was none, by its oid.

Otherwise the names of databases show how far a restore is, since the previous database is kept under a name of its own.
Without a previous database nothing is kept, and a database with the live name could be anybody's. So its oid is
recorded before it gets that name. A database keeps its oid when it is renamed, and no other database ever gets it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from portal.ops.errors import RepositoryError
from portal.ops.repository.durable import make_directories, write_durably
from portal.ops.units import system_reason

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Newcomer:
    """The record of such a database.

    Arguments:
        path: the file; None if nothing can be recorded.
        restore_id: the restore.
    """

    path: Path | None
    restore_id: str

    def number(self) -> int | None:
        """The recorded oid, or None if this restore has recorded none.

        Raises:
            RepositoryError: the file cannot be read.
        """
        if self.path is None or not self.path.exists():
            return None
        try:
            found = json.loads(self.path.read_bytes())
            return int(found["oid"]) if found["restore_id"] == self.restore_id else None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RepositoryError(
                f"cannot read {self.path}: {error}", hint="it says which database the restore beside it has made"
            ) from error

    def note(self, number: int) -> None:
        """Record the oid durably.

        Raises:
            RepositoryError: the file cannot be written.
        """
        if self.path is None:
            return
        try:
            make_directories(self.path.parent)
            write_durably(self.path, json.dumps({"restore_id": self.restore_id, "oid": number}).encode("ascii"))
        except OSError as error:
            raise RepositoryError(
                f"cannot write {self.path}: {system_reason(error)}", hint="make room in the repository, and try again"
            ) from error

    def forget(self) -> None:
        """Remove the record."""
        if self.path is not None and self.number() is not None:
            self.path.unlink(missing_ok=True)
