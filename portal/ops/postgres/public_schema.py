"""The schema `public` of servers before version 15, which belongs to an administrator and not to the database's owner.

pg_dump writes its comment, even if that is the usual one, when all identifiers are quoted; only the schema's owner may
restore it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from portal.ops.postgres.connection import Connection
    from portal.ops.postgres.toc import Entry

_NAMES: Final = ('SCHEMA "public"', "SCHEMA public")
_IS_OURS: Final = "SELECT pg_has_role(%s::name, nspowner, 'USAGE') FROM pg_namespace WHERE nspname = 'public'"


def without_comment_on_public(connection: Connection, entries: Sequence[Entry], role: str) -> Sequence[Entry]:
    """Leave out the comment on `public` if a role does not own that schema in the connected database.

    Arguments:
        entries: entries of a dump.
        role: the role that restores them.
    """
    row = connection.execute(_IS_OURS, [role]).fetchone()
    if row is None or row[0]:
        return entries
    return [entry for entry in entries if not (entry.kind == "COMMENT" and entry.name in _NAMES)]
