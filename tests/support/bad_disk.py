"""A file system on a disk whose end cannot be read: the names in it are there, and the content of one file is not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BLOCK_BYTES: Final = 1024
_DISK_BYTES: Final = 16 << 20
_PROGRAMS: Final = ("mkfs.ext4", "debugfs", "losetup", "mount")


@contextmanager
def bad_disk(place: Path, name: str, content: bytes, *, good_blocks: int) -> Iterator[Path]:
    """Mount a file system that holds one file, whose first blocks can be read; the rest gives an I/O error.

    Arguments:
        place: an empty directory, or one that does not exist, to mount it on.
        name: of the file.
        good_blocks: how many blocks of it can be read, of 1,024 bytes each.
    """
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [program for program in _PROGRAMS if shutil.which(program, path=path) is None]
    if os.geteuid() != 0 or missing:
        pytest.skip(f"a file system is mounted by root, with {', '.join(_PROGRAMS)}")
    environment = os.environ | {"PATH": path}

    def run(*command: str | Path) -> str:
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    image, model = place.with_name(f"{place.name}.image"), place.with_name(f"{place.name}.model")
    model.mkdir()
    (model / name).write_bytes(content)
    image.touch()
    os.truncate(image, _DISK_BYTES)
    run("mkfs.ext4", "-q", "-F", "-b", str(BLOCK_BYTES), "-O", "^has_journal,inline_data", "-d", model, image)
    blocks = [int(number) for number in re.findall(r"\d+", run("debugfs", "-R", f"blocks /{name}", image))]
    assert blocks == sorted(blocks), "the content is on the disk in order, so the end of the disk is that of the file"
    place.mkdir(exist_ok=True)
    with ExitStack() as opened:
        try:
            device = run("losetup", "--find", "--show", image).strip()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no loop device: {error.stderr.strip()}")
        opened.callback(run, "losetup", "--detach", device)
        run("mount", "-t", "ext4", "-o", "ro", device, place)
        opened.callback(run, "umount", place)
        os.truncate(image, blocks[good_blocks] * BLOCK_BYTES)
        yield place / name
