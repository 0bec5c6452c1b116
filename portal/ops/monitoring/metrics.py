"""The status as Prometheus metrics: a file for the textfile collector, or a small HTTP server.

Import this module late: it loads the client library. Every metric is a gauge and computed anew each time,
unless that takes long.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from portal.ops.errors import ConfigurationError, OpsError
from portal.ops.filesystem.temporary import temporary_name
from portal.ops.monitoring.facts import read_status
from portal.ops.repository.faults import explain
from portal.ops.runtime.logs import engine_log
from portal.ops.runtime.progress import Clock, utc_now
from portal.ops.units import system_reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path
    from wsgiref.simple_server import WSGIServer

    from portal.ops.monitoring.model import ComponentStatus, Status
    from portal.ops.offsite.health import DestinationState
    from portal.ops.pitr.window import Window
    from portal.ops.settings.load import Settings

log = engine_log("portal.ops.monitoring.metrics")

READABLE: Final = "kekkai_backup_repository_readable"
_FILE_MODE: Final = 0o644
_QUICK_SECONDS: Final = 0.5
_REST: Final = 10

Sample = tuple[str, float]
"""A value and its label; the label is empty for metrics without one."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One gauge.

    Arguments:
        name: the name, by Prometheus' conventions.
        meaning: its description in the documentation's table.
        label: the name of its label; empty if there is one value.
        values: extracts the values from a status.
    """

    name: str
    meaning: str
    label: str = ""
    values: Callable[[Status], Iterable[Sample]]


def _each(label: str, name: str, meaning: str, value: Callable[[ComponentStatus], float | None]) -> Metric:
    def values(status: Status) -> Iterator[Sample]:
        for one in status.components:
            if (found := value(one)) is not None:
                yield one.component.value, found

    return Metric(name=name, meaning=meaning, label=label, values=values)


def _offsite(name: str, meaning: str, value: Callable[[DestinationState], float | None]) -> Metric:
    def values(status: Status) -> Iterator[Sample]:
        for one in status.facts.offsite:
            if (found := value(one)) is not None:
                yield one.identifier, found

    return Metric(name=name, meaning=meaning, label="destination", values=values)


def _one(name: str, meaning: str, value: Callable[[Status], float | None]) -> Metric:
    def values(status: Status) -> Iterator[Sample]:
        if (found := value(status)) is not None:
            yield "", found

    return Metric(name=name, meaning=meaning, values=values)


def _lasts(status: Status) -> float | None:
    left = status.forecast.days_left if status.forecast else None
    return None if left is None else left * 86400.0


def _window(status: Status) -> Window | None:
    return status.facts.pitr.window if status.facts.pitr else None


METRICS: Final = (
    _each(
        "component",
        "kekkai_backup_newest_timestamp_seconds",
        "When the newest backup was made",
        lambda one: one.newest.moment.timestamp() if one.newest else None,
    ),
    _each(
        "component",
        "kekkai_backup_newest_size_bytes",
        "Size of the archive that is the newest backup",
        lambda one: one.newest.size if one.newest else None,
    ),
    _each(
        "component",
        "kekkai_backup_newest_verified_timestamp_seconds",
        "When the newest backup that is known to be intact was made",
        lambda one: one.verified.moment.timestamp() if one.verified else None,
    ),
    _each(
        "component",
        "kekkai_backup_allowed_age_seconds",
        "Age that the newest backup may have",
        lambda one: one.rpo.total_seconds(),
    ),
    _each(
        "component",
        "kekkai_backup_allowed_verified_age_seconds",
        "Age that the newest backup known to be intact may have",
        lambda one: one.verified_age.total_seconds(),
    ),
    Metric(
        name="kekkai_backup_rejected_messages",
        meaning="How many messages on the queues workers have rejected",
        label="reason",
        values=lambda status: status.facts.rejected.items(),
    ),
    _one("kekkai_backup_targets_missed", "How many targets are missed", lambda status: len(status.misses)),
    Metric(
        name="kekkai_backup_target_missed",
        meaning="1 for each target that is missed",
        label="target",
        values=lambda status: ((miss.target, 1) for miss in status.misses),
    ),
    _offsite(
        "kekkai_backup_offsite_newest_timestamp_seconds",
        "When the newest archive with an off-site copy was made",
        lambda one: one.moment.timestamp() if one.moment else None,
    ),
    _offsite("kekkai_backup_offsite_copies", "How many off-site copies there are", lambda one: one.copies),
    _offsite("kekkai_backup_offsite_missing", "Archives without an off-site copy", lambda one: len(one.missing)),
    _offsite("kekkai_backup_offsite_bytes", "What the off-site copies take", lambda one: one.stored_bytes),
    _offsite(
        "kekkai_backup_offsite_verified_timestamp_seconds",
        "When off-site copies were last found intact",
        lambda one: one.verified.moment.timestamp() if one.verified and not one.verified.damaged else None,
    ),
    _offsite(
        "kekkai_backup_offsite_damaged",
        "Off-site copies that the last verification found damaged",
        lambda one: len(one.verified.damaged) if one.verified else None,
    ),
    _offsite(
        "kekkai_backup_offsite_foreign",
        "Off-site copies that the last verification found not to be of this repository",
        lambda one: len(one.foreign) if one.verified else None,
    ),
    _offsite(
        "kekkai_backup_offsite_drill_timestamp_seconds",
        "When a drill last restored an off-site copy",
        lambda one: one.drilled.moment.timestamp() if one.drilled and not one.drilled.damaged else None,
    ),
    _offsite(
        "kekkai_backup_offsite_recipients_proven",
        "1 where a drill has opened a copy for the recipients of now, 0 where none has",
        lambda one: one.recipients_proven,
    ),
    _offsite(
        "kekkai_backup_offsite_wal_timestamp_seconds",
        "When the copying of WAL last worked",
        lambda one: one.wal.worked.timestamp() if one.wal else None,
    ),
    _one(
        "kekkai_backup_wal_lag_bytes",
        "WAL that the server has and the WAL archive has not",
        lambda status: status.facts.pitr.lag_bytes if status.facts.pitr else None,
    ),
    _one(
        "kekkai_backup_wal_lag_seconds",
        "For how long the WAL archive is not complete any more",
        lambda status: status.facts.pitr.lag_seconds(status.moment) if status.facts.pitr else None,
    ),
    _one(
        "kekkai_backup_recovery_window_start_timestamp_seconds",
        "The earliest moment that the database can be recovered to",
        lambda status: window.start.timestamp() if (window := _window(status)) else None,
    ),
    _one(
        "kekkai_backup_recovery_window_end_timestamp_seconds",
        "The latest moment that the database can be recovered to",
        lambda status: window.end.timestamp() if (window := _window(status)) else None,
    ),
    _one(
        "kekkai_backup_recovery_window_gaps",
        "How many gaps there are between the two",
        lambda status: len(window.gaps) if (window := _window(status)) else None,
    ),
    _one("kekkai_backup_archives", "How many archives there are", lambda status: status.facts.archives),
    _one("kekkai_backup_archives_size_bytes", "Size of all archives", lambda status: status.facts.bytes),
    _one(
        "kekkai_backup_archives_damaged", "How many are known to be damaged", lambda status: len(status.facts.damaged)
    ),
    _one("kekkai_backup_archives_pinned", "How many are pinned", lambda status: len(status.facts.pins)),
    _one(
        "kekkai_backup_disk_free_bytes",
        "Space left on the repository's disk",
        lambda status: status.facts.free if status.facts.total else None,
    ),
    _one(
        "kekkai_backup_disk_size_bytes",
        "Size of the repository's disk",
        lambda status: status.facts.total or None,
    ),
    _one(
        "kekkai_backup_disk_lasts_seconds",
        "How long the space lasts at the pace of the last weeks; absent where it does not run out",
        _lasts,
    ),
    _one(
        "kekkai_backup_drill_timestamp_seconds",
        "When the last drill was made",
        lambda status: status.drill.moment.timestamp() if status.drill else None,
    ),
    _one(
        "kekkai_backup_drill_success",
        "1 where the last drill succeeded, 0 where it did not",
        lambda status: status.drill.success if status.drill else None,
    ),
    _one(
        "kekkai_backup_drill_rto_seconds",
        "How long the last successful drill took to restore everything",
        lambda status: status.drilled.seconds if status.drilled else None,
    ),
    Metric(
        name="kekkai_backup_last_success",
        meaning="1 where the last one of an action succeeded, 0 where it failed",
        label="action",
        values=lambda status: ((action, last.done) for action, last in status.facts.last.items()),
    ),
    Metric(
        name="kekkai_backup_last_timestamp_seconds",
        meaning="When the last one of an action ended",
        label="action",
        values=lambda status: ((action, last.moment.timestamp()) for action, last in status.facts.last.items()),
    ),
    Metric(
        name="kekkai_backup_last_duration_seconds",
        meaning="How long the last one of an action took",
        label="action",
        values=lambda status: (
            (action, last.seconds) for action, last in status.facts.last.items() if last.seconds is not None
        ),
    ),
    _one(
        "kekkai_backup_failures", "How many failures nothing has put right", lambda status: len(status.facts.failures)
    ),
    _one("kekkai_backup_status_timestamp_seconds", "When all this was read", lambda status: status.moment.timestamp()),
)


class _Statuses(Collector):
    """Provides the metrics of a status to the client library.

    Arguments:
        read: returns the status, or raises `OpsError`.
    """

    def __init__(self, read: Callable[[], Status]) -> None:
        self._read = read

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Read the status; if that fails, return only the metric for this failure."""
        try:
            status = self._read()
        except OpsError as error:
            log.warning("status_unreadable", error=str(error))
            yield GaugeMetricFamily(READABLE, "0 where the repository cannot be read", 0)
            return
        yield GaugeMetricFamily(READABLE, "0 where the repository cannot be read", 1)
        for metric in METRICS:
            family = GaugeMetricFamily(metric.name, metric.meaning, labels=[metric.label] if metric.label else [])
            for label, value in metric.values(status):
                family.add_metric([label] if metric.label else [], float(value))
            yield family


