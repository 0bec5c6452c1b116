"""An attacker who exchanges a directory of the uploads for a symlink that leads elsewhere, as fast as it goes."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from portal.ops.archive.reader import ArchiveReader
from portal.ops.backup import BackupConfig, BackupJob
from tests.support.archives import verify

if TYPE_CHECKING:
    from collections.abc import Iterator

FILES = 200
SECRET = b"SECRET"
LARGE = 1 << 20

_EXCHANGE = 2
_FLIP = f"""
import ctypes, os, sys
os.chdir(sys.argv[1])
libc = ctypes.CDLL(None)
while True:
    libc.renameat2(-100, b"d", -100, b"link", {_EXCHANGE})
    for _ in range(300):
        pass
"""


def can_exchange(place: Path) -> bool:
    """Whether the kernel and the file system exchange two names at once."""
    for name in ("one", "two"):
        (place / name).touch()
    answer: int = ctypes.CDLL(None).renameat2(-100, bytes(place / "one"), -100, bytes(place / "two"), _EXCHANGE)
    return answer == 0


class Ground:
    """Uploads with a directory of harmless files, and a private directory elsewhere with files of the same names."""

    def __init__(self, place: Path) -> None:
        self.uploads, self.secret, self.repository = place / "uploads", place / "secret", place / "repository"
        self.tenant = self.uploads / "tenant"
        self.repository.mkdir(mode=0o700)
        for directory, content in ((self.tenant / "d", b"harmless"), (self.secret, SECRET)):
            directory.mkdir(parents=True)
            for number in range(FILES):
                (directory / f"f{number}").write_bytes(content)
            (directory / "large").write_bytes(content * (LARGE // len(content) + 1))
        (self.tenant / "link").symlink_to(self.secret)
        # While a link is in the directory's place, nearly everything is gone; that is not what is tested here.
        config = BackupConfig(local_path=self.repository, media_path=self.uploads, confirm_loss=True)
        self.job = BackupJob(config)

    @contextmanager
    def attacked(self) -> Iterator[None]:
        """An attacker exchanges the directory and the link as long as the context lasts."""
        attacker = subprocess.Popen([sys.executable, "-c", _FLIP, self.tenant])
        try:
            before = (self.tenant / "d").lstat().st_ino
            deadline = time.monotonic() + 20
            while (self.tenant / "d").lstat().st_ino == before and time.monotonic() < deadline:
                time.sleep(0.001)
            yield
        finally:
            attacker.kill()
            attacker.wait()

    def back_up(self, *, incremental: bool = False, changed: list[str] | None = None) -> Path:
        """One backup; the archive."""
        result = self.job.backup_media(incremental=incremental, changed=changed)
        assert result.success, result.error
        return Path(result.destination_path)


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    """Uploads beside a private directory."""
    if not can_exchange(tmp_path):
        pytest.skip("this file system does not exchange names")
    return Ground(tmp_path)


def assert_harmless(archive: Path) -> None:
    """Nothing of the private directory is in an archive that is complete by itself."""
    assert verify(archive).intact
    with closing(ArchiveReader(archive)) as reader:
        for _, content in reader.contents(1):
            assert SECRET not in b"".join(content)
