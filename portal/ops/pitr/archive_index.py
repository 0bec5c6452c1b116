"""The index of the WAL files in an archive: one JSON object a line, appended when a file is durable."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from portal.ops.repository.durable import append_line, sync_directory, write_durably
from portal.ops.repository.locks import locked_file

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractContextManager
    from pathlib import Path

NAME: Final = "index.jsonl"
LOCK: Final = ".index.lock"

_LOCK_SECONDS: Final = 60.0


@dataclass(frozen=True, kw_only=True)
class WalFile:
    """One file of the WAL archive.

    Arguments:
        name: PostgreSQL's name: a segment, a segment with ``.partial``, or a history file.
        size: bytes on the disk, compressed.
        sha256: the SHA-256 of these bytes, in hexadecimal.
        covered: every transaction committed up to this moment, by the server's clock, is in this file or an earlier
            one.
        until: no transaction in it was committed later than this, by the server's clock.
    """

    name: str
    size: int
    sha256: str
    covered: datetime | None = None
    until: datetime | None = None

    def encode(self) -> bytes:
        """The file as a line of JSON."""
        found = {
            name: value.isoformat() if isinstance(value, datetime) else value for name, value in asdict(self).items()
        }
        return json.dumps(found, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> WalFile | None:
        """Decode a line; None if it is truncated or invalid."""
        try:
            found = json.loads(line)
            return cls(
                name=str(found["name"]),
                size=int(found["size"]),
                sha256=str(found["sha256"]),
                covered=_moment(found.get("covered")),
                until=_moment(found.get("until")),
            )
        except (KeyError, TypeError, ValueError):
            return None


class Stamp(NamedTuple):
    """What changes with every append and every rewrite of an index."""

    inode: int
    size: int


def stamp(directory: Path) -> Stamp | None:
    """The stamp of the index in a directory; None if there is no index."""
    try:
        found = (directory / NAME).stat()
    except FileNotFoundError:
        return None
    return Stamp(found.st_ino, found.st_size)


def load(directory: Path) -> dict[str, WalFile]:
    """All files by name; the last line for a name counts."""
    try:
        lines = (directory / NAME).read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    return {found.name: found for line in lines if (found := WalFile.decode(line))}


def index_lock(directory: Path) -> AbstractContextManager[None]:
    """Lock the index: the WAL service appends to it while a prune may replace it.

    Raises:
        BusyError: another process held the lock for too long.
        RepositoryError: the lock file cannot be opened.
    """
    return locked_file(directory / LOCK, fcntl.LOCK_EX, _LOCK_SECONDS, what=f"the index of {directory}")


def append(directory: Path, file: WalFile) -> None:
    """Append a line durably, after ending a truncated one. The caller must hold the lock.

    Raises:
        OSError: writing failed; the index is unchanged.
    """
    descriptor = os.open(directory / NAME, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        size = append_line(descriptor, file.encode())
    finally:
        os.close(descriptor)
    if size == 0:
        sync_directory(directory)


def rewrite(directory: Path, files: Iterable[WalFile]) -> None:
    """Replace all lines at once. The caller must hold the lock."""
    write_durably(directory / NAME, b"".join(file.encode() for file in files))


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text).astimezone(UTC) if text else None
