"""A directory of the uploads is exchanged for a symlink that leads elsewhere, while everything that reads them runs."""

from __future__ import annotations

import os
from contextlib import closing

import pytest

from portal.ops.archive.reader import ArchiveReader
from portal.ops.backup.walk import tree_bytes
from portal.ops.drill.compare_files import FileComparison
from portal.ops.monitoring.doctor.files import FileChecks
from tests.support.exchanging import FILES, LARGE, SECRET, Ground, assert_harmless, ground

__all__ = ["ground"]

ROUNDS = 4


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
