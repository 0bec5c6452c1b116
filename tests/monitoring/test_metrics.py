"""Metrics: what Prometheus reads, from a file or over HTTP, and that the documentation has each of them."""

from __future__ import annotations

import os
import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from portal.ops.errors import RepositoryError
from portal.ops.model import BackupType
from portal.ops.monitoring.facts import read_status
from portal.ops.monitoring.metrics import METRICS, READABLE, RecentStatus, serve, write_metrics
from portal.ops.monitoring.observer import Observers
from portal.ops.repository.access_log import AccessLog, Action, Outcome
from portal.ops.restore.journal import RestoreRecord, RestoreRecords, RestoreState
from tests.support.commands import done
from tests.support.histories import NOW, History
from tests.support.waiting import LONG_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from wsgiref.simple_server import WSGIServer

    from portal.ops.monitoring.model import Status

OPERATIONS = Path(__file__).parents[2] / "docs" / "monitoring.md"
HOUR = timedelta(hours=1)

Samples = dict[tuple[str, str], float]


@pytest.fixture
def history(tmp_path: Path) -> History:
    """A repository with a backup, a failure and a verification."""
    found = History(path=tmp_path / "archives")
    found.verified(found.archive(BackupType.FULL, 3 * HOUR, size=5000, seconds=12.5))
    found.entry(Action.PRUNE, "the repository", Outcome.FAILED, error="no")
    return found


def samples(text: str) -> Samples:
    """What a text of Prometheus says, by the name and the label's value."""
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def written(history: History, tmp_path: Path) -> Samples:
    write_metrics(read_status(history.settings(), NOW), tmp_path / "backup.prom")
    return samples((tmp_path / "backup.prom").read_text())


def test_the_file_says_how_it_stands(history: History, tmp_path: Path) -> None:
    """Ages, sizes, durations, outcomes and misses are there as numbers."""
    found = written(history, tmp_path)
    assert found["kekkai_backup_newest_timestamp_seconds", "database"] == (NOW - 3 * HOUR).timestamp()
    assert found["kekkai_backup_newest_verified_timestamp_seconds", "media"] == (NOW - 3 * HOUR).timestamp()
    assert found["kekkai_backup_newest_size_bytes", "database"] == 5000
    assert found["kekkai_backup_last_duration_seconds", "backup"] == 12.5
    assert found["kekkai_backup_last_success", "prune"] == 0
    assert found["kekkai_backup_targets_missed", ""] == 1
    assert found["kekkai_backup_target_missed", "rpo_database"] == 1
    assert found[READABLE, ""] == 1


def test_the_file_is_for_all_to_read_whatever_the_umask(history: History, tmp_path: Path) -> None:
    """The collector runs as another user; and nothing else is left in its directory."""
    before = os.umask(0o077)
    try:
        written(history, tmp_path)
    finally:
        os.umask(before)
    assert (tmp_path / "backup.prom").stat().st_mode & 0o777 == 0o644
    assert {path.name for path in tmp_path.iterdir()} == {"archives", "backup.prom"}


def test_a_file_that_cannot_be_written_says_what_to_do(history: History, tmp_path: Path) -> None:
    """By itself it is an error with a hint; as what follows a backup it breaks nothing."""
    nowhere = tmp_path / "nowhere" / "backup.prom"
    with pytest.raises(RepositoryError, match="BACKUP_METRICS_FILE"):
        write_metrics(read_status(history.settings(), NOW), nowhere)
    Observers(history.settings(BACKUP_METRICS_FILE=str(nowhere))).refresh()


@pytest.fixture
def server(history: History) -> Iterator[WSGIServer]:
    """A server at any free port."""
    serving = serve(history.settings(), port=0, clock=lambda: NOW)
    yield serving
    serving.shutdown()
    serving.server_close()


def scraped(server: WSGIServer) -> Samples:
    with urlopen(f"http://127.0.0.1:{server.server_port}/metrics", timeout=LONG_SECONDS) as answer:
        return samples(answer.read().decode())


def test_the_server_computes_anew_each_time(history: History, server: WSGIServer) -> None:
    """What was made since the last look is in the next one."""
    assert scraped(server)["kekkai_backup_archives", ""] == 1
    history.archive(BackupType.DATABASE, HOUR)
    assert scraped(server)["kekkai_backup_archives", ""] == 2


