"""What is remembered of a line of archives, and what is open while one is read."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest

from portal.ops.archive.reader import ArchiveReader
from portal.ops.chains import state_cache
from portal.ops.chains.lineage import line_of
from portal.ops.chains.reader import ChainReader, open_tree
from portal.ops.chains.state_cache import MediaState
from tests.support.incrementals import Uploads


@pytest.fixture
def newest(tmp_path: Path) -> Path:
    """The last of a base and two incrementals."""
    uploads = Uploads(directory=tmp_path)
    uploads.write("tenant/one")
    uploads.base()
    for name in ("two", "three"):
        uploads.write(f"tenant/{name}")
        last = uploads.incremental()
    return Path(last.destination_path)


def test_a_line_that_was_followed_is_not_read_again(newest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state stands for the end of the line, however far it had to go there."""
    line = line_of(newest)
    read: list[Path] = []

    class Reader(ArchiveReader):
        def __init__(self, path: Path) -> None:
            read.append(path)
            super().__init__(path)

    monkeypatch.setattr(state_cache, "ArchiveReader", Reader)
    with closing(MediaState(None)) as state:
        state.follow(line)
        assert read == [ancestor.path for ancestor in line]
        state.follow(line)
    assert len(read) == len(line) == 3


def test_a_chain_that_was_read_leaves_nothing_open(newest: Path) -> None:
    """Every archive that was opened for it is closed."""
    before = len(os.listdir("/proc/self/fd"))
    tree = open_tree(newest)
    assert isinstance(tree, ChainReader)
    for name in ("one", "two", "three"):
        member = tree.find(f"media/tenant/{name}")
        assert member is not None
        assert b"".join(tree.extract(member)) == b"content"
    assert len(os.listdir("/proc/self/fd")) > before
    tree.close()
    assert len(os.listdir("/proc/self/fd")) == before
