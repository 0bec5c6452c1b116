"""Temporary files without a name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from portal.ops.runtime.unnamed_file import unnamed_file

if TYPE_CHECKING:
    from pathlib import Path


def test_programs_read_it_at_once() -> None:
    """Two programs that were started at once each read the whole content."""
    with unnamed_file(b"one\ntwo\n") as path:
        readers = [subprocess.Popen(["cat", path], stdout=subprocess.PIPE) for _ in range(2)]
        assert [reader.communicate()[0] for reader in readers] == [b"one\ntwo\n"] * 2


def test_a_kill_leaves_nothing(tmp_path: Path) -> None:
    """The directory of temporary files is empty while the file is in use, and after the process was killed."""
    script = (
        "from portal.ops.runtime.unnamed_file import unnamed_file\n"
        "with unnamed_file(b'x') as path:\n"
        "    print(path, flush=True)\n"
        "    input()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    path = process.stdout.readline().strip()
    assert os.path.exists(path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not os.path.exists(path)
    assert list(tmp_path.iterdir()) == []
