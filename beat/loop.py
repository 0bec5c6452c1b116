"""Beat: checks the repository at each slot, every five minutes and at the start, and sends due tasks.

    look     find the newest slot of each kind, without those known to be done
    read     read the facts about them from the repository
    send     send due tasks, unless they were just sent or are being executed
    wait     wait until the next slot, the next check, or the next attempt if the broker is away

It keeps no state: the next check finds whatever this process, the broker or the machine has missed.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from beat.backoff import Memory, Outage
from beat.due import ScheduledTask, Slot, due, last_slots, next_slots
from beat.heartbeat import BEAT_NAME, INTERVAL_SECONDS, Heartbeat
from beat.repository_facts import read_facts
from portal.ops.errors import OpsError
from portal.ops.model import timestamp
from portal.ops.repository.repository import Repository
from portal.ops.runtime.logs import engine_log
from portal.ops.runtime.progress import Clock, utc_now
from worker.operations import EachArchive, LoggedEnd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import NoReturn

    from beat.task_queue import Workers
    from portal.ops.settings.load import Settings

log = engine_log("beat")

_LOOK_EVERY: Final = timedelta(minutes=5)
_MOST_AT_ONCE: Final = 100
_NO_PAUSE_SECONDS: Final = 0.05
_COSTLY: Final = (LoggedEnd, EachArchive)
"""Slots that are not checked again once they are done, since that would read every finding or log entry."""


class Beat:
    """Sends scheduled tasks.

    Arguments:
        settings: the schedules and the repository.
        workers: execute the tasks.
        clock: returns the current time.
        steady: returns seconds of a monotonic clock.
        sleep: waits for a number of seconds.
        after_look: called after each check, when everything has been sent.
    """

    def __init__(
        self,
        settings: Settings,
        workers: Workers,
        *,
        clock: Clock = utc_now,
        steady: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        after_look: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._workers = workers
        self._clock = clock
        self._steady = steady
        self._sleep = sleep
        self._after_look = after_look
        self._repository = Repository(settings.local_path, lock_timeout=settings.lock_timeout)
        self._heartbeat = Heartbeat(settings.local_path / BEAT_NAME)
        self._memory = Memory.from_dict(self._heartbeat.read().get("asked"))
        self._outage = Outage()
        self._settled: set[Slot] = set()
        self._told: dict[str, str] = {}
        self._looked: datetime | None = None
        self._again = self._clock()

    def run(self) -> NoReturn:
        """Run until the process ends."""
        self.start()
        while True:
            self._sleep(self.tick())

    def start(self) -> None:
        """Log the next slots."""
        log.info("beat_started", next=self._next_moments(self._clock()))

    def tick(self) -> float:
        """Check if it is time to, otherwise write a heartbeat; return the seconds until the next call."""
        now = self._clock()
        if self._looked is not None and self._looked <= now < self._again:
            self._show_life()
        else:  # also if the clock was set back
            self._looked, self._again = now, self.look()
            self._after_look()
            now = self._clock()
        return max(0.0, min((self._again - now).total_seconds(), INTERVAL_SECONDS)) + _NO_PAUSE_SECONDS

    def look(self) -> datetime:
        """Send due tasks; return when to check again."""
        now = self._clock()
        try:
            self._send_due(now)
            self._told.pop("repository_unreadable", None)
        except OpsError as error:
            self._say_once("repository_unreadable", error)
        self._show_life()
        if self._outage.lasts:
            return now + timedelta(seconds=max(self._outage.again - self._steady(), 0))
        return min([now + _LOOK_EVERY, *(slot.moment for slot in self._next(now))])

    def _send_due(self, now: datetime) -> None:
        slots = last_slots(self._settings.schedules, now)
        self._settled &= set(slots)
        in_question = [slot for slot in slots if slot not in self._settled]
        if not in_question:
            return
        operations, oldest = {slot.operation for slot in in_question}, min(slot.moment for slot in in_question)
        facts = read_facts(self._repository, operations, self._settings, since=oldest)
        tasks = due(in_question, facts, now, self._memory.times())
        self._memory.keep_only({task.task_id for task in tasks})
        if facts.archives:
            undone = {task.slot for task in tasks}
            self._settled |= {
                slot for slot in in_question if isinstance(slot.schedule.done_by, _COSTLY) and slot not in undone
            }
        self._send(tasks, now)

    def _send(self, tasks: Iterable[ScheduledTask], now: datetime) -> None:
        sent = 0
        try:
            for task in tasks:
                if sent < _MOST_AT_ONCE and self._is_to_be_sent(task, now):
                    self._workers.submit(task.slot.operation, task.arguments, task.task_id)
                    self._memory.note(task.task_id, now)
                    log.info("task_sent", task=task.slot.operation.name, task_id=task.task_id)
                    sent += 1
        except OpsError as error:
            if self._outage.fail(self._steady()):
                log.warning("broker_away", error=str(error))
            return
        if (seconds := self._outage.end(self._steady())) is not None:
            log.info("broker_back", seconds=round(seconds, 1))

    def _is_to_be_sent(self, task: ScheduledTask, now: datetime) -> bool:
        """True if its pause is over and no worker runs it; after a long time, a running task counts as lost."""
        if not self._memory.may_ask(task.task_id, now):
            return False
        believed = now - timedelta(seconds=self._settings.worker.task_timeout)
        return not (self._memory.was_asked_since(task.task_id, believed) and self._workers.is_at_work(task.task_id))

    def _next(self, now: datetime) -> list[Slot]:
        return next_slots(self._settings.schedules, now)

    def _next_moments(self, now: datetime) -> dict[str, str]:
        return {slot.schedule.setting: timestamp(slot.moment) for slot in self._next(now)}

    def _show_life(self) -> None:
        now = self._clock()
        facts: dict[str, Any] = {
            "next": self._next_moments(now),
            "broker_away": self._outage.lasts,
            "asked": self._memory.to_dict(),
        }
        try:
            self._repository.prepare()
            self._heartbeat.beat(now, **facts)
            self._told.pop("heartbeat_unwritten", None)
        except (OpsError, OSError) as error:
            self._say_once("heartbeat_unwritten", error)

    def _say_once(self, event: str, error: Exception) -> None:
        """Log a problem, but not repeatedly."""
        if self._told.get(event) != str(error):
            self._told[event] = str(error)
            log.error(event, error=str(error))
