"""The file that an archive is written to: what could not be put on the disk is told in the end."""

from __future__ import annotations

import errno
import os
import threading
from hashlib import sha256
from typing import TYPE_CHECKING, NoReturn

import pytest

from portal.ops.archive import output_file
from portal.ops.archive.output_file import OutputFile

if TYPE_CHECKING:
    from pathlib import Path


def opened(place: Path) -> OutputFile:
    return OutputFile(os.open(place / "file", os.O_RDWR | os.O_CREAT, 0o600))


@pytest.mark.parametrize("call", ["fsync", "fdatasync"])
def test_what_the_disk_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Also where it was refused while more was being written: the kernel tells of it once."""

    refused = threading.Event()

    def refuse(_: int) -> NoReturn:
        refused.set()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(output_file, "_WRITE_BEHIND_BYTES", 10)
    monkeypatch.setattr(os, call, refuse)
    file = opened(tmp_path)
    try:
        for _ in range(5):
            file.write(b"0123456789")
        assert call == "fsync" or refused.wait(10)
        with pytest.raises(OSError, match="Input/output error"):
            file.finish()
    finally:
        file.close()


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    """With what was patched in, and without what was taken back."""
    file = opened(tmp_path)
    file.skip(4)
    file.write(b"content and more")
    file.truncate(11)
    file.patch(0, b"head")
    assert file.finish() == sha256(b"headcontent").hexdigest()
    file.close()
    assert (tmp_path / "file").read_bytes() == b"headcontent"
