"""Permits for restores: the worker that begins has it, or the command that withdraws it, and never both."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from portal.ops.errors import DiskFullError, RepositoryError
from tests.support.portal import small_disk
from tests.support.repositories import as_nobody, public_directory
from worker import authorization as module
from worker.authorization import Authorizations
from worker.errors import RefusedError
from worker.operations import RESTORE_ARCHIVE, RESTORE_ROLLBACK

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["public_directory"]

TASK = RESTORE_ARCHIVE
ASKED = {"archive": "latest", "patterns": ["a"]}


def test_what_was_permitted_is_done_once(tmp_path: Path) -> None:
    """A permit is there until it is used up; then the same task is refused."""
    permits = Authorizations(tmp_path)
    permits.grant(TASK, "one", ASKED)
    permits.take(TASK, "one", ASKED)
    permits.use_up("one")
    with pytest.raises(RefusedError, match="nobody who may read the backups"):
        permits.take(TASK, "one", ASKED)
    assert not list((tmp_path / ".authorizations").iterdir())


def test_a_permit_that_nobody_took_is_used_up_as_well(tmp_path: Path) -> None:
    """As for a task that is given up before it was begun; where there is none, nothing happens."""
    permits = Authorizations(tmp_path)
    permits.use_up("one")
    permits.grant(TASK, "one", ASKED)
    permits.grant(TASK, "two", ASKED)
    permits.use_up("one")
    assert [path.name for path in (tmp_path / ".authorizations").iterdir()] == ["two.json"]


def test_the_order_of_arguments_means_nothing(tmp_path: Path) -> None:
    """A broker or another release may write them in any."""
    permits = Authorizations(tmp_path)
    permits.grant(TASK, "one", ASKED)
    permits.take(TASK, "one", dict(reversed(ASKED.items())))


def test_what_was_cut_off_can_go_on(tmp_path: Path) -> None:
    """A second delivery of a task that was begun has the permit still."""
    permits = Authorizations(tmp_path)
    permits.grant(TASK, "one", ASKED)
    permits.take(TASK, "one", ASKED)
    permits.take(TASK, "one", ASKED)


def test_what_was_withdrawn_is_not_begun(tmp_path: Path) -> None:
    """Who withdraws a permit first knows that nothing will be done."""
    permits = Authorizations(tmp_path)
    permits.grant(TASK, "one", ASKED)
    assert permits.withdraw("one")
    with pytest.raises(RefusedError, match="nobody who may read the backups"):
        permits.take(TASK, "one", ASKED)


def test_what_was_begun_is_not_withdrawn(tmp_path: Path) -> None:
    """Who comes after the worker knows that it may be done."""
    permits = Authorizations(tmp_path)
    permits.grant(TASK, "one", ASKED)
    permits.take(TASK, "one", ASKED)
    assert not permits.withdraw("one")


def test_a_forged_task_costs_the_real_one_nothing(tmp_path: Path) -> None:
    """Other arguments under the same id are refused, and those that were asked for are still permitted."""
    permits = Authorizations(tmp_path)
    permits.grant(TASK, "one", ASKED)
    with pytest.raises(RefusedError, match="other arguments"):
        permits.take(TASK, "one", {**ASKED, "exact": True})
    with pytest.raises(RefusedError, match="other arguments"):
        permits.take(RESTORE_ROLLBACK, "one", ASKED)
    permits.take(TASK, "one", ASKED)


@pytest.mark.parametrize("text", ["", "[]", "{}", "7", "\udcff", '{"digest": null}'])
def test_a_permit_without_a_digest_is_none(tmp_path: Path, text: str) -> None:
    """Whatever it holds; and a directory in its place is none either."""
    permits = Authorizations(tmp_path)
    permits.grant(TASK, "one", ASKED)
    (tmp_path / ".authorizations" / "one.json").write_text(text, errors="surrogateescape")
    (tmp_path / ".authorizations" / "two.begun").mkdir()
    for task_id in ("one", "two"):
        with pytest.raises(RefusedError, match=r"nobody who may read the backups|other arguments"):
            permits.take(TASK, task_id, ASKED)


def test_a_permit_of_another_user_is_named_with_what_to_do(public_directory: Path) -> None:
    """Root has asked, and the worker is the user that the backups belong to."""
    permits = Authorizations(public_directory)
    permits.grant(TASK, "one", ASKED)
    (public_directory / ".authorizations").chmod(0o777)
    with as_nobody(), pytest.raises(RefusedError, match="belongs to another user") as caught:
        permits.take(TASK, "one", ASKED)
    assert caught.value.hint == f"chown -R --reference={public_directory} {public_directory}/.authorizations"


def test_a_task_id_leads_to_no_other_directory(tmp_path: Path) -> None:
    """Neither to grant, nor to withdraw, nor to use up."""
    permits = Authorizations(tmp_path)
    permits.grant(TASK, "../../one", ASKED)
    assert [path.name for path in (tmp_path / ".authorizations").iterdir()] == ["one.json"]
    permits.take(TASK, "/etc/one", ASKED)
    assert [path.name for path in (tmp_path / ".authorizations").iterdir()] == ["one.begun"]


NOW = 1_795_910_400


def granted(repository: Path, seconds: int, monkeypatch: pytest.MonkeyPatch) -> Authorizations:
    """The permits of a repository, with one of that age."""
    permits = Authorizations(repository)
    permits.grant(TASK, "one", ASKED)
    os.utime(repository / ".authorizations" / "one.json", (NOW - seconds, NOW - seconds))
    monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: float(NOW)))
    return permits


@pytest.mark.parametrize("seconds", [24 * 3600, -300])
def test_a_permit_is_valid_for_a_day(tmp_path: Path, seconds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By clocks that differ by five minutes."""
    permits = granted(tmp_path, seconds, monkeypatch)
    permits.take(TASK, "one", ASKED)


@pytest.mark.parametrize("seconds", [24 * 3600 + 1, -301])
def test_an_old_permit_is_void(tmp_path: Path, seconds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a day, or from a time to come, nobody remembers what was asked for."""
    permits = granted(tmp_path, seconds, monkeypatch)
    with pytest.raises(RefusedError, match="more than a day old"):
        permits.take(TASK, "one", ASKED)
    assert permits.withdraw("one")
    assert not permits.withdraw("one")


def test_who_may_not_write_there_may_not_permit(tmp_path: Path) -> None:
    """The reason is told, with the ways out."""
    Authorizations(tmp_path).grant(TASK, "one", ASKED)
    with as_nobody(), pytest.raises(RepositoryError, match=r"(?s)^cannot authorize a restore by a worker in .*--local"):
        Authorizations(tmp_path).grant(TASK, "two", ASKED)


def test_a_full_disk_is_not_a_lack_of_rights(tmp_path: Path) -> None:
    """It is told as what it is."""
    with small_disk(tmp_path / "full", "64k"):
        (tmp_path / "full/filling").write_bytes(bytes(64 << 10))
        with pytest.raises(DiskFullError, match="Free space on its file system"):
            Authorizations(tmp_path / "full").grant(TASK, "one", ASKED)
