"""The watcher: observes changes below the uploads, and sends them to be backed up.

    attend    check that the uploads exist, are the same ones, and are being watched; otherwise start again with a scan
    wait      wait until something is due
    collect   take the changes, without our own files; request a scan if it is time for one
    post      send tasks to the workers

If the kernel cannot report changes, a scan is sent every `latest` seconds instead, unless the last one is still
running.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from beat.heartbeat import INTERVAL_SECONDS, WATCHER_NAME, Heartbeat
from beat.watcher.debounce import Debounce
from beat.watcher.exclusions import without_repository
from beat.watcher.inotify import LIMITS, Inotify
from beat.watcher.mounts import silent_mounts
from beat.watcher.outbox import Outbox
from portal.ops.errors import ConfigurationError, OpsError
from portal.ops.model import timestamp
from portal.ops.repository.repository import Repository
from portal.ops.runtime.logs import engine_log
from portal.ops.runtime.progress import Clock, utc_now
from portal.ops.settings.load import WatchMode
from portal.ops.units import system_reason

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import NoReturn

    from beat.task_queue import Workers
    from portal.ops.settings.load import Settings

log = engine_log("beat.watcher")

_ATTEND_SECONDS: Final = 1.0
_LIMIT_HINT: Final = (
    "Raise fs.inotify.max_user_watches above the number of directories (and max_user_instances), with sysctl on the "
    "host, then start the watcher again; until then the tree is looked at again and again."
)


class Watcher:
    """Sends changed uploads.

    Arguments:
        settings: the uploads, the repository, and how to watch.
        workers: execute the tasks.
        clock: returns the current time.
        steady: returns seconds of a monotonic clock.

    Raises:
        ConfigurationError: there are no uploads to watch.
    """

    def __init__(
        self,
        settings: Settings,
        workers: Workers,
        *,
        clock: Clock = utc_now,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        if settings.upload_dir is None:
            raise ConfigurationError(
                "there are no uploads to watch", hint="Set PORTAL_UPLOAD_DIR to the portal's uploads."
            )
        self._uploads = settings.upload_dir
        self._watch = settings.watch
        self._longest_task = timedelta(seconds=settings.worker.task_timeout)
        self._repository = Repository(settings.local_path)
        self._clock = clock
        self._steady = steady
        self._debounce = Debounce(settings.watch.quiet.total_seconds(), settings.watch.latest.total_seconds())
        self._woken = threading.Condition()
        self._outbox = Outbox(settings.local_path, workers, clock, steady)
        self._heartbeat = Heartbeat(settings.local_path / WATCHER_NAME)
        self._inotify: Inotify | None = None
        self._mode: WatchMode | None = None
        self._place = ""
        self._identity: tuple[int, int] | None = None
        self._limit: OSError | None = None
        self._waits_for = ""
        self._scan_at = 0.0
        self._life_at = 0.0
        self._shown: dict[str, Any] = {}
        self._told = ""

    # -- told by inotify, in its threads ------------------------------------------------------------------------------

    def changed(self, path: str, *, is_tree: bool) -> None:
        """An entry has changed, alone or with everything below it."""
        self._note(lambda now: self._debounce.add(path, now, is_tree=is_tree))

    def begun(self, path: str) -> None:
        """A name was created."""
        self._note(lambda now: self._debounce.begin(path, now))

    def lost(self) -> None:
        """Changes may have been missed."""
        log.warning("changes_lost", detail="the kernel's queue overflowed; the whole tree is looked at")
        self._note(self._debounce.add_all)

    def limited(self, error: OSError) -> None:
        """The kernel cannot watch more directories."""
        with self._woken:
            self._limit = error
            self._woken.notify()

    def _note(self, note: Callable[[float], None]) -> None:
        with self._woken:
            before = self._debounce.due_at()
            note(self._steady())
            after = self._debounce.due_at()
            if after is not None and (before is None or after < before):
                self._woken.notify()

    # -- the loop ---------------------------------------------------------------------------------------------------

    def run(self) -> NoReturn:
        """Run until the process ends."""
        self._outbox.recover()
        while True:
            self.tick()
            self._wait()

    def tick(self) -> None:
        """Do whatever is due."""
        self._attend()
        self._collect()
        self._outbox.post()
        self._show_life()

    def _attend(self) -> None:
        """Make sure that the present uploads are being watched."""
        place, identity = _look(self._uploads)
        is_seen = self._mode is WatchMode.POLLING or (self._inotify is not None and self._inotify.is_alive())
        if self._mode and identity == self._identity and place == self._place and is_seen and not self._limit:
            return
        if self._mode:
            log.warning("uploads_unwatched", path=str(self._uploads), detail=self._why(identity, is_seen))
        self._close()
        if identity is None:
            self._wait_for(
                "uploads_missing", f"{self._uploads} is not there", "Mount it, or correct PORTAL_UPLOAD_DIR."
            )
            return
        if not os.access(place, os.R_OK | os.X_OK):
            self._wait_for("uploads_unwatchable", f"{self._uploads} may not be read", "Run this as the portal's user.")
            return
        self._place, self._identity = place, identity
        self._open()

    def _why(self, identity: tuple[int, int] | None, is_seen: bool) -> str:
        if self._limit:
            return "the kernel watches no more directories"
        if identity is None:
            return "the directory is gone"
        return "the directory was replaced" if is_seen else "watching it has failed"

    def _wait_for(self, event: str, trouble: str, hint: str) -> None:
        """Log what is waited for, once."""
        if self._waits_for != trouble:
            self._waits_for = trouble
            log.error(event, error=trouble, hint=hint)

    def _open(self) -> None:
        """Start to watch, then have everything scanned that may have changed before."""
        mode = self._choose_mode()
        if mode is WatchMode.EVENTS and not self._begin_inotify():
            return
        if self._limit:
            log.error("watch_limit_reached", error=str(self._limit), hint=_LIMIT_HINT)
            self._close()
            mode, self._limit = WatchMode.POLLING, None
        self._mode, self._waits_for = mode, ""
        self._outbox.want_scan()
        self._scan_at = self._steady() + self._scan_seconds()
        log.info("watcher_ready", path=self._place, mode=mode.value)

    def _begin_inotify(self) -> bool:
        """Start to watch; return False if it has to be tried again later."""
        try:
            self._inotify = Inotify(self._place, self)
            self._inotify.start()
        except OSError as error:
            self._inotify = None
            if error.errno not in LIMITS:
                self._wait_for(
                    "uploads_unwatchable", f"{self._uploads}: {system_reason(error)}", "Look at its disk and mount."
                )
                return False
            self._limit = error
        return True

    def _choose_mode(self) -> WatchMode:
        if self._limit:
            return WatchMode.POLLING
        if self._watch.mode is not WatchMode.AUTO:
            return self._watch.mode
        silent = silent_mounts(self._place)
        for mount in silent:
            log.warning("mount_without_events", path=mount.place, kind=mount.kind)
        return WatchMode.POLLING if silent else WatchMode.EVENTS

    def _close(self) -> None:
        if self._inotify:
            self._inotify.stop()
        self._inotify = None
        self._mode = None

    def _collect(self) -> None:
        """Put due changes into the outbox."""
        now = self._steady()
        with self._woken:
            due_at = self._debounce.due_at()
            paths, is_all = self._debounce.take(now) if due_at is not None and due_at <= now else (frozenset(), False)
        if self._inotify:  # before the task is sent, so that changes during the scan are noticed
            self._inotify.renew([""] if is_all else paths)
        self._outbox.put(without_repository(paths, self._place, self._repository.path))
        if is_all:
            self._outbox.want_scan()
        if self._mode and self._scan_at <= now:
            self._scan_at = now + self._scan_seconds()
            if not self._outbox.is_scan_on_its_way(self._longest_task):
                self._outbox.want_scan()

    def _scan_seconds(self) -> float:
        often = self._watch.latest if self._mode is WatchMode.POLLING else self._watch.scan
        return max(often.total_seconds(), 1.0)

    def _wait(self) -> None:
        """Wait until something is due; a first change ends the wait."""
        with self._woken:
            times = [self._debounce.due_at(), self._outbox.again_at, self._scan_at if self._mode else None]
            until = min([self._steady() + _ATTEND_SECONDS, *(time for time in times if time is not None)])
            if (seconds := until - self._steady()) > 0 and not self._limit:
                self._woken.wait(seconds)

    def _show_life(self) -> None:
        """Write a heartbeat, immediately if something is new."""
        since = self._outbox.dirty_since
        facts: dict[str, Any] = {
            "ready": self._mode is not None,
            "mode": self._mode.value if self._mode else None,
            "waits_for": self._waits_for,
            "dirty_since": timestamp(since) if since else None,
        }
        if facts == self._shown and self._steady() < self._life_at:
            return
        self._shown, self._life_at = facts, self._steady() + INTERVAL_SECONDS
        try:
            self._repository.prepare()
            self._heartbeat.beat(self._clock(), **facts)
            self._told = ""
        except (OpsError, OSError) as error:
            if self._told != str(error):
                self._told = str(error)
                log.error("heartbeat_unwritten", error=str(error))


def _look(uploads: Path) -> tuple[str, tuple[int, int] | None]:
    """The real path of the uploads and their `stat` result; None if they are no directory."""
    place = os.path.realpath(uploads)
    try:
        found = os.stat(place)
    except OSError:
        return place, None
    return place, (found.st_dev, found.st_ino) if stat.S_ISDIR(found.st_mode) else None
