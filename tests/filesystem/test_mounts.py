"""The kernel's list of mounts, with whatever names they have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from portal.ops.filesystem.mounts import Mount, parse_mounts, read_mounts
from portal.ops.restore.files.preflight import mounts_below
from tests.support.restores import mounted

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", ["a b", "a\nb", "a\rb", "a\x0cb", "a\u2028b", "a\\b", "a - b", "\udcff"])
def test_odd_names(tmp_path: Path, name: str) -> None:
    """A mount is found by its name, also if that has what other programs take for the end of a line."""
    place = tmp_path / name
    place.mkdir()
    with mounted(place):
        assert Mount(str(place), "tmpfs") in read_mounts()
        assert mounts_below(str(tmp_path)) == (name,)


def test_invalid_lines() -> None:
    """Lines of another form are passed over."""
    assert parse_mounts(b"36 35 0:1 / /a rw - ext4 /dev/a rw\n\nno sense\n36 35 - ext4\n") == [Mount("/a", "ext4")]
