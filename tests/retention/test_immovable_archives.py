"""What cannot be removed, not even by root: everything else goes, and what has gone is in the access log."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from portal.ops.repository.access_log import AccessLog, Action, Outcome
from portal.ops.repository.locks import is_locked_alone
from portal.ops.repository.repository import Repository
from tests.support.pruning import FULL, MEDIA, archives, assert_sound, job, put

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def immutable(path: Path) -> Iterator[None]:
    """A file or directory that nobody can change."""
    if subprocess.run(["chattr", "+i", path], check=False).returncode:
        pytest.skip("this user or file system cannot make a file immutable")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", path], check=True)


def test_an_archive_that_cannot_be_removed_keeps_no_other_but_what_it_needs(tmp_path: Path) -> None:
    """The prune fails and names it; older ones and younger ones go, with their sidecars, and are written down."""
    directory = tmp_path / "archives"
    newest = put(directory, FULL, 1)
    put(directory, MEDIA, 1)
    oldest, middle = put(directory, FULL, 60), put(directory, FULL, 40)
    base = put(directory, MEDIA, 52)
    child = put(directory, MEDIA, 51, parent=base)
    with immutable(directory / f"{child}.tar.gz"):
        result = job(directory).run()
    assert result.error is not None
    assert f"cannot remove {directory / child}.tar.gz" in result.error
    assert {one.entry.name for one in result.removed} == {oldest, middle}
    assert set(result.spared) == {base, child}
    assert {newest, base, child} < archives(directory)
    assert_sound(directory)
    assert not list(directory.glob(f"{oldest}*"))
    last, failed = list(AccessLog(Repository(directory)).entries())[-2:]
    assert (last.action, last.outcome, set(last.details["archives"])) == (Action.PRUNE, Outcome.DONE, {oldest, middle})
    assert (failed.outcome, failed.details["removed"]) == (Outcome.FAILED, 2)


def test_remains_that_cannot_be_removed_stay_unlocked(tmp_path: Path) -> None:
    """A worker that lives on does not keep the next backup of the same request waiting."""
    partial = tmp_path / ".full_20260101_000000_abcdef.tar.gz.partial"
    partial.touch()
    with immutable(tmp_path):
        assert Repository(tmp_path).sweep() == []
        assert not is_locked_alone(partial)
    assert Repository(tmp_path).sweep() == [partial.name]
