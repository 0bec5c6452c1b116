"""Names of tables as text that does not depend on a server: `schema.table`, each part quoted only where it has to be.

A server quotes keywords too, and which words those are changes with its version and its settings. So names are read
from catalogs raw, written by `table_name`, and what an older release or a server has quoted is brought to the same
form. Two texts are equal if and only if they mean the same table.
"""

from __future__ import annotations

import re
from typing import Final

_PLAIN: Final = re.compile(r"[a-z_][a-z0-9_$]*", re.ASCII)
_PART: Final = r'"(?:[^"]|"")+"|[^".]+'
_QUALIFIED: Final = re.compile(rf"({_PART})\.({_PART})", re.DOTALL)


def table_name(schema: str, relation: str) -> str:
    """The text for a table."""
    return f"{_quoted(schema)}.{_quoted(relation)}"


def normal_name(text: str) -> str:
    """A name that a server or an older release has written, as `table_name` writes it; other text stays as it is."""
    found = _QUALIFIED.fullmatch(text)
    return table_name(*map(_raw, found.groups())) if found else text


def split_name(text: str) -> tuple[str, str]:
    """Schema and table of a name that `table_name` wrote.

    Raises:
        ValueError: it is not such a name.
    """
    found = _QUALIFIED.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not the name of a table with its schema")
    return _raw(found[1]), _raw(found[2])


def _quoted(part: str) -> str:
    if _PLAIN.fullmatch(part):
        return part
    doubled = part.replace('"', '""')
    return f'"{doubled}"'


def _raw(part: str) -> str:
    return part[1:-1].replace('""', '"') if part.startswith('"') else part
