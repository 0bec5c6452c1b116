"""`BACKUP_FILE_COLUMNS`: the columns of the database that refer to uploads."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from portal.ops.settings.parsers import OFF, UnusableError

_COLUMN: Final = re.compile(r"(?:([^.=\s]+)\.)?([^.=\s]+)\.([^.=\s]+)(?:\s*=\s*([^=]+))?")


@dataclass(frozen=True, kw_only=True)
class FileColumn:
    """A column with paths below the uploads.

    Arguments:
        schema: the schema; empty for any.
        directory: the directory in the uploads to which the values are relative.
    """

    table: str
    column: str
    schema: str = ""
    directory: str = ""

    def __str__(self) -> str:
        return ".".join(filter(None, (self.schema, self.table, self.column)))


@dataclass(frozen=True, kw_only=True)
class FileColumns:
    """The columns to check.

    Arguments:
        checked: False for ``off``, when the uploads do not belong to the database.
        columns: columns in addition to DefectDojo's.
    """

    checked: bool = True
    columns: tuple[FileColumn, ...] = ()


def file_columns(text: str) -> FileColumns:
    """Parse ``schema.table.column=directory``, schema and directory optional, separated by commas; or ``off``."""
    if text.strip().lower() == OFF:
        return FileColumns(checked=False)
    return FileColumns(columns=tuple(_column(part.strip()) for part in text.split(",") if part.strip()))


def _column(text: str) -> FileColumn:
    found = _COLUMN.fullmatch(text)
    if not found:
        raise UnusableError(f"has {text!r}, which is not table.column or table.column=directory, nor {OFF}")
    schema, table, column, directory = (part or "" for part in found.groups())
    directory = directory.strip().strip("/")
    if ".." in directory.split("/"):
        raise UnusableError(f"has the directory {directory!r}, which leads out of the uploads")
    return FileColumn(schema=schema, table=table, column=column, directory=directory)
