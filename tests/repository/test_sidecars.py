"""Checksum files: what is understood, and what is damage."""

from __future__ import annotations

import os
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest

from portal.ops.errors import NotIntactError, RepositoryError
from portal.ops.repository.sidecar import file_digest, read_sidecar
from tests.support.repositories import DIGEST

if TYPE_CHECKING:
    from pathlib import Path


class TestSidecar:
    """Reading the checksum that an archive should have."""

    @pytest.mark.parametrize(
        "line", [f"{DIGEST}  x.tar.gz\n", f"{DIGEST} *x.tar.gz\n", f"{DIGEST}  x.tar.gz", f"{DIGEST}  x.tar.gz\r\n"]
    )
    def test_what_sha256sum_writes_is_understood(self, tmp_path: Path, line: str) -> None:
        """Text and binary mode, with and without a last line end, also one of Windows."""
        (tmp_path / "x.tar.gz.sha256").write_text(line, newline="")
        assert read_sidecar(tmp_path / "x.tar.gz") == DIGEST

    def test_a_path_in_it_does_not_matter(self, tmp_path: Path) -> None:
        """A sidecar that was made from another directory names the archive with a path."""
        (tmp_path / "x.tar.gz.sha256").write_text(f"{DIGEST}  /backups/x.tar.gz\n")
        assert read_sidecar(tmp_path / "x.tar.gz") == DIGEST

    def test_none_is_no_damage(self, tmp_path: Path) -> None:
        """An archive can be without one."""
        assert read_sidecar(tmp_path / "x.tar.gz") is None

    def test_a_fifo_is_not_waited_for(self, tmp_path: Path) -> None:
        """It would hold up every list."""
        os.mkfifo(tmp_path / "x.tar.gz.sha256")
        with pytest.raises(NotIntactError, match="is damaged"):
            read_sidecar(tmp_path / "x.tar.gz")

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\0" * 80,
            b"x.tar.gz\n",
            DIGEST.encode(),
            f"{DIGEST[:-1]}  x.tar.gz\n".encode(),
            f"{DIGEST}0  x.tar.gz\n".encode(),
            f"{DIGEST}  x.tar.gz\n{DIGEST}  x.tar.gz\n".encode(),
            DIGEST.replace(DIGEST[0], "\xff").encode("latin-1") + b"  x.tar.gz\n",
        ],
    )
    def test_a_damaged_one_is_refused(self, tmp_path: Path, content: bytes) -> None:
        """Whatever is not one digest and the archive's name is no sidecar of it."""
        (tmp_path / "x.tar.gz.sha256").write_bytes(content)
        with pytest.raises(NotIntactError, match=r"the checksum file x\.tar\.gz\.sha256 is damaged"):
            read_sidecar(tmp_path / "x.tar.gz")

    def test_one_for_another_name_is_refused(self, tmp_path: Path) -> None:
        """It may be another archive's; if the archive was only renamed, the hint says what its name was."""
        (tmp_path / "x.tar.gz.sha256").write_text(f"{DIGEST}  y.tar.gz\n")
        with pytest.raises(NotIntactError, match=r"x\.tar\.gz\.sha256 is for another name: y\.tar\.gz") as refused:
            read_sidecar(tmp_path / "x.tar.gz")
        assert "give both files that name again: y.tar.gz and y.tar.gz.sha256" in refused.value.hint

    def test_one_that_cannot_be_read_is_no_damage(self, tmp_path: Path) -> None:
        """The system's reason is told, with the name of the sidecar."""
        (tmp_path / "x.tar.gz.sha256").mkdir()
        with pytest.raises(RepositoryError, match=r"^cannot read .*/x\.tar\.gz\.sha256: is a directory"):
            read_sidecar(tmp_path / "x.tar.gz")


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_the_digest_of_a_file(tmp_path: Path, size: int) -> None:
    """Of every byte, however many blocks they are."""
    content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    (tmp_path / "file").write_bytes(content)
    assert file_digest(tmp_path / "file") == sha256(content).hexdigest()
    with pytest.raises(RepositoryError, match=f"cannot read {tmp_path}: is a directory"):
        file_digest(tmp_path)