class RecentStatus:
    """The status for requests: where it takes long to read, one is used again for ten times as long.

    So requests take at most a tenth of a processor, however many there are and however large the repository is.

    Arguments:
        read: reads the status; may raise `OpsError`.
        steady: returns seconds of a monotonic clock.
    """

    def __init__(self, read: Callable[[], Status], *, steady: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self._steady = steady
        self._lock = threading.Lock()
        self._status: Status | None = None
        self._until = 0.0

    def __call__(self) -> Status:
        """The status; requests at the same time have the same one."""
        with self._lock:
            started = self._steady()
            if self._status is None or started >= self._until:
                self._status = None
                self._status = self._read()
                ended = self._steady()
                is_quick = ended - started < _QUICK_SECONDS
                self._until = started if is_quick else ended + _REST * (ended - started)
            return self._status


def registry_of(read: Callable[[], Status]) -> CollectorRegistry:
    """A registry that reads the status each time it is asked."""
    registry = CollectorRegistry()
    registry.register(_Statuses(read))
    return registry


def write_metrics(status: Status, path: Path) -> None:
    """Write the metrics of a status to a file, atomically and readable for everyone.

    Raises:
        RepositoryError: it cannot be written.
    """
    data = generate_latest(registry_of(lambda: status))
    temporary = path.with_name(temporary_name(path.name))  # the collector reads names that end in .prom
    try:
        temporary.write_bytes(data)
        temporary.chmod(_FILE_MODE)
        temporary.rename(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        writable = "Make the directory of BACKUP_METRICS_FILE writable for the user of the backups."
        raise explain(error, "cannot write the metrics to", path, denied=writable, hint=writable) from error


def serve(settings: Settings, *, port: int, clock: Clock = utc_now) -> WSGIServer:
    """Serve the metrics on a port in threads; `shutdown` of the result ends that.

    Arguments:
        port: the port; 0 for any free one.

    Raises:
        ConfigurationError: the port cannot be used.
    """
    registry = registry_of(RecentStatus(lambda: read_status(settings, clock())))
    try:
        server, _ = start_http_server(port, registry=registry)
    except OSError as error:
        raise ConfigurationError(
            f"metrics cannot be served at port {port}: {system_reason(error)}", hint="Give another BACKUP_METRICS_PORT."
        ) from error
    log.info("metrics_served", port=server.server_port)
    return server
