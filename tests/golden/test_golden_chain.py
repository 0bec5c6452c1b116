"""A chain of format 2 is verified and restored for ever, at each of its moments, and its damage is found."""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from portal.ops.chains.reader import ChainReader
from portal.ops.errors import NotIntactError
from portal.ops.model import VerifyLevel
from portal.ops.verify.verify import Verifier
from tests.support.incrementals import Uploads, tree_of_chain

if TYPE_CHECKING:
    from tests.support.archives import Entry

GOLDEN = Path(__file__).parent / "chain"
BASE, FIRST, SECOND = (f"media_20240115_1{number}0000_dd56de" for number in (2, 3, 4))
ARCHIVES = {
    BASE: "1e50b1da007a637c7e7806862910ae0d9f89e5e052ad6713f768f93c5d0d1380",
    FIRST: "f69bf9b4a67c77429b22304c0d5b5540e7f4ce059691203e52b277bb18f5f03a",
    SECOND: "9475b52b32890e15ddd2bdac93b33ca6ebb344b1057984a751df83f2000585c8",
}
LONG_NAME = b"tenant-1/" + b"long-" * 40
LARGE = "1ec302bed977d4ce41b9ad7c81eb4c2f448b56a46d2c9b3a8aa0b04529eaac2c"


def digest(content: bytes) -> str:
    return sha256(content).hexdigest()


BEFORE = digest(b'{"finding": "SQL injection", "severity": "High"}\n' * 30)
AFTER = digest(b'{"finding": "XSS", "severity": "Medium"}\n' * 20)
COMMON = {b"tenant-1/large.sarif": LARGE, b"tenant-1/not-\xff-text": digest(b"bytes")}
TREES: dict[str, dict[bytes, str]] = {
    BASE: COMMON
    | {
        b"tenant-1/scan.json": BEFORE,
        b"tenant-1/second-name.json": BEFORE,
        LONG_NAME: digest(b"long"),
        b"tenant-1/latest": "-> scan.json",
        b"tenant-1/empty": "directory",
    },
    FIRST: COMMON
    | {
        b"tenant-1/scan.json": AFTER,
        b"tenant-1/second-name.json": AFTER,
        b"tenant-1/new.json": digest(b"new"),
        b"tenant-1/latest": "-> scan.json",
        b"tenant-1/empty": "directory",
    },
    SECOND: COMMON
    | {
        b"tenant-1/scan.json": AFTER,
        b"tenant-1/new.json": "directory",
        b"tenant-1/new.json/moved": digest(b"a file now"),
        b"tenant-1/latest": "-> new.json",
        b"tenant-1/empty": "directory",
    },
}


def path_of(name: str) -> Path:
    return GOLDEN / f"{name}.tar.gz"


def said(entry: Entry) -> str:
    return f"-> {os.fsdecode(entry.target)}" if entry.target else entry.content or "directory"


@pytest.mark.parametrize("name", ARCHIVES)
def test_the_chain_is_the_one_that_was_made(name: str) -> None:
    """Nobody made it again."""
    assert sha256(path_of(name).read_bytes()).hexdigest() == ARCHIVES[name]


@pytest.mark.parametrize("level", [VerifyLevel.CHECKSUM, VerifyLevel.CONTENTS])
@pytest.mark.parametrize("name", ARCHIVES)
def test_each_verifies(name: str, level: VerifyLevel) -> None:
    """An incremental together with what it stands on."""
    assert Verifier().verify(path_of(name), level).intact


@pytest.mark.parametrize("name", ARCHIVES)
def test_each_moment_reads_as_it_was(name: str) -> None:
    """Every path of it with what it held, and no other."""
    tree = {path: said(entry) for path, entry in tree_of_chain(path_of(name)).items()}
    assert tree == TREES[name] | {b"": "directory", b"tenant-1": "directory"}


@pytest.mark.parametrize("name", ARCHIVES)
def test_each_moment_restores(name: str, tmp_path: Path) -> None:
    """From a copy, into an empty directory."""
    uploads = Uploads(directory=tmp_path)
    shutil.copytree(GOLDEN, uploads.archives)
    restored = {path: said(entry) for path, entry in uploads.restored(name).items()}
    assert restored == TREES[name] | {b"": "directory", b"tenant-1": "directory"}


def test_links_stay_links() -> None:
    """Both names of a changed file are one file."""
    with closing(ChainReader(path_of(FIRST))) as archive:
        member = archive.find("media/tenant-1/second-name.json")
    assert member is not None
    assert member.link == "media/tenant-1/scan.json"


def test_damage_in_the_middle_is_found(tmp_path: Path) -> None:
    """A flipped byte of the first incremental: named by its verification, and by a restore of the second."""
    uploads = Uploads(directory=tmp_path)
    shutil.copytree(GOLDEN, uploads.archives)
    shutil.copy(GOLDEN.parent / "flipped-incremental.tar.gz", uploads.archive(FIRST))
    found = Verifier().verify(uploads.archive(FIRST))
    assert "media/tenant-1/scan.json, frame 1" in found.message
    result = uploads.restore(SECOND)
    assert result.exit_code == NotIntactError.exit_code
    assert FIRST in (result.error or "")
    assert not (tmp_path / "restored").exists()
