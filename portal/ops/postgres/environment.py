"""The environment of everything that connects to a server: libpq reads some thirty variables, few of them wanted.

The caller's variables may say where passwords, certificates and tickets are. Server, database, session settings and
encoding come only from this project's settings.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_INHERITED: Final = frozenset(
    [
        "HOME",
        "LD_LIBRARY_PATH",
        "LOGNAME",
        "PATH",
        "PGCHANNELBINDING",
        "PGGSSENCMODE",
        "PGGSSLIB",
        "PGKRBSRVNAME",
        "PGPASSFILE",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
        "TMPDIR",
        "TZ",
        "USER",
    ]
)
_INHERITED_PREFIXES: Final = ("PGSSL", "KRB5")
_LIBPQ: Final = "PG"
_changing = threading.Lock()


def client_environment() -> dict[str, str]:
    """Return the environment for a client program: the permitted variables of this process, and messages in English."""
    return {name: value for name, value in os.environ.items() if _is_inherited(name)} | {"LC_ALL": "C"}


@contextmanager
def only_our_variables() -> Iterator[None]:
    """Hide unwanted variables from libpq in this process while the context lasts.

    libpq reads the C library's environment; `os.environ` stays unchanged.
    """
    ours = {name: value for name, value in os.environ.items() if name.startswith(_LIBPQ)}
    unwanted = {name: value for name, value in ours.items() if not _is_inherited(name)}
    if not unwanted:
        yield
        return
    with _changing:
        for name in unwanted:
            os.unsetenv(name)
        try:
            yield
        finally:
            for name, value in unwanted.items():
                os.putenv(name, value)


def _is_inherited(name: str) -> bool:
    return name in _INHERITED or name.startswith(_INHERITED_PREFIXES)
