"""The programs that an installation needs and does not bring: said before anything is written."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

PYTHON_HINT: Final = "apt-get install python3-venv"

_CLIENTS: Final = "/usr/lib/postgresql"
_OLDEST_PIP: Final = (22, 3)


def missing_python() -> str:
    """What keeps this Python from making an environment, as `tools/setup.sh` makes it; empty if nothing does."""
    if shutil.which("uv") or importlib.util.find_spec("ensurepip") or _has_new_pip():
        return ""
    return "this Python has neither venv nor pip, so the environment of the commands cannot be made"


def missing_programs(*, is_environment_made: bool = False, clients: str = _CLIENTS) -> Iterator[str]:
    """A note for each program that is not here.

    Arguments:
        is_environment_made: nothing of Python's is needed for it any more.
        clients: where Debian keeps the client programs of each version of PostgreSQL.
    """
    if not is_environment_made and (missing := missing_python()):
        yield f"{missing}: {PYTHON_HINT}"
    if not (shutil.which("pg_dump") or any(Path(clients).glob("*/bin/pg_dump"))):
        yield (
            "PostgreSQL's client programs were not found: install those of the server's version or a newer one, "
            "such as apt-get install postgresql-client-17"
        )


def _has_new_pip() -> bool:
    try:
        from importlib.metadata import version

        major, minor = version("pip").split(".")[:2]
    except (ImportError, ValueError):  # there is none, or one of a version that says nothing
        return False
    return (int(major), int(minor)) >= _OLDEST_PIP
