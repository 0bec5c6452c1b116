"""Runs of members that share frames with no others, links that lead out, and what an archive's bytes come from."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from portal.ops.archive import runs as module
from portal.ops.archive.damage import DamagedError
from portal.ops.archive.index import Member, MemberType
from portal.ops.archive.links import leads_out
from portal.ops.archive.open import check_readable, open_archive, peek_manifest
from portal.ops.archive.runs import runs
from portal.ops.archive.source import FileSource
from portal.ops.errors import NotIntactError, RepositoryError
from portal.ops.manifest import Manifest
from portal.ops.model import Component
from tests.support.archives import BACKUP_ID, NAME, manifest_of
from tests.support.kept import packed

if TYPE_CHECKING:
    from pathlib import Path


def member(frame: int, at: int, path: str = "media/a") -> Member:
    return Member(path, MemberType.FILE, frame=frame, at=at)


@pytest.mark.parametrize(
    ("places", "frame_count", "found"),
    [
        ([], 3, []),
        ([(0, 0)], 1, [(range(1), 1)]),
        ([(0, 0), (0, 512), (1, 0)], 4, [(range(1), 2), (range(1, 4), 1)]),
        ([(0, 0), (2, 512), (3, 0), (4, 0)], 5, [(range(3), 2), (range(3, 4), 1), (range(4, 5), 1)]),
        ([(0, 0), (9, 0)], 9, [(range(9), 1)]),
    ],
)
def test_a_run_begins_where_a_member_begins_a_frame(
    places: list[tuple[int, int]], frame_count: int, found: list[tuple[range, int]]
) -> None:
    """It has the frames up to the next one."""
    members = [member(*place) for place in places]
    if places and places[-1][0] >= frame_count:
        with pytest.raises(DamagedError, match="the index is not in the order of the archive"):
            list(runs(members, frame_count))
        return
    got = list(runs(members, frame_count))
    assert [(run.frames, len(run.members)) for run in got] == found
    assert [one for run in got for one in run.members] == members


@pytest.mark.parametrize("places", [[(1, 0), (1, 0)], [(2, 0), (1, 0)]])
def test_members_out_of_order_are_damage(places: list[tuple[int, int]]) -> None:
    """The first one of the run is named."""
    with pytest.raises(DamagedError, match=r"frame [12]: the index is not in the order") as caught:
        list(runs([member(*place) for place in places], 3))
    assert (caught.value.damage.path, caught.value.damage.frame) == ("media/a", places[0][0])


def test_a_run_has_as_many_members_as_fit_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the least that each of them takes: a header, its path and its link; the next run counts anew."""
    each = 512 + len("media/a") + len("target")
    monkeypatch.setattr(module, "FRAME_MAX", 3 * each)
    members = [member(number // 3, number % 3)._replace(link="target") for number in range(9)]
    assert len(list(runs(members, 3))) == 3
    with pytest.raises(DamagedError, match="more members here than a frame can hold"):
        list(runs([*members, member(2, 3)], 3))


@pytest.mark.parametrize(
    ("path", "link", "top", "leads"),
    [
        ("a", "b", "", False),
        ("a", "/b", "", True),
        ("a", "..", "", True),
        ("a/b", "..", "", False),
        ("a/b", "../..", "", True),
        ("a/b", "../c/..", "", True),
        ("a/b", "./../c", "", False),
        ("a/b", "c/../d", "", True),
        ("media/a", "..", "media", True),
        ("media/a/b", "..", "media", False),
        ("media/a/b", "../..", "media", True),
        ("x/media/a", "..", "x/media", True),
        ("x/media/a/b", "../c", "x/media", False),
    ],
)
def test_a_link_that_leads_out(path: str, link: str, top: str, leads: bool) -> None:
    """Up further than it lies deep, or up again from wherever another link leads."""
    assert leads_out(path, link, top) is leads


def test_a_source_reads_and_closes(tmp_path: Path) -> None:
    """Less at the end; twice closed is closed, and an error names the file."""
    (tmp_path / "file").write_bytes(b"0123456789")
    source = FileSource(tmp_path / "file")
    assert (source.size, source.read_at(3, 4), source.read_at(9, 8), source.read_at(1, 10)) == (10, b"456", b"89", b"")
    descriptor = source.fileno()
    source.close()
    again = os.open(tmp_path / "file", os.O_RDONLY)
    assert again == descriptor
    source.close()
    assert os.read(again, 2) == b"01"
    os.close(again)
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        source.read_at(1, 0)
    assert (caught.value.errno, caught.value.filename) == (errno.EBADF, str(tmp_path / "file"))


def test_an_archive_that_cannot_be_read_is_no_damage(tmp_path: Path) -> None:
    """The reason of the system is told, with a hint."""
    for look in (check_readable, open_archive):
        with pytest.raises(RepositoryError, match=f"cannot read {tmp_path}/absent: no such file") as caught:
            look(tmp_path / "absent")
        assert "its permissions" in caught.value.hint


MANIFEST = manifest_of({Component.MEDIA: {"bytes": 1, "files": 1}})


def test_a_manifest_is_peeked_at_where_it_is_the_first_member(tmp_path: Path) -> None:
    """Otherwise nothing is said, of whatever file."""
    path = tmp_path / NAME
    path.write_bytes(packed(BACKUP_ID, MANIFEST.encode()))
    assert peek_manifest(path) == MANIFEST
    for data in (b"", b"garbage", packed(BACKUP_ID, b""), packed("x" * 120, MANIFEST.encode())):
        path.write_bytes(data)
        assert peek_manifest(path) is None
    whole = packed(BACKUP_ID, MANIFEST.encode())
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        assert peek_manifest(path) in (None, MANIFEST)
    path.write_bytes(packed(BACKUP_ID, b"[]"))
    with pytest.raises(NotIntactError, match=r"manifest.json is invalid"):
        peek_manifest(path)
    with pytest.raises(FileNotFoundError):
        peek_manifest(tmp_path / "absent")


@pytest.mark.parametrize("size", [1 << 15, (4 << 20) - 512, (4 << 20) - 511, 5 << 20])
def test_the_longest_manifest_that_is_peeked_at(tmp_path: Path, size: int) -> None:
    """As much is read as four megabytes have; a longer one is left to a reader of the archive."""
    text = MANIFEST.encode()
    path = tmp_path / NAME
    path.write_bytes(packed(BACKUP_ID, text + b" " * (size - len(text))))
    found = peek_manifest(path)
    assert found is None or isinstance(found, Manifest)
    assert (found is not None) is (size <= (4 << 20) - 512)
