"""The dump on its way to pg_restore: a file, because pg_restore reads it over several connections at once.

It goes through the page cache, where pg_restore finds it again, and is never synced: it is worth nothing after a crash.
"""

from __future__ import annotations

import os
import threading
from queue import Queue
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from portal.ops.job import Advance

_AHEAD: Final = 4


def write_dump(path: Path, content: Iterable[memoryview], advance: Advance = lambda _: None) -> None:
    """Write a dump; a thread writes each piece while the next one is being made.

    Arguments:
        advance: called with every number of bytes that was handed to the thread.

    Raises:
        OSError: it could not be written.
    """
    with _Writer(path) as writer:
        for piece in content:
            writer.write(piece)
            advance(len(piece))


class _Writer:
    """A thread that writes one file; leaving the context waits for it."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._pieces: Queue[memoryview | None] = Queue(_AHEAD)
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._work, name="dump-file", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pieces.put(None)
        self._thread.join()
        os.close(self._descriptor)
        if self._failure and kind is None:
            raise self._failure

    def write(self, piece: memoryview) -> None:
        if self._failure:
            raise self._failure
        self._pieces.put(piece)

    def _work(self) -> None:
        while (piece := self._pieces.get()) is not None:
            try:
                while piece and not self._failure:
                    piece = piece[os.write(self._descriptor, piece) :]
            except OSError as error:
                self._failure = error
