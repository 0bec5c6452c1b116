"""A disk whose power can be cut: what was not synced is gone.

The disk is an ext4 image on a loop device. Writes that were never synced stay in the page cache of the mounted file
system and do not reach the image file; nor does its journal, which is committed only by a sync. A copy of the image
file is therefore the disk as the next start would find it. `auto_da_alloc` is off, since it would sync what a program
forgot to.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_OPTIONS: Final = "loop,noauto_da_alloc,data=writeback,commit=3600"


@dataclass(frozen=True, kw_only=True)
class Disk:
    """A mounted disk.

    Arguments:
        mount: where it is mounted.
        image: the file that holds it.
    """

    mount: Path
    image: Path

    def settle(self) -> None:
        """Put everything written so far on the disk."""
        subprocess.run(["sync", "--file-system", self.mount], check=True)

    @contextmanager
    def after_power_cut(self) -> Iterator[Path]:
        """The disk as it is after a power cut now, mounted elsewhere for as long as the context lasts."""
        image = self.image.with_suffix(".after")
        place = self.mount.with_name(self.mount.name + "-after")
        shutil.copyfile(self.image, image)
        place.mkdir(exist_ok=True)
        try:
            subprocess.run(["mount", "-o", "loop", image, place], check=True)
            yield place
        finally:
            subprocess.run(["umount", place], check=True)
            image.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """An empty disk whose power can be cut."""
    image, mount = tmp_path / "disk.img", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(192 << 20)
    mount.mkdir()
    made = os.geteuid() == 0 and shutil.which("mkfs.ext4")
    if not made or not (_done("mkfs.ext4", "-q", image) and _done("mount", "-o", _OPTIONS, image, mount)):
        pytest.skip("a disk of the test's own takes root, a loop device and e2fsprogs")
    try:
        yield Disk(mount=mount, image=image)
    finally:
        subprocess.run(["umount", mount], check=True)


def _done(*command: str | Path) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
