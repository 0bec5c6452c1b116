"""`BACKUP_FILE_COLUMNS`: the columns of the database that refer to uploads."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from portal.ops.settings.parsers import OFF, UnusableError

_COLUMN: Final = re.compile(r"(?:([^.=\s]+)\.)?([^.=\s]+)\.([^.=\s]+)(?:\s*=\s*([^=]+))?")


@dataclass(frozen=True, kw_only=True)
class FileColumn:
    """A column whose values are paths below the uploads.

    Arguments:
        schema: empty means any.
        directory: below the uploads, what the values are relative to.
    """

    table: str
    column: str
    schema: str = ""
    directory: str = ""

    def __str__(self) -> str:
        return ".".join(filter(None, (self.schema, self.table, self.column)))


@dataclass(frozen=True, kw_only=True)
class FileColumns:
    """The checked values.

    Arguments:
        checked: False for ``off``: the uploads are another tree than the one that the database refers to.
        columns: beside DefectDojo's own.
    """

    checked: bool = True
    columns: tuple[FileColumn, ...] = ()


def file_columns(text: str) -> FileColumns:
    """Take ``schema.table.column=directory``, schema and directory optional, with commas between them; or ``off``."""
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
