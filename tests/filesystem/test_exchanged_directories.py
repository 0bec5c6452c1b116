"""A directory of the uploads is exchanged for a symlink that leads elsewhere, while everything that reads them runs."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from portal.ops.archive.reader import ArchiveReader
from portal.ops.backup import BackupConfig, BackupJob
from portal.ops.backup.walk import tree_bytes
from portal.ops.drill.compare_files import FileComparison
from portal.ops.monitoring.doctor.files import FileChecks
from tests.support.archives import verify

if TYPE_CHECKING:
    from collections.abc import Iterator

FILES = 200
ROUNDS = 4
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


@pytest.mark.parametrize("way", ["all", "scan", "named"])
def test_no_archive_has_what_lies_outside(ground: Ground, way: str) -> None:
    """Full backups, incrementals that scan and incrementals of named paths never hold a file from outside."""
    if way != "all":
        ground.back_up(incremental=True)
    with ground.attacked():
        for number in range(ROUNDS):
            for name in (f"f{number}", "large"):  # something for an incremental, in whichever directory it is
                with (ground.uploads / f"new-{number}-{name}").open("wb") as file:
                    file.write(b"harmless" * (LARGE // 8 if name == "large" else 1))
            changed = [f"tenant/d/f{one}" for one in range(FILES)] + ["tenant/d/large"] if way == "named" else None
            assert_harmless(ground.back_up(incremental=way != "all", changed=changed))


def test_no_content_from_outside_is_compared(ground: Ground) -> None:
    """What is read to be compared with the last backup is what lies below the uploads."""
    base = ground.back_up(incremental=True)
    before = os.stat(ground.secret / "f1").st_atime_ns
    for path in (ground.tenant / "d").iterdir():
        os.utime(path, ns=(0, path.stat().st_mtime_ns))  # another ctime: each has to be read
    with ground.attacked():
        ground.back_up(incremental=True)
    assert os.stat(ground.secret / "f1").st_atime_ns == before
    assert base.exists()


def test_the_doctor_and_the_estimate_stay_below_the_uploads(ground: Ground) -> None:
    """Neither the doctor's look at the uploads nor the sum of their sizes goes through the link."""
    huge = ground.secret / "huge"
    with huge.open("wb") as file:
        file.truncate(1 << 40)
    checks = FileChecks(uploads=ground.uploads, audit=None, environ={})
    (look,) = [check for check in checks.all() if check.name == "uploads"]
    with ground.attacked():
        for _ in range(10 * ROUNDS):
            assert tree_bytes(ground.uploads) < 1 << 30
            assert "can be read" in look.look().what


def test_a_drill_compares_what_was_restored(ground: Ground) -> None:
    """A comparison finds what differs below the restored tree, and reads nothing from outside of it."""
    archive = ground.back_up()
    for path in ground.secret.iterdir():
        path.unlink()
    (ground.secret / "stranger").write_bytes(SECRET)
    with closing(ArchiveReader(archive)) as reader, ground.attacked():
        for _ in range(ROUNDS):
            found = list(FileComparison(reader, "media", ground.uploads).damages())
            assert not [damage for damage in found if "stranger" in (damage.path or "")]
