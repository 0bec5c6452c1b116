"""The index of the WAL files of an archive: one JSON object a line, appended as each becomes durable."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from portal.ops.repository.durable import sync_directory, write_durably
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
    """A file of the archive.

    Arguments:
        name: as PostgreSQL calls it: a segment, a segment with ``.partial``, or a history file.
        size: bytes on the disk, compressed.
        sha256: of these bytes, in hexadecimal.
        covered: every transaction that committed up to this moment, by the server's clock, lies in this file or before.
        until: no transaction in it committed later than this, by the server's clock.
    """

    name: str
    size: int
    sha256: str
    covered: datetime | None = None
    until: datetime | None = None

    def encode(self) -> bytes:
        """The line."""
        found = {
            name: value.isoformat() if isinstance(value, datetime) else value for name, value in asdict(self).items()
        }
        return json.dumps(found, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> WalFile | None:
        """A file from its line; nothing where the line is truncated or invalid."""
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


def load(directory: Path) -> dict[str, WalFile]:
    """Every file by its name; where there are two lines for one, the later one counts."""
    try:
        lines = (directory / NAME).read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    return {found.name: found for line in lines if (found := WalFile.decode(line))}


def index_lock(directory: Path) -> AbstractContextManager[None]:
    """Keep others from changing the index: the WAL service appends to it while a prune replaces it.

    Raises:
        BusyError: somebody else did not end in time.
        RepositoryError: the lock file cannot be opened.
    """
    return locked_file(directory / LOCK, fcntl.LOCK_EX, _LOCK_SECONDS, what=f"the index of {directory}")


def append(directory: Path, file: WalFile) -> None:
    """Add a line durably, after ending a truncated one. The caller holds the lock."""
    descriptor = os.open(directory / NAME, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, (b"\n" if torn else b"") + file.encode())
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
    if size == 0:
        sync_directory(directory)


def rewrite(directory: Path, files: Iterable[WalFile]) -> None:
    """Replace all lines at once. Whoever calls this holds the lock."""
    write_durably(directory / NAME, b"".join(file.encode() for file in files))


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text).astimezone(UTC) if text else None
