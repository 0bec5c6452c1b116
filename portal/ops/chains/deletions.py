"""The list of deleted paths in an incremental: `deleted.jsonl`, one path a line.

    {"path":"media/tenant-a/old.json"}

The path is relative to the archive's top directory, as in the index; everything below it is deleted too. To apply an
incremental to its parent's tree, remove the listed paths, then unpack it.
"""

from __future__ import annotations

import io
import json
from json.encoder import encode_basestring_ascii as quote
from typing import TYPE_CHECKING, Final

from portal.ops.archive import index
from portal.ops.archive.damage import checked, is_below
from portal.ops.archive.index import Member, MemberType
from portal.ops.errors import NotIntactError
from portal.ops.hints import another_archive
from portal.ops.model import DELETED, Component

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from portal.ops.archive.protocol import IndexedArchive

_PREFIX: Final = Component.MEDIA.member


def encode_deletions(paths: Iterable[str]) -> io.BytesIO:
    """The content of the member."""
    return io.BytesIO("".join(f'{{"path":{quote(path)}}}\n' for path in paths).encode("ascii"))


def deletions(reader: IndexedArchive) -> Iterator[str]:
    """The deletions in an archive; none if it has no parent.

    Raises:
        NotIntactError: the list is damaged, or has paths outside the media.
    """
    member = reader.find(DELETED)
    if member is None:
        return
    rest = b""
    for piece in reader.extract(member):
        *lines, rest = (rest + bytes(piece)).split(b"\n")
        yield from map(_decoded, lines)
        if len(rest) > index.LINE_BYTES:
            break
    if rest:
        raise NotIntactError(f"{DELETED} does not end as it should", hint=another_archive())


def _decoded(line: bytes) -> str:
    try:
        path = json.loads(line)["path"]
        if not isinstance(path, str) or not is_below(path, _PREFIX):
            raise ValueError("it is no path in the uploads")
        index.encode_name(path)
        return checked(Member(path, MemberType.FILE)).path
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise NotIntactError(f"{DELETED} has a line that is invalid: {line[:200]!r}", hint=another_archive()) from error
