"""Checks that restored database and uploads match: every row's file exists, and every file has a row.

Columns of DefectDojo are known by name, and used if the schema has them; ``BACKUP_FILE_COLUMNS`` adds others, or
switches the check off. A value is a path below the uploads; an absolute path starts at DefectDojo's media root.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from portal.ops.model import RESTORE_DIRECTORY
from portal.ops.postgres.connection import connect
from portal.ops.postgres.server import restoring_errors
from portal.ops.restore.files.name_set import Kind, Names

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from psycopg.sql import Composed

    from portal.ops.postgres.connection import Connection
    from portal.ops.settings.database_url import DatabaseTarget
    from portal.ops.settings.file_columns import FileColumn

MOST_NAMED: Final = 20
_THERE, _MISSING = Kind.FILE, Kind.IMPLIED

_KNOWN: Final = (
    ("dojo_fileupload", "file"),
    ("dojo_risk_acceptance", "path"),
    ("dojo_engagement", "tmodel_path"),
    ("dojo_cred_user", "selenium_script"),
    ("dojo_findingimage", "image"),  # until DefectDojo 1.8
    ("dojo_report", "file"),  # until DefectDojo 2.0
)
_NO_FILE: Final = "none"
"""Values that DefectDojo writes for no file."""
_MEDIA_ROOTS: Final = ("/app/media/", "/opt/dojo/media/", "/media/")

_EXISTING: Final = """
    SELECT n.nspname, c.relname, a.attname
    FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped AND n.nspname !~ '^pg_'
        AND c.relname = ANY(%s)
    ORDER BY 1, 2, 3
"""


@dataclass(frozen=True, kw_only=True)
class References:
    """The findings.

    Arguments:
        columns: the columns that were read, as ``table.column``.
        count: the number of different paths in rows.
        missing: the number of paths without a file; `named` has the first ones with their columns.
        elsewhere: absolute paths outside the media, which cannot be checked.
        orphans: files that no row refers to.
        absent: columns in ``BACKUP_FILE_COLUMNS`` that the schema lacks.
    """

    columns: tuple[str, ...] = ()
    count: int = 0
    missing: int = 0
    named: tuple[str, ...] = ()
    elsewhere: int = 0
    orphans: int = 0
    absent: tuple[str, ...] = ()

    def problems(self) -> list[str]:
        """The problems that a restored portal would have."""
        said = [f"{name} is not a column of the database, and BACKUP_FILE_COLUMNS names it" for name in self.absent]
        said += [f"{name}, and the uploads do not have it" for name in self.named]
        if self.missing > len(self.named):
            said.append(f"{self.missing - len(self.named):,} more files that the database refers to are missing")
        return said


@dataclass(frozen=True, kw_only=True)
class _Column:
    schema: str
    table: str
    name: str
    directory: str = ""

    def __str__(self) -> str:
        return f"{self.table}.{self.name}"


def check_references(
    target: DatabaseTarget, uploads: Path, configured: Sequence[FileColumn] = (), *, media_root: str = ""
) -> References:
    """Compare the paths in rows with a tree of files.

    Arguments:
        target: the restored database.
        uploads: the restored uploads.
        configured: columns in addition to DefectDojo's.
        media_root: the live uploads; absolute paths may start with this, or with DefectDojo's media roots.

    Raises:
        SourceError: the server cannot be queried.
        OSError: the tree cannot be read.
    """
    roots = (*((media_root.rstrip("/") + "/",) if media_root else ()), *_MEDIA_ROOTS)
    seen = Names()
    missing = elsewhere = 0
    named: list[str] = []
    with connect(target) as connection, restoring_errors(target):
        columns, absent = _find(connection, configured)
        for column in columns:
            for value in _values(connection, column):
                if value == _NO_FILE and (column.table, column.name) in _KNOWN:
                    continue
                path = _below(value, column.directory, roots)
                if path is None:
                    elsewhere += 1
                    continue
                is_there = _is_file(uploads, path)
                if seen.add(path, _THERE if is_there else _MISSING) is Kind.NOTHING and not is_there:
                    missing += 1
                    if len(named) < MOST_NAMED:
                        named.append(f"{column} refers to {path!r}")
    orphans = sum(seen.kind(path) is not _THERE for path in _files(uploads)) if columns else 0
    return References(
        columns=tuple(map(str, columns)),
        count=len(seen),
        missing=missing,
        named=tuple(named),
        elsewhere=elsewhere,
        orphans=orphans,
        absent=absent,
    )


def _find(connection: Connection, configured: Sequence[FileColumn]) -> tuple[list[_Column], tuple[str, ...]]:
    """The columns that the schema has, and the configured ones that it lacks."""
    tables = [table for table, _ in _KNOWN] + [one.table for one in configured]
    existing = connection.execute(_EXISTING, (tables,)).fetchall()
    found = [
        _Column(schema=schema, table=table, name=name) for schema, table, name in existing if (table, name) in _KNOWN
    ]
    absent = []
    for one in configured:
        fitting = [
            _Column(schema=schema, table=table, name=name, directory=one.directory)
            for schema, table, name in existing
            if (table, name) == (one.table, one.column) and one.schema in ("", schema)
        ]
        if not fitting:
            absent.append(str(one))
        known = {(column.schema, column.table, column.name) for column in fitting}
        found = [column for column in found if (column.schema, column.table, column.name) not in known] + fitting
    return found, tuple(absent)


def _values(connection: Connection, column: _Column) -> Iterator[str]:
    """The different values of a column as file names, one by one, since there may be millions."""
    encoding = connection.info.encoding  # of a database without conversion, such as SQL_ASCII, it is byte for byte
    with connection.cursor() as cursor:
        for (value,) in cursor.stream(_query(column)):
            yield os.fsdecode(value.encode(encoding))


def _query(column: _Column) -> Composed:
    from psycopg import sql

    return sql.SQL("SELECT DISTINCT {0}::text FROM {1} WHERE {0}::text <> ''").format(
        sql.Identifier(column.name), sql.Identifier(column.schema, column.table)
    )


def _below(value: str, directory: str, roots: Sequence[str]) -> str | None:
    """The path below the uploads for a value; None if it is elsewhere."""
    if value.startswith("/"):
        root = next((root for root in roots if value.startswith(root)), None)
        if root is None:
            return None
        value = value[len(root) :]
    return os.path.normpath(os.path.join(directory, value))


def _is_file(uploads: Path, path: str) -> bool:
    """True if there is a file at a path inside the tree."""
    try:
        place = os.path.realpath(uploads / path, strict=True)
        is_file = stat.S_ISREG(os.stat(place).st_mode)
    except (OSError, ValueError):
        return False
    return is_file and place.startswith(os.path.join(os.path.realpath(uploads), ""))


def _files(uploads: Path) -> Iterator[str]:
    """Every file in the tree, by its relative path."""

    def fail(error: OSError) -> Any:
        raise error

    for directory, directories, files in os.walk(uploads, onerror=fail):
        below = os.path.relpath(directory, uploads)
        if below == ".":
            directories[:] = [name for name in directories if name != RESTORE_DIRECTORY]
        yield from (os.path.normpath(os.path.join(below, name)) for name in files)
