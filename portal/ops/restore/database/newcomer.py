"""A database that a restore has made where there was none, known by the server's number of it.

Elsewhere the names of databases tell how far a restore is, since what was live before is kept under a name of its own.
Where nothing was live, nothing is kept, and a database of the live name could be anybody's: so its number is noted
before it gets that name. A database keeps its number when it is renamed, and no other one ever gets it.
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
    """A note of one.

    Arguments:
        path: where it is kept; nothing where nothing can be noted.
        restore_id: the restore that it belongs to.
    """

    path: Path | None
    restore_id: str

    def number(self) -> int | None:
        """The server's number of the database; nothing where this restore has noted none.

        Raises:
            RepositoryError: the note cannot be read.
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
        """Put the number on the disk.

        Raises:
            RepositoryError: it cannot be written.
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
        """Remove the note."""
        if self.path is not None and self.number() is not None:
            self.path.unlink(missing_ok=True)
