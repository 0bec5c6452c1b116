"""Deliveries by themselves: the lock on the file of a task."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from portal.ops.errors import BusyError
from portal.ops.repository.durable import open_own
from tests.support.repositories import as_nobody
from worker import delivery as module
from worker.delivery import forget_old, is_abandoned, is_begun, sole_delivery
from worker.errors import RefusedError

if TYPE_CHECKING:
    from pathlib import Path


def test_the_lock_is_free_where_the_file_cannot_be_removed(tmp_path: Path) -> None:
    """A repository that cannot be written any more keeps no later delivery waiting for a process that is done."""
    file = tmp_path / ".deliveries" / "one"
    with pytest.raises(OSError, match="one"), sole_delivery(tmp_path, "one", 1):
        descriptor = os.open(file, os.O_RDWR)
        file.unlink()
        file.mkdir()
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)


def test_a_file_that_is_gone_already_is_no_error(tmp_path: Path) -> None:
    """Somebody has cleared the directory; the work has ended in good order all the same."""
    with sole_delivery(tmp_path, "one", 1) as begun:
        (tmp_path / ".deliveries" / "one").unlink()
    assert begun == 1
    assert not is_begun(tmp_path, "one")


def test_a_delivery_waits_only_so_long(tmp_path: Path) -> None:
    """Who works on the task is named with what to do, and can go on."""
    said = rf"(?s)task one is being worked on by process {os.getpid()} .*hint: End that process"
    with sole_delivery(tmp_path, "one", 1) as begun:
        with pytest.raises(BusyError, match=said) as busy, sole_delivery(tmp_path, "one", 0.1):
            pytest.fail("two at once")
        assert busy.value.retryable
        assert begun == 1


def test_a_task_whose_file_may_not_be_looked_at_is_neither_begun_nor_abandoned(tmp_path: Path) -> None:
    """As in a repository of another user: nothing is known of it, and nothing fails."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    with sole_delivery(tmp_path, "one", 1):
        assert is_begun(tmp_path, "one")
        (tmp_path / ".deliveries").chmod(0)
        with as_nobody():
            assert not is_begun(tmp_path, "one")
            assert not is_abandoned(tmp_path, "one")
        (tmp_path / ".deliveries").chmod(0o700)


def test_a_delivery_is_begun_until_it_ends_in_good_order(tmp_path: Path) -> None:
    """It is not abandoned while a process has it; its file is the user's own, and goes with it, also after an error."""
    file = tmp_path / ".deliveries" / "one"
    for error in (None, KeyError("one")):
        assert not is_begun(tmp_path, "one")
        try:
            with sole_delivery(tmp_path, "one", 1) as begun:
                assert (begun, file.stat().st_size) == (1, 1)
                assert is_begun(tmp_path, "one")
                assert not is_abandoned(tmp_path, "one")
                if error:
                    raise error
        except KeyError as caught:
            assert caught is error
        assert not file.exists()


def abandoned(repository: Path, task_id: str, starts: int = 1) -> Path:
    """The file of a task whose process was killed so many times."""
    file = repository / ".deliveries" / task_id
    file.parent.mkdir(exist_ok=True)
    file.write_text("." * starts)
    return file


def test_starts_that_did_not_end_are_counted(tmp_path: Path) -> None:
    """The next start is one more; what nobody has begun is not abandoned."""
    abandoned(tmp_path, "one", 2)
    assert is_begun(tmp_path, "one")
    assert is_abandoned(tmp_path, "one")
    assert is_abandoned(tmp_path, "one")  # looking leaves no lock
    with sole_delivery(tmp_path, "one", 0) as begun:
        assert begun == 3
    assert not is_abandoned(tmp_path, "one")


@pytest.mark.parametrize("task_id", ["", ".", "..", "../one", "one/two", ".one", "x" * 201, "one two", "one\n"])
def test_an_id_that_is_no_file_name_has_no_delivery(tmp_path: Path, task_id: str) -> None:
    """It is refused, and nothing is begun or abandoned under it."""
    (tmp_path / "one").touch()
    with pytest.raises(RefusedError, match="id"), sole_delivery(tmp_path, task_id, 1):
        pytest.fail("begun")
    assert not is_begun(tmp_path, task_id)
    assert not is_abandoned(tmp_path, task_id)


@pytest.mark.parametrize(
    ("number", "is_allowed"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EIO, False), (errno.EROFS, False)]
)
def test_a_full_disk_stops_no_delivery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, is_allowed: bool
) -> None:
    """A prune has to be possible; it counts as the first start. Another error is one, and leaves nothing locked."""

    def write(descriptor: int, data: bytes) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("worker.delivery.os.write", write)
    if is_allowed:
        with sole_delivery(tmp_path, "one", 1) as begun:
            assert begun == 1
    else:
        with pytest.raises(OSError, match=os.strerror(number)), sole_delivery(tmp_path, "one", 1):
            pytest.fail("begun")
    monkeypatch.undo()
    assert not is_begun(tmp_path, "one")


def test_a_file_that_was_replaced_meanwhile_is_not_the_one_to_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Between opening and locking, the delivery before may end and remove its file, and no descriptor stays open."""
    file = abandoned(tmp_path, "one", 5)
    opened = list[int]()

    def opening(path: Path, flags: int) -> int:
        opened.append(open_own(path, flags))
        if len(opened) == 1:
            file.unlink()
        return opened[-1]

    monkeypatch.setattr(module, "open_own", opening)
    caplog.set_level("INFO")
    with sole_delivery(tmp_path, "one", 5) as begun:
        assert begun == 1
        assert file.stat().st_size == 1
        assert os.path.samestat(os.fstat(opened[-1]), file.stat())
    assert "delivery_waits" in caplog.text
    assert len(opened) == 2
    assert open_below(tmp_path) == []


def open_below(directory: Path) -> list[str]:
    """The files below a directory that this process has open."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return [path for path in found if path.startswith(f"{directory}/")]


def test_a_lock_that_fails_leaves_no_file_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker goes on for months."""

    def fail(descriptor: int, path: Path) -> bool:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(module, "lock_alone_by_name", fail)
    with pytest.raises(OSError, match="no locks"), sole_delivery(tmp_path, "one", 1):
        pytest.fail("begun")
    abandoned(tmp_path, "two")
    assert is_abandoned(tmp_path, "two")
    assert open_below(tmp_path) == []


def test_old_files_that_nobody_works_on_are_forgotten(tmp_path: Path) -> None:
    """Not those of tasks that are under way, however long that takes, nor young ones; nor where there are none."""
    forget_old(tmp_path, 100)
    then = time.time() - 101
    for name in ("aged", "busy", "young", "older"):
        file = abandoned(tmp_path, name)
        if name != "young":
            os.utime(file, (then, then))
    descriptor = os.open(tmp_path / ".deliveries" / "busy", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    forget_old(tmp_path, 100)
    os.close(descriptor)
    assert {path.name for path in (tmp_path / ".deliveries").iterdir()} == {"busy", "young"}
