"""Finds sessions that block others in a database, so that a person can decide what to do."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg.rows import class_row

from portal.ops.errors import BusyError, OpsError
from portal.ops.postgres.connection import connect
from portal.ops.postgres.table_names import table_name

if TYPE_CHECKING:
    from collections.abc import Collection

    from portal.ops.postgres.connection import Connection
    from portal.ops.settings.load import DatabaseTarget

_NAMED: Final = 5
_STRONGEST: Final = "AccessExclusiveLock"

# Locks on tables that block readers, and locks for which a session waits already.
_HOLDERS: Final = """
    SELECT n.nspname AS schema, c.relname AS relation, l.mode, l.pid,
           coalesce(a.application_name, '') AS application, coalesce(a.usename, '') AS user,
           coalesce(a.state, '') AS state,
           coalesce(to_char(a.xact_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'), '') AS since
    FROM pg_locks AS l LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
    JOIN pg_class AS c ON c.oid = l.relation JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE l.granted AND l.pid <> pg_backend_pid() AND l.database = (
        SELECT oid FROM pg_database WHERE datname = current_database())
      AND l.locktype = 'relation' AND c.relkind IN ('r', 'p', 'm', 'S', 'v') AND n.nspname !~ '^pg_'
      AND (cardinality(%(pids)s::int[]) = 0 OR l.pid = ANY(%(pids)s::int[]))
    ORDER BY l.mode <> 'AccessExclusiveLock', l.mode = 'AccessShareLock', a.xact_start, n.nspname, c.relname
"""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A session that holds a lock.

    Arguments:
        since: the start of its transaction, in UTC; empty if the user may not see it.
    """

    schema: str
    relation: str
    mode: str
    pid: int
    application: str
    user: str
    state: str
    since: str

    @property
    def what(self) -> str:
        """The locked table."""
        return table_name(self.schema, self.relation)

    def __str__(self) -> str:
        who = f"process {self.pid} ({self.application or 'an unnamed application'}, user {self.user or 'unknown'})"
        since = f" since {self.since} UTC" if self.since else ""
        return f"{who} holds {self.mode} on {self.what}{since}{f', {self.state}' if self.state else ''}"


def lock_holders(connection: Connection, pids: Collection[int] = ()) -> list[Holder]:
    """The sessions with locks on tables that block everybody or, if there are none, all with locks.

    Arguments:
        pids: only consider these sessions; empty for all.
    """
    with connection.cursor(row_factory=class_row(Holder)) as cursor:
        found = cursor.execute(_HOLDERS, {"pids": list(pids)}).fetchall()
    strongest = [holder for holder in found if holder.mode == _STRONGEST]
    return strongest or found


def locked_out(target: DatabaseTarget, pids: Collection[int] = (), holders: Collection[Holder] = ()) -> BusyError:
    """The error for a lock that was not obtained in time; it names the holder, since when, and what to do.

    Arguments:
        pids: the sessions that hold the lock, if known.
        holders: the holders, if they were queried already.
    """
    found = list(holders)
    if not found:
        with suppress(OpsError, psycopg.Error), connect(target) as connection:
            found = lock_holders(connection, pids)
    who = "; ".join(map(str, found[:_NAMED])) or "a session that is gone by now"
    more = f"; and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    ending = ", ".join(
        f"SELECT pg_terminate_backend({pid})" for pid in dict.fromkeys(one.pid for one in found[:_NAMED])
    )
    return BusyError(
        f"waited {target.lock_seconds:g} s for a lock in database {target.name}: {who}{more}",
        hint=f"wait until that session ends, or end it: {ending or 'see pg_locks and pg_stat_activity'}; "
        "then try again (BACKUP_LOCK_TIMEOUT says how long to wait)",
    )
