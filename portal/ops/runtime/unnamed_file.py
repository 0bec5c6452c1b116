"""Temporary files for other programs that have no name, so that a killed process leaves none behind."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def unnamed_file(content: bytes) -> Iterator[Path]:
    """A path by which programs that this process starts can read the content, as often as they like.

    The kernel removes the file when this process ends, however it ends. Several programs can read it at once: each
    one that opens the path has its own position.

    Raises:
        OSError: there is no room for it.
    """
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        yield Path(f"/proc/{os.getpid()}/fd/{file.fileno()}")
