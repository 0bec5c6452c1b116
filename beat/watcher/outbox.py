"""The change sets to send: known changes first, then a scan. Unsent change sets are also kept on the disk.

A change set that is sent again keeps its id. Changes that arrive meanwhile are merged into it, which gives it a new
one. Sent change sets are forgotten: if the broker loses one, the next scan finds its changes.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from beat.backoff import Outage
from beat.watcher.change_set import ChangeSet
from beat.watcher.debounce import MOST_PATHS
from portal.ops.errors import OpsError
from portal.ops.repository.durable import make_hidden, write_durably
from portal.ops.runtime.logs import engine_log
from worker.operations import BACKUP_MEDIA

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime, timedelta
    from pathlib import Path

    from beat.task_queue import Workers
    from portal.ops.runtime.progress import Clock

log = engine_log("beat.watcher")

DIRECTORY: Final = ".watch"
NAME: Final = "dirty.json"

_MOST_BYTES: Final = 64 << 20


class Outbox:
    """The change sets for the workers.

    Arguments:
        repository: the directory for unsent changes.
        workers: receive the tasks.
        clock: returns the current time.
        steady: returns seconds of a monotonic clock.
    """

    def __init__(self, repository: Path, workers: Workers, clock: Clock, steady: Callable[[], float]) -> None:
        self._path = repository / DIRECTORY / NAME
        self._workers = workers
        self._clock = clock
        self._steady = steady
        self._outage = Outage()
        self._changes: ChangeSet | None = None
        self._scan: ChangeSet | None = None
        self._kept: ChangeSet | None = None
        self._told = ""
        self._last_scan: ChangeSet | None = None

    @property
    def again_at(self) -> float | None:
        """When to post again, by the monotonic clock; None if nothing is left."""
        return self._outage.again if self._outage.lasts else None

    @property
    def dirty_since(self) -> datetime | None:
        """Since when changes are waiting to be sent."""
        return min((changes.moment for changes in (self._changes, self._scan) if changes), default=None)

    def put(self, paths: frozenset[str]) -> None:
        """Add changes to be sent."""
        if not paths:
            return
        if self._changes:
            paths |= self._changes.paths
        if len(paths) > MOST_PATHS:
            self._changes = None
            self.want_scan()
            return
        self._changes = replace(self._changes or ChangeSet(moment=self._clock()), paths=paths)

    def want_scan(self) -> None:
        """Request a scan of the whole tree."""
        self._scan = self._scan or ChangeSet(moment=self._clock(), is_scan=True)

    def is_scan_on_its_way(self, longest: timedelta) -> bool:
        """True if the last scan has not ended, so that no other one is needed.

        Arguments:
            longest: a scan sent longer ago counts as lost.
        """
        if self._last_scan is None or self._clock() - self._last_scan.moment > longest:
            return False
        try:
            return self._workers.is_at_work(self._last_scan.task_id)
        except OpsError:
            return False

    def post(self) -> None:
        """Send everything, unless an attempt has just failed; unsent changes are kept."""
        if self._outage.lasts and self._steady() < self._outage.again:
            self._keep()
            return
        try:
            while changes := self._changes or self._scan:
                self._workers.submit(BACKUP_MEDIA, changes.arguments, changes.task_id)
                log.info("changes_sent", task_id=changes.task_id, paths=len(changes.paths), scan=changes.is_scan)
                self._drop(changes)
        except OpsError as error:
            if self._outage.fail(self._steady()):
                log.warning("broker_away", error=str(error))
            self._keep()
            return
        if (seconds := self._outage.end(self._steady())) is not None:
            log.info("broker_back", seconds=round(seconds, 1))
        self._forget()

    def recover(self) -> None:
        """Load the changes that an earlier process could not send."""
        try:
            with self._path.open("rb") as file:
                facts = json.loads(file.read(_MOST_BYTES))
            changes = ChangeSet.from_dict(facts)
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            log.warning("unsent_changes_unreadable", path=str(self._path), error=str(error))
            return
        self._kept = changes
        self._changes = changes if changes.paths else None
        self._scan = replace(changes, paths=frozenset()) if changes.is_scan else None
        if self._changes:
            self._changes = replace(self._changes, is_scan=False)
        log.info("unsent_changes_recovered", paths=len(changes.paths), scan=changes.is_scan)

    def _drop(self, changes: ChangeSet) -> None:
        if changes.is_scan:
            self._scan, self._last_scan = None, changes
        else:
            self._changes = None

    def _keep(self) -> None:
        """Save what is left; if that fails, the scan at the next start makes up for it."""
        since = self.dirty_since
        if since is None:
            return
        paths = self._changes.paths if self._changes else frozenset()
        dirty = ChangeSet(moment=since, paths=paths, is_scan=self._scan is not None)
        if dirty == self._kept:
            return
        try:
            make_hidden(self._path.parent)
            write_durably(self._path, json.dumps(dirty.to_dict()).encode("ascii") + b"\n")
            self._kept = dirty
        except OSError as error:
            if self._told != str(error):
                self._told = str(error)
                log.error("unsent_changes_unsaved", path=str(self._path), error=str(error))

    def _forget(self) -> None:
        if self._kept:
            with suppress(OSError):  # sending it again after the next start is harmless
                self._path.unlink(missing_ok=True)
            self._kept = None
