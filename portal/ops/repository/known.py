"""Records which repository was last used at a path, so that its absence is noticed.

An unmounted volume leaves an empty directory or none, which looks like a repository that has yet to be created. So
every program that writes to a repository records its id in a state directory outside of it.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from portal.ops.units import system_reason

if TYPE_CHECKING:
    from collections.abc import Mapping

STATE: Final = Path("/var/lib/kekkai-backup-state")
"""The state directory for services, and for every user who may write to it."""

_NAME: Final = "kekkai-backup"
_MOST_BYTES: Final = 16_384


def state_directories(environ: Mapping[str, str]) -> list[Path]:
    """The state directories, the one to write to first; empty if this user has none.

    These are systemd's or XDG's state directory if set; otherwise the services' directory and the user's home.
    """
    if given := environ.get("STATE_DIRECTORY", "").partition(":")[0]:
        return [Path(given)]
    if given := environ.get("XDG_STATE_HOME", ""):
        return [Path(given) / _NAME]
    home = Path(environ.get("HOME") or "/nonexistent")
    own = [home / ".local" / "state" / _NAME] if os.path.isdir(home) else []  # also false if access is denied
    if not os.path.isdir(STATE):
        return own
    return [STATE, *own] if os.access(STATE, os.W_OK | os.X_OK) else [*own, STATE]


def known_id(path: Path) -> str:
    """The recorded id for a path; empty if there is none."""
    for directory in state_directories(os.environ):
        with suppress(OSError, ValueError, KeyError, TypeError):
            with (directory / _note_name(path)).open("rb") as file:
                found = json.loads(file.read(_MOST_BYTES))
            if found["path"] == _place(path):
                return str(found["id"])
    return ""


def remember(path: Path, repository_id: str) -> str:
    """Record the id of the repository at a path; return why that failed, or an empty string."""
    if not repository_id or known_id(path) == repository_id:
        return ""
    directory = next(iter(state_directories(os.environ)), None)
    if directory is None:
        return "this user has no home"
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        text = json.dumps({"path": _place(path), "id": repository_id})
        _write(directory / _note_name(path), f"{text}\n")
    except OSError as error:
        return f"{directory} cannot be written: {system_reason(error)}"
    return ""


def _write(note: Path, text: str) -> None:
    import tempfile  # imported late: every command imports this module

    descriptor, temporary = tempfile.mkstemp(dir=note.parent, prefix=".")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        os.replace(temporary, note)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _place(path: Path) -> str:
    return os.path.realpath(path)


def _note_name(path: Path) -> str:
    return f"repository-{hashlib.sha256(os.fsencode(_place(path))).hexdigest()[:32]}.json"
