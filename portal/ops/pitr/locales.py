"""Compares the locales of a cluster's databases with those of this machine, which a scratch server needs."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from portal.ops.postgres.connection import Connection

_LOCALES: Final = "SELECT DISTINCT unnest(ARRAY[datcollate, datctype]) FROM pg_database WHERE datallowconn ORDER BY 1"
_CTYPE_AND_COLLATE: Final = 1 << 0 | 1 << 3


def database_locales(connection: Connection) -> list[str]:
    """The locales of all databases that accept connections."""
    return [name for (name,) in connection.execute(_LOCALES) if name]


def absent_locales(names: Iterable[str]) -> list[str]:
    """Those locales that the C library of this machine does not have."""
    libc = ctypes.CDLL(None)
    libc.newlocale.restype = ctypes.c_void_p
    libc.newlocale.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p]
    libc.freelocale.argtypes = [ctypes.c_void_p]
    absent = []
    for name in names:
        found = libc.newlocale(_CTYPE_AND_COLLATE, name.encode(), None)
        if found:
            libc.freelocale(found)
        else:
            absent.append(name)
    return absent
