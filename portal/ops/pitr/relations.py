"""Maps the file numbers in the WAL to the names of tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from portal.ops.errors import OpsError
from portal.ops.postgres.connection import connect
from portal.ops.postgres.explained import explained_errors
from portal.ops.runtime.logs import engine_log

if TYPE_CHECKING:
    from portal.ops.settings.load import DatabaseTarget

log = engine_log("portal.ops.pitr.relations")

_RELATIONS: Final = """
    SELECT pg_relation_filenode(c.oid)::bigint, format('%I.%I', n.nspname, c.relname)
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
      AND pg_relation_filenode(c.oid) IS NOT NULL
"""
_DATABASE: Final = "SELECT oid::bigint FROM pg_database WHERE datname = current_database()"


def read_relations(target: DatabaseTarget) -> dict[str, Any]:
    """The database's oid, and table names by file number; empty if the database cannot be queried."""
    try:
        with connect(target) as connection, explained_errors(target):
            (database,) = connection.execute(_DATABASE).fetchone() or (0,)
            names = {str(number): str(name) for number, name in connection.execute(_RELATIONS)}
    except OpsError as error:
        log.warning("relations_unknown", error=error.message)
        return {}
    return {"database": int(database), "names": names}


def by_number(relations: dict[str, Any]) -> dict[tuple[int, int], str]:
    """The names by database and file number, as the WAL refers to tables."""
    database = int(relations.get("database", 0))
    return {(database, int(number)): name for number, name in relations.get("names", {}).items()}
