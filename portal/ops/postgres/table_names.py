"""Names of tables as text independent of the server: `schema.table`, each part quoted only if necessary.

A server also quotes keywords, and its keywords depend on version and settings. So names are read unquoted from catalogs
and written by `table_name`; names quoted by an older release or a server are converted. Two texts are equal if and only
if they denote the same table.
"""

from __future__ import annotations

import re
from typing import Final

_PLAIN: Final = re.compile(r"[a-z_][a-z0-9_$]*", re.ASCII)
_PART: Final = r'"(?:[^"]|"")+"|[^".]+'
_QUALIFIED: Final = re.compile(rf"({_PART})\.({_PART})", re.DOTALL)


def table_name(schema: str, relation: str) -> str:
    """The text for a table's name."""
    return f"{_quoted(schema)}.{_quoted(relation)}"


def normal_name(text: str) -> str:
    """Convert a name written by a server or an older release to the form of `table_name`; other text is unchanged."""
    found = _QUALIFIED.fullmatch(text)
    return table_name(*map(_raw, found.groups())) if found else text


def _quoted(part: str) -> str:
    if _PLAIN.fullmatch(part):
        return part
    doubled = part.replace('"', '""')
    return f'"{doubled}"'


def _raw(part: str) -> str:
    return part[1:-1].replace('""', '"') if part.startswith('"') else part
