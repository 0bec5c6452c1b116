"""A drill where recovery to moments is promised and cannot be shown: a fault, or a gap that is named."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import pytest

from portal.ops.drill.job import DrillJob
from portal.ops.drill.moments import _decode, drill_moments, window_lacks
from portal.ops.errors import OpsError
from portal.ops.pitr.look import PitrLook
from portal.ops.pitr.wal_archive import Cluster, WalArchive
from portal.ops.pitr.window import Base, Wal, Window
from portal.ops.repository.repository import Repository
from portal.ops.restore.config import RestoreConfig
from portal.ops.runtime.process import SystemRunner
from tests.support.portal import execute
from tests.support.world import World, config_of

if TYPE_CHECKING:
    from pathlib import Path

    from demo.postgres import EmbeddedPostgres
    from portal.ops.settings.database_url import DatabaseTarget

NOON: Final = datetime(2026, 11, 28, 12, tzinfo=UTC)
CLUSTER: Final = Cluster(system_identifier="7000", segment_bytes=16 << 20, major=17)


def a_look(*, base_age: timedelta | None = None, window_age: timedelta | None = None) -> PitrLook:
    """What there is at noon, with a base backup and a window that ended so long ago."""
    base = Base(name="base", timeline=1, start_lsn=0, end_lsn=1, ended=NOON - (base_age or timedelta(0)))
    return PitrLook(
        archive=None,
        bases=() if base_age is None else (base,),
        wal=Wal(segment_bytes=16 << 20, pieces=()),
        spans=(),
        window=None if window_age is None else Window(start=NOON - timedelta(days=3), end=NOON - window_age),
        state={},
    )


@pytest.mark.parametrize(
    ("found", "received_for", "what", "is_fault"),
    [
        (a_look(), None, "no WAL was ever received", True),
        (a_look(), timedelta(minutes=1), "yet", False),
        (a_look(), timedelta(hours=23), "yet", False),
        (a_look(), timedelta(hours=25), "25 h without a base backup", True),
        (a_look(base_age=timedelta(minutes=5)), timedelta(days=9), "yet", False),
        (a_look(base_age=timedelta(minutes=90)), timedelta(hours=2), "base backup of 90 min ago is missing", True),
        (a_look(base_age=timedelta(days=1), window_age=timedelta(seconds=3)), timedelta(days=9), "", False),
        (a_look(base_age=timedelta(days=1), window_age=timedelta(hours=5)), timedelta(days=9), "5 h old", False),
    ],
)
def test_window_that_should_be_there_is_missed(
    found: PitrLook, received_for: timedelta | None, what: str, is_fault: bool
) -> None:
    """Right after the first start it cannot be there; a day later, or an hour after a base backup, it has to be."""
    since = None if received_for is None else NOON - received_for
    text, fault = window_lacks(found, since, NOON)
    assert (what in text, bool(text), fault) == (True, bool(what), is_fault)


def test_first_start_is_a_gap_and_a_day_later_a_problem(tmp_path: Path) -> None:
    """By the time since when the cluster's WAL is received; where no WAL is promised, nothing is said."""
    repository = Repository(tmp_path)
    repository.prepare()
    WalArchive.prepare(repository, CLUSTER)

    def shown(*, wal: bool) -> tuple[int, int]:
        found = drill_moments(repository, RestoreConfig(local_path=tmp_path, wal=wal), runner=SystemRunner())
        assert found.checks == []
        return len(found.gaps), len(found.problems)

    assert (shown(wal=True), shown(wal=False)) == ((1, 0), (0, 0))
    old = datetime.now(UTC).timestamp() - timedelta(days=2).total_seconds()
    os.utime(tmp_path / "wal/current.json", (old, old))
    assert (shown(wal=True), shown(wal=False)) == ((0, 1), (0, 0))


def test_drill_without_the_promised_window_fails(world: World) -> None:
    """The archive is intact, and the report says what was not shown."""
    report = DrillJob(config_of(world.portal, wal=True)).run()
    assert (report.success, report.exit_code, report.damages) == (False, 1, ())
    (problem,) = report.problems
    assert "recovery to a moment was not tested" in problem
    assert problem in (report.error or "")


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        ("exec 0<&-; kill -9 $$", "pg_restore was ended by SIGKILL"),
        ("exec 0<&-; echo 'pg_restore: error: no room' >&2; exit 1", "pg_restore failed: no room"),
        ("cat >/dev/null; exit 1", "pg_restore failed: exit code 1"),
    ],
)
def test_decoding_that_ends_early_says_why(
    portal_database: DatabaseTarget, postgres: EmbeddedPostgres, tmp_path: Path, ending: str, message: str
) -> None:
    """A program that reads no more, such as one that was killed for want of memory, does not end the whole drill."""
    (tmp_path / "pg_dump").symlink_to(postgres.bin_dir / "pg_dump")
    program = tmp_path / "pg_restore"
    version = f'[ "$1" = --version ] && exec {postgres.bin_dir}/pg_restore --version'
    program.write_text(f"#!/bin/sh\n{version}\n{ending}\n")
    program.chmod(0o755)
    execute(portal_database, "CREATE TABLE public.big AS SELECT repeat('x', 1000) FROM generate_series(1, 5000)")
    server: Any = SimpleNamespace(target=lambda _: portal_database)
    with pytest.raises(OpsError) as caught:
        _decode(server, portal_database.name, 17, SystemRunner(), tmp_path)
    assert caught.value.message == message
