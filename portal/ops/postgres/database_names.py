"""The names that a restore gives to databases, which are its only record on the server.

    <name>_restoring_<stamp>  being filled, and incomplete
    <name>_staged_<stamp>     complete and checked, closed to connections, about to become the live one
    <name>_before_<stamp>     the previous live database, kept for a rollback
    <name>_undone_<stamp>     the restored database, kept after a rollback

The stamp comes from the restore's id, ``20260102_030405_ab12cd``. PostgreSQL silently truncates identifiers to 63
bytes, so a name that leaves too little room is shortened here, with a digest to keep it unique.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256
from typing import Final

from portal.ops.errors import ConfigurationError

LONGEST_NAME: Final = 63
"""The most bytes in an identifier."""

_RESTORE_ID: Final = re.compile(r"restore_(\d{8}_\d{6}_[0-9a-f]{6,12})")
_MARKED: Final = re.compile(r".*_(restoring|staged|before|undone)_(\d{8}_\d{6})(_[0-9a-f]{6,12})", re.DOTALL)
_STAMP: Final = "%Y%m%d_%H%M%S"
_DIGEST_LENGTH: Final = 6


class Role(StrEnum):
    """The roles of a database in a restore."""

    RESTORING = "restoring"
    STAGED = "staged"
    BEFORE = "before"
    UNDONE = "undone"


@dataclass(frozen=True, kw_only=True)
class Names:
    """The database names of one restore.

    Arguments:
        live: the database that the portal uses.
        stamp: the restore's id without ``restore_``.
    """

    live: str
    stamp: str

    @classmethod
    def of(cls, live: str, restore_id: str) -> Names:
        """The names for a restore of a live database.

        Raises:
            ConfigurationError: the id is not a restore's, or the database's name is too long.
        """
        found = _RESTORE_ID.fullmatch(restore_id)
        if found is None:
            raise ConfigurationError(
                f"{restore_id!r} is not the id of a restore", hint="it looks like restore_20260102_030405_ab12cd"
            )
        if not 0 < len(live.encode()) <= LONGEST_NAME:
            raise ConfigurationError(
                f"{live!r} cannot be the name of a database: it takes 1 to {LONGEST_NAME} bytes",
                hint="check DD_DATABASE_NAME",
            )
        return cls(live=live, stamp=found[1])

    def name(self, role: Role) -> str:
        """The name of the database in a role."""
        suffix = f"_{role.value}_{self.stamp}"
        return _shorten(self.live, LONGEST_NAME - len(suffix)) + suffix


@dataclass(frozen=True, kw_only=True)
class Marked:
    """A database made by a restore, parsed from its name.

    Arguments:
        moment: the start of the restore, in UTC.
    """

    name: str
    role: Role
    restore_id: str
    moment: datetime

    @classmethod
    def parse(cls, name: str, live: str) -> Marked | None:
        """Parse a database's name; None if no restore of this live database made it."""
        found = _MARKED.fullmatch(name)
        if found is None:
            return None
        role, restore_id = Role(found[1]), f"restore_{found[2]}{found[3]}"
        if Names.of(live, restore_id).name(role) != name:
            return None
        try:
            moment = datetime.strptime(found[2], _STAMP).replace(tzinfo=UTC)
        except ValueError:
            return None
        return cls(name=name, role=role, restore_id=restore_id, moment=moment)


def _shorten(name: str, room: int) -> str:
    """Cut a name to a number of bytes, at a character boundary."""
    if len(name.encode()) <= room:
        return name
    digest = sha256(name.encode()).hexdigest()[:_DIGEST_LENGTH]
    head = name.encode()[: room - len(digest) - 1].decode(errors="ignore")
    return f"{head}_{digest}"
