"""The scheduler for Celery's beat: ``celery -A worker.app beat`` starts it.

Written against Celery 5.7: a service calls `tick`, sleeps for the returned time, and shows `info` when it starts.
`beat.loop` decides what is due by examining the repository; no state file is used. The setting ``beat_schedule`` is
made from the registry of operations, so that Celery's users see the entries that they expect.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from celery.beat import ScheduleEntry, Scheduler
from celery.schedules import BaseSchedule, schedstate

from beat.loop import Beat
from beat.task_queue import QueuedWorkers
from portal.ops.monitoring.observer import Observers
from portal.ops.settings.slots import last_slot, next_slot
from worker.operations import Requester

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo


class CronSlots(BaseSchedule):  # type: ignore[misc]  # Celery has no types
    """A cron expression in the settings' time zone, as a Celery schedule.

    Arguments:
        expression: a cron expression of five fields.
        zone: the time zone.
    """

    def __init__(self, expression: str, zone: ZoneInfo, app: Any = None) -> None:
        super().__init__(app=app)
        self.expression = expression
        self.zone = zone

    def __repr__(self) -> str:
        return f"<cron: {self.expression} ({self.zone.key})>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CronSlots) and (self.expression, self.zone) == (other.expression, other.zone)

    def __hash__(self) -> int:
        return hash((self.expression, self.zone))

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        """The time from a run to the next slot."""
        slot = next_slot(self.expression, self.zone, last_run_at)
        return slot - last_run_at if slot else timedelta.max

    def is_due(self, last_run_at: datetime) -> Any:
        """Whether there was a slot since the run, and the seconds until the next one."""
        now = datetime.now(UTC)
        last, following = (find(self.expression, self.zone, now) for find in (last_slot, next_slot))
        seconds = (following - now).total_seconds() if following else timedelta(days=365).total_seconds()
        return schedstate(is_due=last is not None and last_run_at < last, next=seconds)


class RepositoryScheduler(Scheduler):  # type: ignore[misc]
    """Sends tasks that are due by the schedules and the repository."""

    def setup_schedule(self) -> None:
        """Create the entries, and the beat that decides."""
        from portal.ops.monitoring.metrics import serve as serve_metrics

        settings = self.app.settings
        zone = settings.schedules.time_zone
        for name, entry in self.app.conf.beat_schedule.items():
            slots = CronSlots(entry["schedule"], zone, app=self.app)
            self.data[name] = ScheduleEntry(name=name, task=entry["task"], schedule=slots, app=self.app)
        if settings.targets.metrics_port:
            serve_metrics(settings, port=settings.targets.metrics_port)
        workers = QueuedWorkers(settings, Requester.BEAT)
        self._beat = Beat(settings, workers, after_look=Observers(settings).refresh)
        self._beat.start()

    def tick(self, *_: Any, **__: Any) -> float:
        """Send due tasks; return the seconds to sleep."""
        return self._beat.tick()

    def sync(self) -> None:
        """Do nothing: there is no state to save."""

    @property
    def info(self) -> str:
        """The text that Celery shows about the scheduler."""
        entries = "\n".join(
            f"    . {name}: {entry['task']} at {entry['schedule']}"
            for name, entry in self.app.conf.beat_schedule.items()
        )
        return f"    . repository -> {self.app.settings.local_path}\n{entries}"
