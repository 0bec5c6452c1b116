"""Provides a dump to pg_restore, read from its archive repeatedly, or saved to a file first.

If the dump is not in a file, its start is, up to the end of the table of contents: pg_restore needs no more for
everything but the rows.

A file stays in the page cache, where pg_restore reads it, and is never synced: after a crash it is useless.
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
from portal.ops.postgres.toc import ContentsReader, CutShortError
from portal.ops.units import system_reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from portal.ops.postgres.toc import Contents
    from portal.ops.runtime.progress import Advance

_AHEAD: Final = 4
_PIECE_BYTES: Final = 1 << 18

_LARGEST_FILE: Final = 32 << 30
_RESERVE: Final = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Dump:
    """A dump that can be read from the start any number of times.

    Arguments:
        open: returns its content in pieces; may be open more than once at a time.
        path: the file for `save`.
        size: its bytes; 0 if unknown.
        weights: the relative size of each table's part, by the table's name in the manifest.
        advance: called with the number of bytes after each read; bytes that are read again do not count.
        known_head: the result of `head`, if it is known already.
    """

    open: Callable[[], AbstractContextManager[Iterator[memoryview]]]
    path: Path
    size: int = 0
    weights: Mapping[str, int] = field(default_factory=dict)
    advance: Advance = lambda _: None
    known_head: tuple[bytes, Contents] | None = None

    def major(self) -> int | None:
        """The major version of the pg_dump that wrote it, or None if it is no dump in the custom format."""
        if self.known_head is not None:
            return self.known_head[1].major
        with self.open() as content:
            return dump_major(bytes(next(content, memoryview(b""))[:HEAD_BYTES]))

    def head(self) -> tuple[bytes, Contents]:
        """The start of the dump up to the end of its table of contents, and the parsed table.

        Raises:
            NotIntactError: it is no dump, or its table of contents is invalid.
        """
        if self.known_head is not None:
            return self.known_head
        found = bytearray()
        reader = ContentsReader(found)
        with self.open() as content:
            for piece in content:
                found += piece
                with suppress(CutShortError), _invalid_is_no_dump():
                    return bytes(found), reader.read()
        raise not_a_dump()

    def fits(self) -> bool:
        """True if its file system has room for the dump twice."""
        try:
            free = shutil.disk_usage(self.path.parent).free
        except OSError:
            return False
        return 0 < self.size <= _LARGEST_FILE and free >= 2 * self.size + _RESERVE

    def save(self) -> None:
        """Write the dump to its file. Raises the errors of reading, and OSError if writing fails."""
        with self.open() as content:
            write_dump(self.path, content, self.advance)


def not_a_dump() -> NotIntactError:
    """The error for a dump that is not one."""
    return NotIntactError(
        "the database's part of the archive is not a dump in PostgreSQL's custom format", hint=another_archive()
    )


def read_file_contents(path: Path) -> Contents:
    """Read the table of contents of a dump in a file.

    Raises:
        NotIntactError: it is no dump, or its table of contents is invalid.
        RestoreError: the file cannot be read.
    """

    @contextmanager
    def content() -> Iterator[Iterator[memoryview]]:
        with path.open("rb") as file:
            yield (memoryview(piece) for piece in iter(lambda: file.read(_PIECE_BYTES), b""))

    try:
        return Dump(open=content, path=path).head()[1]
    except OSError as error:
        raise RestoreError(
            f"cannot read the dump {path}: {system_reason(error)}", hint="start the restore again from the archive"
        ) from error


@contextmanager
def _invalid_is_no_dump() -> Iterator[None]:
    try:
        yield
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
    """Write a dump; a thread writes each piece while the next one is being read.

    Arguments:
        advance: called with the number of bytes after each piece is passed to the thread.

    Raises:
        OSError: writing failed.
    """
    with _Writer(path) as writer:
        for piece in content:
            writer.write(piece)
            advance(len(piece))


class _Writer:
    """A thread that writes one file; leaving the context waits for it."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
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
