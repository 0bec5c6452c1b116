"""Sessions of the portal itself: they find tables by their names alone, as those of the engine do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from portal.ops.postgres.connection import connect

if TYPE_CHECKING:
    from portal.ops.postgres.connection import Connection
    from portal.ops.settings.database_url import DatabaseTarget


def session(target: DatabaseTarget) -> Connection:
    """Open a session with the search path of the user and the database."""
    opened = connect(target)
    opened.execute("RESET search_path")
    return opened
