"""What an archive leaves out with a note, and what must not be left out."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from portal.ops.backup.walk import FileTree
from portal.ops.errors import SourceError
from tests.support import archives
from tests.support.archives import (
    NAME,
    Found,
    Recipe,
    tree_in_archive,
    write_archive,
)
from tests.support.trees import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator

    from portal.ops.archive.compressor_pool import CompressorPool

ROOT = Path(__file__).parents[2]


def test_sockets_and_fifos_are_left_out_with_a_note(pool: CompressorPool, tmp_path: Path, media: Path) -> None:
    """What has no content is named and passed over; nothing waits for its other end."""
    (media / "scan.json").write_bytes(b"{}")
    os.mkfifo(media / "fifo")
    recipe = Recipe(media=media)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(media / "socket"))
        archive = write_archive(tmp_path / NAME, pool, recipe)
    assert recipe.tally.special == ["media/fifo", "media/socket"]
    assert set(tree_in_archive(archive)) == {b"", b"scan.json"}


def test_fifo_that_took_the_name_of_a_file_is_left_out(pool: CompressorPool, tmp_path: Path, media: Path) -> None:
    """A file that became a FIFO after it was listed is a note, not a hang."""
    (media / "scan.json").write_bytes(b"{}")

    def meddle(items: Iterator[Found]) -> Iterator[Found]:
        for found in items:
            yield found
            if found[0][0] == "media/scan.json":
                (media / "scan.json").unlink()
                os.mkfifo(media / "scan.json")

    recipe = Recipe(media=media, meddle=meddle)
    archive = write_archive(tmp_path / NAME, pool, recipe)
    assert recipe.tally.special == ["media/scan.json"]
    assert archives.verify(archive).intact


def test_file_that_took_the_name_of_a_symlink_is_a_note(pool: CompressorPool, tmp_path: Path, media: Path) -> None:
    """A symlink that was replaced after it was listed does not fail the backup."""
    (media / "latest").symlink_to("scan.json")

    def meddle(items: Iterator[Found]) -> Iterator[Found]:
        for found in items:
            yield found
            if found[0][0] == "media/latest":
                (media / "latest").unlink()
                (media / "latest").write_bytes(b"{}")

    recipe = Recipe(media=media, meddle=meddle)
    archive = write_archive(tmp_path / NAME, pool, recipe)
    assert recipe.tally.vanished == ["media/latest"]
    assert archives.verify(archive).intact


# Root may read everything as long as it has these capabilities, so the archive is written by a process without them.
_WITHOUT_PRIVILEGE = """
import ctypes, os, sys
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2
for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
os.execv(sys.executable, [sys.executable, "-m", "tests.support.archives", *sys.argv[1:]])
"""


@pytest.mark.parametrize("name", ["scan.json", "large.sarif", "private"])
def test_what_cannot_be_read_fails_the_backup(tmp_path: Path, media: Path, name: str) -> None:
    """A small file, a large file and a directory that may not be read are each named in the error."""
    (media / "scan.json").write_bytes(b"{}")
    (media / "large.sarif").write_bytes(bytes(2 * MIB))
    (media / "private").mkdir()
    (media / name).chmod(0)
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_PRIVILEGE, media, tmp_path / NAME],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert f"SourceError: cannot read {media / name}: permission denied" in done.stderr


def test_audit_path_that_is_a_fifo_is_refused(tmp_path: Path) -> None:
    """What cannot hold an audit log is not taken for an empty one."""
    os.mkfifo(tmp_path / "audit.jsonl")
    with pytest.raises(SourceError, match="neither a directory nor a file"):
        list(FileTree(root=tmp_path / "audit.jsonl", prefix="audit").items())
