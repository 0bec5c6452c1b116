"""The table of contents of a dump is parsed while the dump arrives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from portal.ops.postgres.toc import ContentsReader, CutShortError
from tests.support.database_restores import portal

if TYPE_CHECKING:
    from tests.support.restoring import Bench

__all__ = ["portal"]


@pytest.mark.parametrize("piece_bytes", [1, 1000, 1 << 30])
def test_parsing_goes_on_where_the_data_ended(portal: Bench, piece_bytes: int) -> None:
    """However the bytes arrive, every entry is there once."""
    dump = portal.dump.read_bytes()
    expected = ContentsReader(dump).read()
    arrived = bytearray()
    reader = ContentsReader(arrived)
    found, pieces = None, iter(range(0, len(dump), piece_bytes))
    while found is None:
        start = next(pieces)
        arrived += dump[start : start + piece_bytes]
        try:
            found = reader.read()
        except CutShortError:
            assert len(arrived) < len(dump)
    assert found == expected
    assert len(expected.entries) > 20


def test_a_dump_that_ends_within_its_contents_is_cut_short(portal: Bench) -> None:
    """The end may be anywhere."""
    dump = portal.dump.read_bytes()
    for size in (0, 4, 11, 60, 500, 1500):
        with pytest.raises(CutShortError):
            ContentsReader(dump[:size]).read()