def test_messages_that_workers_reject_are_counted(history: History, server: WSGIServer) -> None:
    """By reason, as the workers have written them down; what is no count is nothing."""
    (history.path / ".rejected.json").write_text('{"unsigned": 3}')
    assert scraped(server)["kekkai_backup_rejected_messages", "unsigned"] == 3
    for invalid in ("[", '{"unsigned": 1e999}', "[" * 60_000):
        (history.path / ".rejected.json").write_text(invalid)
        names = {name for name, _ in scraped(server)}
        assert "kekkai_backup_archives" in names and "kekkai_backup_rejected_messages" not in names


def test_a_repository_that_cannot_be_read_is_a_metric(history: History, server: WSGIServer) -> None:
    """There is an answer all the same, and it is nothing but that."""
    history.path.rename(history.path.with_name("away"))
    history.path.write_text("no directory")
    assert {name: value for (name, _), value in scraped(server).items()} == {READABLE: 0}


def test_the_documentation_has_every_metric() -> None:
    """The table has each one, with its label and meaning, and no other."""
    rows = re.findall(
        r"^\| `(kekkai_backup_\w+?)(?:\{(\w+)\})?` \| (.*?) \|$", OPERATIONS.read_text("utf-8"), re.MULTILINE
    )
    documented = {(name, label, meaning) for name, label, meaning in rows if name != READABLE}
    assert documented == {(metric.name, metric.label, metric.meaning) for metric in METRICS}
    assert READABLE in {name for name, _, _ in rows}


def test_names_follow_the_conventions() -> None:
    """Base units at the end, one prefix, no total on a gauge."""
    for metric in METRICS:
        assert re.fullmatch(r"kekkai_backup_[a-z_]+", metric.name)
        assert not metric.name.endswith(("_total", "_ms", "_mb", "_days", "_hours"))


def metrics_after(history: History, place: Path, *arguments: str) -> str:
    """The metrics that a command leaves, which succeeds."""
    environ = {
        "PATH": os.environ["PATH"],
        "BACKUP_LOCAL_PATH": str(history.path),
        "PORTAL_UPLOAD_DIR": "",
        "BACKUP_METRICS_FILE": str(place),
    }
    done(*arguments, environ=environ)
    return place.read_text()


def test_restores_that_are_forgotten_are_in_the_metrics_at_once(history: History, tmp_path: Path) -> None:
    """A prune forgets old ones after it has ended itself; each is in the access log too."""
    record = RestoreRecord(
        restore_id="restore_20240115_120000_abc123",
        number=1,
        backup_id=history.archive(BackupType.FULL, HOUR),
        backup_file="/gone",
        started="2024-01-15T12:00:00Z",
        changed="2024-01-15T12:00:00Z",
        state=RestoreState.APPLIED,
    )
    RestoreRecords(history.repository).save(record)
    text = metrics_after(history, tmp_path / "metrics.prom", "prune")
    forgotten = list(AccessLog(history.repository).entries())[-1]
    assert (forgotten.action, forgotten.subject) == (Action.DISCARD, record.restore_id)
    (read,) = re.findall(r"^kekkai_backup_status_timestamp_seconds (\S+)$", text, re.MULTILINE)
    assert float(read) > forgotten.moment.timestamp()


def test_a_pin_is_in_the_metrics_at_once(history: History, tmp_path: Path) -> None:
    """As after everything else that a person does."""
    name = history.archive(BackupType.FULL, HOUR)
    for command, pinned in (("pin", 1), ("unpin", 0)):
        text = metrics_after(history, tmp_path / "metrics.prom", command, name)
        assert f"kekkai_backup_archives_pinned {float(pinned)}" in text


@pytest.mark.parametrize(("seconds", "again_after"), [(0.1, 0.0), (2.0, 20.0)])
def test_a_status_that_takes_long_is_used_again(history: History, seconds: float, again_after: float) -> None:
    """So that requests do not keep a processor busy; what could not be read is read again."""
    now, reads = [0.0], list[float]()

    def read() -> Status:
        now[0] += seconds
        reads.append(now[0])
        if len(reads) == 1:
            raise RepositoryError("away", hint="none")
        return read_status(history.settings(), NOW)

    recent = RecentStatus(read, steady=lambda: now[0])
    with pytest.raises(RepositoryError):
        recent()
    found = recent()
    now[0] += max(0.0, again_after - 0.01)
    assert (recent() is found) == bool(again_after)
    before = len(reads)
    now[0] += 0.02
    assert recent() is not found
    assert len(reads) == before + 1
