"""Heartbeats: small files in the repository that running processes replace regularly, for doctor and health checks.

They need not survive a crash of the machine, so they are not synced.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from portal.ops.filesystem.temporary import temporary_name
from portal.ops.model import timestamp

if TYPE_CHECKING:
    from pathlib import Path

BEAT_NAME: Final = ".beat.json"
WATCHER_NAME: Final = ".watcher.json"
WAL_NAME: Final = ".wal.json"
INTERVAL_SECONDS: Final = 20.0

_STALE: Final = timedelta(seconds=5 * INTERVAL_SECONDS)
_AHEAD: Final = timedelta(minutes=5)
_MOST_BYTES: Final = 16 << 20


@dataclass(frozen=True, kw_only=True)
class Health:
    """The health of a process, by its heartbeat.

    Arguments:
        is_well: whether it is healthy.
        message: an explanation in one sentence.
        facts: the contents of its last heartbeat.
    """

    is_well: bool
    message: str
    facts: dict[str, Any]


class Heartbeat:
    """The heartbeat of one process.

    Arguments:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def beat(self, moment: datetime, **facts: Any) -> None:
        """Write a heartbeat with facts about the process.

        Raises:
            OSError: the file cannot be written.
        """
        text = json.dumps(
            {"pid": os.getpid(), "host": socket.gethostname(), "moment": timestamp(moment), **facts}, indent=2
        )
        temporary = self.path.with_name(temporary_name(self.path.name))
        try:
            temporary.write_text(text + "\n", "ascii")
            temporary.rename(self.path)
        except OSError as error:  # told by the file's own name: the other one is new each time
            temporary.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def read(self) -> dict[str, Any]:
        """The last heartbeat; empty if there is none, or it cannot be read."""
        try:
            with self.path.open("rb") as file:
                found = json.loads(file.read(_MOST_BYTES))
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def health(self, name: str, now: datetime) -> Health:
        """The health of the process.

        Arguments:
            name: its name in the message.
        """
        facts = self.read()
        try:
            moment = datetime.fromisoformat(facts["moment"])
            age = now - moment
        except (KeyError, TypeError, ValueError):
            return Health(is_well=False, message=f"there is no sign of life of the {name} in {self.path}", facts={})
        if not -_AHEAD <= age <= _STALE:
            return Health(is_well=False, message=f"the last sign of life of the {name} is of {moment}", facts=facts)
        if facts.get("ready") is False:
            return Health(is_well=False, message=f"the {name} waits: {facts.get('waits_for')}", facts=facts)
        return Health(is_well=True, message=f"the {name} lives (process {facts.get('pid')})", facts=facts)
