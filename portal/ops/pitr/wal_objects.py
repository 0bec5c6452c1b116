"""The objects of WAL off-site: a gzip file with a comment in its header, inside an age file."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from isal import isal_zlib

from portal.ops.errors import NotIntactError
from portal.ops.pitr.lsn import PARTIAL
from portal.ops.pitr.wal_archive import DIRECTORY
from portal.ops.storage.signature import is_signed

if TYPE_CHECKING:
    from portal.ops.storage.signature import SigningKey

NAME: Final = re.compile(r"(?P<file>[0-9A-F.a-z]+?)(?:\+(?P<start>\d+)-(?P<end>\d+))?\.[0-9a-f]{16}\.gz(?:\.age)?")
CLUSTER: Final = "cluster"

_SEGMENT_NAME: Final = re.compile(r"[0-9A-F]{24}")
_TIMELINE_DIGITS: Final = 8
_HEADER: Final = b"\x1f\x8b\x08\x10\x00\x00\x00\x00\x00\xff"
_HEADER_BYTES: Final = 10
_PLAIN: Final = _HEADER[:3] + b"\0"
_COMMENT_FLAG: Final = 0x10
_GZIP: Final = 31
_PURPOSE: Final = b"kekkai-backup WAL object"
"""A signature of ours over something else is none over WAL."""

_LEVEL: Final = 1
_InflateError = cast("type[Exception]", isal_zlib.error)


class Told(NamedTuple):
    """The moments recorded in an object.

    Arguments:
        covered: every transaction committed up to this moment is in it or in earlier WAL.
        until: no transaction in it was committed later than this.
    """

    covered: datetime | None = None
    until: datetime | None = None


class WalObject(NamedTuple):
    """A WAL object, parsed from its name.

    Arguments:
        cluster: the system identifier.
        file: the segment, the history file, or ``cluster``.
        is_part: whether it holds a part of a segment.
    """

    cluster: str
    file: str
    is_part: bool

    @property
    def is_segment(self) -> bool:
        """True if it holds a segment, or a part of one."""
        return bool(_SEGMENT_NAME.fullmatch(self.file.removesuffix(PARTIAL)))


def parse_object(name: str) -> WalObject | None:
    """Parse an object's name; None if it is not a WAL object."""
    directory, _, rest = name.partition("/")
    cluster, _, last = rest.partition("/")
    found = NAME.fullmatch(last)
    if directory != DIRECTORY or not found:
        return None
    return WalObject(cluster, found["file"], found["start"] is not None)


def place_in_wal(segment: str) -> str:
    """The position of a segment in the WAL without its timeline, as text that sorts like positions."""
    return segment.removesuffix(PARTIAL)[_TIMELINE_DIGITS:]


def deflate(content: bytes) -> bytes:
    """Compress data to a gzip file."""
    squeezed: bytes = isal_zlib.compress(content, _LEVEL, _GZIP)
    return squeezed


def inflate(data: bytes, most: int) -> bytes:
    """Decompress a gzip file.

    Raises:
        NotIntactError: the data is damaged, or decompresses to more than `most` bytes.
    """
    stream = isal_zlib.decompressobj(_GZIP)
    try:
        inflated: bytes = stream.decompress(data, most + 1)
    except _InflateError as error:
        raise NotIntactError("a WAL object is damaged", hint="Take another copy.") from error
    if len(inflated) > most or not stream.eof:
        raise NotIntactError("a WAL object is damaged: it does not end where it should", hint="Take another copy.")
    return inflated


def check_header(content: bytes, name: str = "a WAL file") -> None:
    """Check that a gzip file has a header like those of `deflate`, which have no optional fields.

    Raises:
        NotIntactError: it has not.
    """
    if len(content) < _HEADER_BYTES or not content.startswith(_PLAIN):
        raise NotIntactError(f"{name} has a gzip header that is not ours", hint="Look at the repository's disk.")


def with_comment(content: bytes, told: dict[str, Any]) -> bytes:
    """Add a comment to the header of one of our gzip files.

    Raises:
        NotIntactError: the header is not ours.
    """
    check_header(content)
    comment = json.dumps(told, separators=(",", ":")).encode("ascii")
    return _HEADER + comment + b"\0" + content[_HEADER_BYTES:]


def with_signature(name: str, content: bytes, told: dict[str, Any], key: SigningKey) -> dict[str, Any]:
    """What an object records, with a signature over that, its name and its content.

    Arguments:
        name: the object's, up to its digest: ``<cluster>/<file>`` and which part of it.
        content: a gzip file without a comment.
    """
    signed = {**told, "signer": key.signer}
    return {**signed, "signature": key.sign(_signed_bytes(name, content[_HEADER_BYTES:], signed))}


def signer_of(name: str, data: bytes) -> str:
    """The signer of an object; empty if it is not signed.

    Arguments:
        name: as for `with_signature`.
        data: the object, a gzip file with a comment.

    Raises:
        NotIntactError: the signature is not of this object, or the comment is invalid.
    """
    content, found = _parted(data)
    signer, signature = found.pop("signer", ""), found.pop("signature", "")
    if not signer and not signature:
        return ""
    signed = _signed_bytes(name, content[_HEADER_BYTES:], {**found, "signer": signer})
    if not (isinstance(signer, str) and isinstance(signature, str) and is_signed(signed, signer, signature)):
        raise NotIntactError("a WAL object has a signature that is not its own", hint="Take another copy.")
    return signer


def _signed_bytes(name: str, body: bytes, told: dict[str, Any]) -> bytes:
    return b"\n".join((_PURPOSE, name.encode(), json.dumps(told, sort_keys=True).encode(), sha256(body).digest()))


def split(data: bytes) -> tuple[bytes, Told]:
    """Split a gzip file into the file without its comment, and the decoded comment.

    Raises:
        NotIntactError: the comment is invalid.
    """
    content, found = _parted(data)
    try:
        return content, Told(_moment(found.get("covered")), _moment(found.get("until")))
    except (ArithmeticError, AttributeError, TypeError, ValueError) as error:
        raise _bad_comment() from error


def _parted(data: bytes) -> tuple[bytes, dict[str, Any]]:
    """A gzip file without its comment, and the comment.

    Raises:
        NotIntactError: the comment is invalid.
    """
    if len(data) < _HEADER_BYTES or not data[3] & _COMMENT_FLAG:
        return data, {}
    comment, _, rest = data[_HEADER_BYTES:].partition(b"\0")
    try:
        found = json.loads(comment)
    except (RecursionError, ValueError) as error:
        raise _bad_comment() from error
    if not isinstance(found, dict):
        raise _bad_comment()
    return _PLAIN + _HEADER[4:] + rest, found


def _bad_comment() -> NotIntactError:
    return NotIntactError("a WAL object has a comment that is invalid", hint="Take another copy.")


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text).astimezone(UTC) if text else None
