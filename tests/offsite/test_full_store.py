"""A store that becomes full while an archive is copied: an SFTP server or a disk, each on a small file system."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from portal.ops.errors import StorageError, StoreFullError
from portal.ops.offsite.copy import CopyJob
from tests.support.offsite import offsite_at, policy, small_archives
from tests.support.restores import mounted
from tests.support.stores import PASSWORD, SftpServer, Unsteady

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.offsite import Offsite

STORES = ("directory", "sftp", "terse sftp")


@pytest.fixture(params=STORES)
def small(request: pytest.FixtureRequest, tmp_path: Path, small_segments: None) -> Iterator[tuple[Offsite, Path]]:
    """A repository whose destination is on a file system of 1 MiB, and the place of that."""
    with ExitStack() as opened:
        if request.param == "directory":
            place = tmp_path / "disk"
            place.mkdir()
            url = f"file://{place}"
        else:
            server = opened.enter_context(SftpServer(tmp_path, is_terse=request.param == "terse sftp"))
            place, url = server.root, server.url
        opened.enter_context(mounted(place))
        world = offsite_at(tmp_path, url, BACKUP_OFFSITE_SFTP_PASSWORD=PASSWORD)
        small_archives(world.uploads)
        world.uploads.base()
        yield world, place


def objects(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def test_it_goes_on_when_there_is_room(small: tuple[Offsite, Path]) -> None:
    """The error says that it is full and what to do, nothing half-written is left, and once there is room only the rest
    is sent."""
    world, place = small
    (place / "filler").write_bytes(bytes(500_000))
    result = world.copy()
    (fault,) = result.faults
    assert isinstance(fault, StoreFullError), fault
    assert "is full" in fault.message or "has no space left" in fault.message
    assert "Make room there" in fault.hint
    sent = {name: data for name, data in objects(place).items() if name != "filler"}
    assert len(sent) == 2
    assert all(name.endswith(".age") for name in sent)
    (place / "filler").unlink()
    puts = 0

    def counts(what: str) -> bool:
        nonlocal puts
        puts += what == "put"
        return False

    assert CopyJob(world.through(lambda real: Unsteady(real, counts)), policy()).run().error is None
    now = objects(place)
    assert {name: now[name] for name in sent} == sent
    assert puts == len(now) - len(sent)
    (archive,) = world.uploads.archives.glob("*.tar.gz")
    assert world.elsewhere().fetch("latest").read_bytes() == archive.read_bytes()


def test_a_disk_without_room_for_a_name(small: tuple[Offsite, Path]) -> None:
    """A store that is full from the start is told as such too."""
    world, place = small
    with pytest.raises(OSError, match="No space left"), (place / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 12))
    assert isinstance(world.copy().faults[0], StoreFullError)
    assert set(objects(place)) == {"filler"}


def test_a_terse_server_that_is_not_full(tmp_path: Path, small_segments: None) -> None:
    """Where the reason stays unknown, the hint has what to look for, and an object that is there is told as such."""
    with SftpServer(tmp_path, is_terse=True) as server:
        world = offsite_at(tmp_path, server.url, BACKUP_OFFSITE_SFTP_PASSWORD=PASSWORD)
        (server.root / "a").write_bytes(b"no directory")
        with pytest.raises(StorageError, match="cannot be used") as caught:
            world.backend().put("a/00000.age", b"x", "")
        assert "quota" in caught.value.hint
