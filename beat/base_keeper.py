"""Requests a base backup if arriving WAL has none.

A look at all base backups and all WAL is costly where there are many, so it is repeated only once something that it
depends on has changed.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from portal.ops.model import SUFFIX, BackupType
from portal.ops.pitr.look import look
from portal.ops.repository.faults import explain
from portal.ops.repository.verifications import DIRECTORY as VERIFICATIONS
from portal.ops.runtime.logs import engine_log

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from portal.ops.pitr.look import PitrLook
    from portal.ops.pitr.wal_archive import WalArchive
    from portal.ops.repository.repository import Repository

log = engine_log("beat.wal")

_PATIENCE: Final = timedelta(seconds=15)
"""Seconds that WAL may arrive without a base backup before one is requested: an interruption is no gap."""

_AGAIN_SECONDS: Final = 300.0
"""Seconds to wait for a requested base backup before it is requested again."""

_REST_SECONDS: Final = 30.0
"""The shortest time between two looks as long as arriving WAL has a base backup, whatever has changed."""


class BaseKeeper:
    """Requests a base backup if arriving WAL has none.

    Arguments:
        ask: requests a base backup.
        steady: returns seconds of a monotonic clock.
        look: looks at the base backups and the WAL.
    """

    def __init__(
        self,
        repository: Repository,
        ask: Callable[[], None],
        *,
        steady: Callable[[], float] = time.monotonic,
        look: Callable[[Repository], PitrLook] = look,
    ) -> None:
        self._repository = repository
        self._ask = ask
        self._steady = steady
        self._look = look
        self._seen: Hashable = None
        self._looked_at: float | None = None
        self._lacks_base = False
        self._is_known = False
        self._missing_since: float | None = None
        self._asked_at: float | None = None

    def check(self, archive: WalArchive, state: Mapping[str, Any]) -> None:
        """Check, and request a base backup if it is time to.

        Arguments:
            archive: the archive of the current cluster.
            state: the last report of the WAL service.

        Raises:
            RepositoryError: the repository cannot be read.
        """
        seen, now = self._stamp(archive, state), self._steady()
        is_rested = self._lacks_base or self._looked_at is None or now - self._looked_at >= _REST_SECONDS
        if seen != self._seen and is_rested:
            found = self._look(self._repository)
            self._seen, self._looked_at = seen, now
            self._lacks_base, self._is_known = lacks_base(found), bool(found.spans)
        self._see(now)

    def _stamp(self, archive: WalArchive, state: Mapping[str, Any]) -> Hashable:
        """What changes with every base backup, every segment, and every finding about an archive.

        While it stays the same, the last segment covers ever later moments, and has a base backup or not as before.
        """
        path = self._repository.path
        try:
            bases = frozenset(
                name for name in os.listdir(path) if name.startswith(f"{BackupType.BASE}_") and name.endswith(SUFFIX)
            )
            receiving = frozenset(os.listdir(archive.receiving)) if archive.receiving.is_dir() else frozenset()
        except OSError as error:
            raise explain(error, "cannot read", path) from error
        findings = None
        with suppress(OSError):
            findings = (path / VERIFICATIONS).stat().st_mtime_ns
        told = bool(state.get("problem")), state.get("covered_to") is None
        return archive.cluster.system_identifier, archive.stamp(), receiving, bases, findings, told

    def _see(self, now: float) -> None:
        if not self._lacks_base:
            self._missing_since = self._asked_at = None
            return
        if self._missing_since is None:
            self._missing_since = now
        is_time = now - self._missing_since >= (_PATIENCE.total_seconds() if self._is_known else 0.0)
        if is_time and (self._asked_at is None or now - self._asked_at >= _AGAIN_SECONDS):
            self._asked_at = now
            log.info("base_requested")
            self._ask()


def lacks_base(found: PitrLook) -> bool:
    """True if WAL arrives that no base backup leads to."""
    covered = found.state.get("covered_to")
    if covered is None or found.state.get("problem"):
        return False
    return found.window is None or found.window.end < datetime.fromisoformat(covered).astimezone(UTC)
