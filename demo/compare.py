"""Compares databases, trees and files by their contents: every row, byte, mode and time."""

from __future__ import annotations

import os
import stat
from hashlib import sha256
from typing import TYPE_CHECKING

from psycopg.sql import SQL, Identifier

from portal.ops.model import RESTORE_DIRECTORY

if TYPE_CHECKING:
    from pathlib import Path

    import psycopg

_TABLES = """
    SELECT n.nspname, c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' ORDER BY 1, 2
"""
_ROWS = "SELECT count(*), coalesce(md5(string_agg(t::text, E'\\n' ORDER BY t::text)), '') FROM {} AS t"


def table_contents(connection: psycopg.Connection) -> dict[str, tuple[int, str]]:
    """For each table the number of rows, and a digest of all of them."""
    contents = {}
    for schema, table in connection.execute(_TABLES).fetchall():
        row = connection.execute(SQL(_ROWS).format(Identifier(schema, table))).fetchone()
        assert row is not None
        contents[f"{schema}.{table}"] = row[0], row[1]
    return contents


def tree_contents(root: Path) -> dict[str, tuple[int, int, str]]:
    """For each name below a directory its mode, its mtime in nanoseconds, and a digest of its content."""
    contents = {}
    for directory, names, files in os.walk(root):
        names[:] = [name for name in names if name != RESTORE_DIRECTORY]  # rollback data
        for name in (*names, *files):
            path = os.path.join(directory, name)
            found = os.lstat(path)
            contents[os.path.relpath(path, root)] = found.st_mode, found.st_mtime_ns, _digest(path, found.st_mode)
    return contents


def file_digest(path: Path) -> str:
    """The SHA-256 of one file."""
    return sha256(path.read_bytes()).hexdigest()


def _digest(path: str, mode: int) -> str:
    if stat.S_ISLNK(mode):
        return os.readlink(path)
    if not stat.S_ISREG(mode):
        return ""
    with open(path, "rb") as file:
        return sha256(file.read()).hexdigest()
