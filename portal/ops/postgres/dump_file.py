"""A dump on its way to pg_restore: read from its archive as often as it is needed, or put in a file first.

Of a dump that is nowhere on the disk, its start is put in a file: as far as its table of contents, which is all that
pg_restore needs for everything but the rows.

A file goes through the page cache, where pg_restore finds it again, and is never synced: it is worth nothing after a
crash.
"""

from __future__ import annotations

import os
import shutil
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from queue import Queue
from typing import TYPE_CHECKING, Final, Self

from portal.ops.errors import NotIntactError, RestoreError
from portal.ops.hints import another_archive
from portal.ops.postgres.dump_format import HEAD_BYTES, dump_major
from portal.ops.postgres.toc import CutShortError, read_contents
from portal.ops.units import system_reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from portal.ops.postgres.toc import Contents
    from portal.ops.runtime.progress import Advance

_AHEAD: Final = 4
_FIRST_LOOK: Final = 1 << 18
"""So many bytes of a dump are enough for the table of contents of most; each further look is at twice as many."""

_LARGEST_FILE: Final = 32 << 30
_RESERVE: Final = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Dump:
    """A dump that can be read from its start as often as it is asked for.

    Arguments:
        open: gives its content, piece by piece; may be open more than once at a time.
        path: where it is put by `save`.
        size: bytes of it; 0 where that is not known.
        weights: how large each table's part of it is against the others', by the manifest's name of the table.
        advance: called with every number of bytes that has been read of it, once.
    """

    open: Callable[[], AbstractContextManager[Iterator[memoryview]]]
    path: Path
    size: int = 0
    weights: Mapping[str, int] = field(default_factory=dict)
    advance: Advance = lambda _: None

    def major(self) -> int | None:
        """The version of the pg_dump that wrote it; nothing where it is no dump in the custom format."""
        with self.open() as content:
            return dump_major(bytes(next(content, memoryview(b""))[:HEAD_BYTES]))

    def head(self) -> tuple[bytes, Contents]:
        """The start of it, as far as its table of contents, and that.

        Raises:
            NotIntactError: it is no dump, or its table of contents is invalid.
        """
        found, enough = bytearray(), _FIRST_LOOK
        with self.open() as content:
            for piece in content:
                found += piece
                if len(found) >= enough:
                    enough = 2 * len(found)
                    with suppress(CutShortError):
                        return _with_contents(found)
        try:
            return _with_contents(found)
        except CutShortError as error:
            raise not_a_dump() from error

    def fits(self) -> bool:
        """True if there is room for it in its file, and for as much again beside it."""
        try:
            free = shutil.disk_usage(self.path.parent).free
        except OSError:
            return False
        return 0 < self.size <= _LARGEST_FILE and free >= 2 * self.size + _RESERVE

    def save(self) -> None:
        """Put it in its file. Raises what reading raises, and OSError where it cannot be written."""
        with self.open() as content:
            write_dump(self.path, content, self.advance)


def not_a_dump() -> NotIntactError:
    """The error for a dump that is not one."""
    return NotIntactError(
        "the database's part of the archive is not a dump in PostgreSQL's custom format", hint=another_archive()
    )


def read_file_contents(path: Path) -> Contents:
    """The table of contents of a dump that is in a file.

    Raises:
        NotIntactError: it is no dump, or its table of contents is invalid.
        RestoreError: the file cannot be read.
    """

    @contextmanager
    def content() -> Iterator[Iterator[memoryview]]:
        with path.open("rb") as file:
            yield (memoryview(piece) for piece in iter(lambda: file.read(_FIRST_LOOK), b""))

    try:
        return Dump(open=content, path=path).head()[1]
    except OSError as error:
        raise RestoreError(
            f"cannot read the dump {path}: {system_reason(error)}", hint="start the restore again from the archive"
        ) from error


def _with_contents(data: bytearray) -> tuple[bytes, Contents]:
    start = bytes(data)
    try:
        return start, read_contents(start)
    except CutShortError:
        raise
    except ValueError as error:
        raise not_a_dump() from error


def read_dump_major(path: Path) -> int | None:
    """The value of `Dump.major` for a dump in a file.

    Raises:
        RestoreError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return dump_major(file.read(HEAD_BYTES))
    except OSError as error:
        raise RestoreError(
            f"cannot read the dump {path}: {system_reason(error)}", hint="start the restore again from the archive"
        ) from error


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
