"""Small files that are there whole or not at all."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from portal.ops.repository.durable import sync_directory, write_durably
from tests.support.repositories import python

if TYPE_CHECKING:
    from pathlib import Path


OVERWRITER = """
import sys
from pathlib import Path
from portal.ops.repository.durable import write_durably

while True:
    for letter in b"ab":
        write_durably(Path(sys.argv[1]), bytes([letter]) * 500_000)
"""


class TestWriteDurably:
    """A small file, whole or not at all."""

    def test_a_kill_leaves_the_old_or_the_new(self, tmp_path: Path) -> None:
        """Killed at any instant, a writer leaves one of the two contents, whole."""
        path = tmp_path / "file"
        for pause in (0.0, 0.003, 0.007, 0.011, 0.017):
            path.unlink(missing_ok=True)
            with python(OVERWRITER, path) as process:
                while not path.exists():
                    time.sleep(0.001)
                time.sleep(pause)
                process.kill()
            assert path.read_bytes() in (b"a" * 500_000, b"b" * 500_000)

    def test_a_failure_leaves_the_old(self, tmp_path: Path) -> None:
        """Where the new content does not fit, the old one stays, and nothing else."""
        path = tmp_path / "file"
        write_durably(path, b"old")
        program = (
            "import resource, sys\nfrom pathlib import Path\nfrom portal.ops.repository.durable import write_durably\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\nwrite_durably(Path(sys.argv[1]), b'new' * 1000)"
        )
        with python(program, path) as process:
            assert process.wait(10) == 1
        assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("file", b"old")]

    def test_the_directory_can_be_synced(self, tmp_path: Path) -> None:
        """Names are put on the disk through the directory, and no descriptor stays open."""
        before = len(os.listdir("/proc/self/fd"))
        sync_directory(tmp_path)
        assert len(os.listdir("/proc/self/fd")) == before
