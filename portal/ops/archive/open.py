"""Opens an archive with or without an index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from isal import isal_zlib

from portal.ops.archive.frame import DeflateError
from portal.ops.archive.index import MANIFEST
from portal.ops.archive.reader import ArchiveReader, is_indexed
from portal.ops.archive.source import unreadable
from portal.ops.manifest import Manifest

if TYPE_CHECKING:
    from pathlib import Path

    from portal.ops.archive.protocol import Archive

_BLOCK: Final = 512
_READ_BYTES: Final = 32 << 10
_MOST_BYTES: Final = 4 << 20
_GZIP: Final = 16 + 15


def open_archive(path: Path) -> Archive:
    """Open an archive that this engine wrote, or one that tar and gzip made.

    Raises:
        NotIntactError: it is no archive, or is damaged where opening has to read it.
        RepositoryError: the file cannot be read.
    """
    check_readable(path)
    if is_indexed(path):
        return ArchiveReader(path)

    from portal.ops.archive.plain import PlainArchive

    return PlainArchive(path)


def check_readable(path: Path) -> None:
    """Make sure that the file of an archive can be opened and read.

    Raises:
        RepositoryError: it cannot.
    """
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise unreadable(path, error) from error


def peek_manifest(path: Path) -> Manifest | None:
    """The manifest if it is the first member and has a plain header, otherwise None.

    Raises:
        NotIntactError: the manifest is invalid.
        OSError: the file cannot be read.
    """
    inflater = isal_zlib.decompressobj(_GZIP)
    start = b""
    with path.open("rb", buffering=0) as file:
        while len(start) < _MOST_BYTES and (data := file.read(_READ_BYTES)):
            try:
                start += inflater.decompress(data, _MOST_BYTES)
                if (size := _manifest_size(start)) is None:
                    return None
            except (DeflateError, ValueError):
                return None
            if len(start) >= _BLOCK + size > _BLOCK:
                return Manifest.decode(start[_BLOCK : _BLOCK + size])
    return None


def _manifest_size(start: bytes) -> int | None:
    """The size in the first header: 0 if the header is incomplete, None if it belongs to another member."""
    if len(start) < _BLOCK:
        return 0
    name = start[:100].rstrip(b"\0")
    if not name.endswith(b"/" + MANIFEST.encode()):
        return None
    return int(start[124:136].rstrip(b"\0 "), 8) or None
