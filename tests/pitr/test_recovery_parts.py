"""A recovery in parts: what its server is given, what is held meanwhile, and what is told on the log."""

from __future__ import annotations

import fcntl
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import pytest

from portal.ops.errors import ArchiveAbsentError, BusyError
from portal.ops.pitr import data_dir, recovery
from portal.ops.pitr.data_dir import _sync
from portal.ops.pitr.look import base_of
from portal.ops.pitr.plan import clock_offset
from portal.ops.pitr.prune_wal import _is_young, prune_wal
from portal.ops.pitr.recovery import lines_locked, scratch_server, unpacked
from portal.ops.pitr.wal_archive import Cluster, WalArchive
from portal.ops.repository.repository import Repository
from tests.pitr.test_base_files import FACTS, put_base
from tests.support.events import Events
from tests.support.fake_runner import FakeRunner

if TYPE_CHECKING:
    from portal.ops.pitr.plan import RecoveryPlan

NOON: Final = datetime(2026, 11, 29, 12, tzinfo=UTC)
CLUSTER: Final = Cluster(
    system_identifier="7000", segment_bytes=1 << 20, major=17, limits={"max_connections": 100, "max_wal_senders": 9}
)


def a_plan(**changes: Any) -> RecoveryPlan:
    given: dict[str, Any] = {
        "facts": {"limits": {"max_connections": 300, "max_wal_senders": 5, "other": 1}, "superuser": "root"},
        "archive": SimpleNamespace(cluster=CLUSTER),
        "major": 17,
        "line": (),
    }
    plan: Any = SimpleNamespace(**{**given, **changes})
    found: RecoveryPlan = plan
    return found


class TestServer:
    def test_what_it_is_given(self, tmp_path: Path) -> None:
        """The highest limits that were seen, the cluster's superuser, and no durability unless asked for."""
        made = scratch_server(a_plan(), tmp_path, tmp_path / "data", runner=FakeRunner({}), bin_dir=None)
        assert made.limits == {"max_connections": 300, "max_wal_senders": 9, "other": 1}
        assert (made.superuser, made.major, made.directory, made.data) == ("root", 17, tmp_path, tmp_path / "data")
        assert not made.is_durable
        bare = scratch_server(
            a_plan(facts={}), tmp_path, tmp_path, runner=FakeRunner({}), bin_dir=None, is_durable=True
        )
        assert (bare.limits, bare.superuser, bare.is_durable) == (CLUSTER.limits, "postgres", True)

    def test_its_program_is_looked_for_before_anything_is_unpacked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Minutes later would be too late."""
        done: list[str] = []
        server: Any = SimpleNamespace(
            find_program=lambda: Path("/bin/postgres") if done == [] else None,
            data=Path("/data"),
            owner=None,
            runner=None,
            bin_dir=None,
        )
        monkeypatch.setattr(recovery, "unpack_bases", lambda *_, **__: done.append("unpacked"))
        assert unpacked(server, a_plan(), 1, lambda _: None) == Path("/bin/postgres")
        assert done == ["unpacked"]

    def test_settings_of_administrators_go(self, tmp_path: Path) -> None:
        """The scratch server has none of them."""
        (tmp_path / "postgresql.auto.conf").write_text("archive_command = 'x'\n")
        recovery._neutralise(tmp_path)
        assert (tmp_path / "postgresql.auto.conf").read_text() == ""

    def test_it_is_stopped_whatever_happens(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """With a checkpoint after a replay, and at once after an error."""
        stopped: list[bool] = []

        class Feed:
            def __init__(self, *_: object) -> None:
                pass

            def __enter__(self) -> object:
                return self

            def __exit__(self, *_: object) -> None:
                pass

        def recover(*_: object) -> None:
            if fails:
                raise KeyError

        monkeypatch.setattr(data_dir, "WalFeed", Feed)
        server: Any = SimpleNamespace(recover=recover, stop=lambda *, fast=False: stopped.append(fast))
        plan = a_plan(moment=NOON, span=SimpleNamespace(timeline=1))
        fails = False
        data_dir._replay(server, plan, tmp_path, None)
        assert stopped == [True, False]
        fails = True
        with pytest.raises(KeyError):
            data_dir._replay(server, plan, tmp_path, None)
        assert stopped == [True, False, False]


def test_a_chain_is_kept_from_prunes(tmp_path: Path) -> None:
    """All of it, until the recovery has ended; one that is being pruned is waited for."""
    line = tuple(tmp_path / name for name in ("a", "b"))
    for path in line:
        path.write_text("")
    plan = a_plan(line=line)
    with lines_locked(plan, 0):
        assert [is_free(path) for path in line] == [False, False]
    assert [is_free(path) for path in line] == [True, True]
    with line[1].open() as pruned:
        fcntl.flock(pruned, fcntl.LOCK_EX)
        with pytest.raises(BusyError):
            lines_locked(plan, 0)
    line[1].unlink()
    with pytest.raises(ArchiveAbsentError):
        lines_locked(plan, 0)
    assert is_free(line[0])


def is_free(path: Path) -> bool:
    """Whether a prune could remove an archive."""
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_everything_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and directories, and no descriptor stays."""
    (tmp_path / "a/b").mkdir(parents=True)
    for name in ("x", "a/y", "a/b/z"):
        (tmp_path / name).write_text("")
    synced: set[str] = set()
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr("os.fsync", lambda descriptor: synced.add(os.readlink(f"/proc/self/fd/{descriptor}")))
    _sync(tmp_path)
    assert synced == {str(tmp_path / name) for name in ("", "x", "a", "a/y", "a/b", "a/b/z")}
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_base_backup_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told with its path; no WAL goes."""
    repository = Repository(tmp_path)
    repository.prepare()
    name = put_base(tmp_path, 1, facts={**FACTS, "start_lsn": "x"})
    looked, pruned = (Events(monkeypatch, f"portal.ops.pitr.{module}") for module in ("look", "prune_wal"))
    assert base_of(tmp_path / f"{name}.tar.gz") is None
    assert prune_wal(repository, NOON) == 0
    ((level, event, facts), *_) = looked.all
    assert (level, event, facts["path"]) == ("warning", "base_unreadable", f"{tmp_path}/{name}.tar.gz")
    assert pruned.all == [("warning", "wal_not_removed", {"reason": f"{name}.tar.gz cannot be read"})]


def test_wal_of_the_last_day(tmp_path: Path) -> None:
    """It is young for a day; a file that has gone meanwhile is left to whoever has removed it."""
    path = tmp_path / "segment"
    path.write_text("")
    os.utime(path, (NOON.timestamp(), NOON.timestamp()))
    day = timedelta(days=1)
    assert [_is_young(path, NOON + age) for age in (day - timedelta(seconds=1), day)] == [True, False]
    path.unlink()
    assert _is_young(path, NOON + day)


def test_clocks(tmp_path: Path) -> None:
    """By how much they differ, as far as that is known."""
    repository = Repository(tmp_path)
    repository.prepare()
    archive = WalArchive.prepare(repository, CLUSTER)
    zero = clock_offset(None)
    assert (zero.total_seconds(), clock_offset(archive)) == (0, zero)
    archive.save_state({"server_clock": "2026-11-29T12:00:05+00:00", "updated": "2026-11-29T12:00:00+00:00"})
    assert clock_offset(archive).total_seconds() == 5
