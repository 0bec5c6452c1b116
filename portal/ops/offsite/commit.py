"""The commit of a copy, which makes it valid and has all facts needed to get the archive back, but no secret."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from portal.ops.errors import NotIntactError
from portal.ops.manifest import WRITER
from portal.ops.model import BackupId
from portal.ops.offsite.layout import Stem, parse_stem
from portal.ops.storage.signature import is_signed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from portal.ops.storage.signature import SigningKey

VERSION: Final = 1
MOST_BYTES: Final = 16 << 20
"""The largest commit, in bytes: the commit of a 10 TB archive has 15 MB."""

_SHA256: Final = re.compile("[0-9a-f]{64}")
_SEGMENT_NAME: Final = re.compile("[0-9A-F]{24}")
_MOST_SEGMENT: Final = 1 << 30


class Segment(NamedTuple):
    """One object of a copy.

    Arguments:
        size: stored bytes.
        sha256: the SHA-256 of these bytes.
    """

    size: int
    sha256: str


class WalStart(NamedTuple):
    """Where a recovery from a base backup starts in the WAL.

    Arguments:
        cluster: the system identifier.
        first: the name of the first segment.
    """

    cluster: str
    first: str


@dataclass(frozen=True, kw_only=True)
class Commit:
    """The commit of one copy.

    Arguments:
        stem: the common start of the segments' names.
        copied: when the copy was completed.
        archive_size: the size of the archive; `archive_sha256` is its digest.
        segment_bytes: the bytes of the archive in each segment but the last.
        recipients: the age public keys it is encrypted for; empty if it is not encrypted.
        parent: the parent of an incremental; `parent_sha256` is the digest of that archive.
        base: the first archive of its chain.
        components: the components of the archive.
        wal: for a base backup, the cluster and the first WAL segment that it needs.
        signer: the public key whose signature was verified; None without a signature.
    """

    stem: Stem
    type: str
    moment: datetime
    copied: datetime
    archive_size: int
    archive_sha256: str
    segment_bytes: int
    segments: tuple[Segment, ...]
    recipients: tuple[str, ...]
    parent: str | None = None
    parent_sha256: str | None = None
    base: str | None = None
    components: tuple[str, ...] = ()
    writer: str = WRITER
    wal: WalStart | None = None
    signer: str | None = None

    @property
    def backup_id(self) -> str:
        """The archive's id."""
        return self.stem.backup_id

    @property
    def is_encrypted(self) -> bool:
        """True if an identity is needed to read it."""
        return bool(self.recipients)

    @property
    def stored_bytes(self) -> int:
        """The size of all segments."""
        return sum(segment.size for segment in self.segments)

    def segment_name(self, number: int) -> str:
        """The name of a segment."""
        return self.stem.segment(number, encrypted=self.is_encrypted)

    def plain_size(self, number: int) -> int:
        """The number of the archive's bytes in a segment."""
        return min(self.segment_bytes, self.archive_size - number * self.segment_bytes)

    def encode(self, key: SigningKey | None = None) -> bytes:
        """The commit object as bytes, signed if a key is given."""
        document: dict[str, Any] = {
            "version": VERSION,
            "backup_id": self.backup_id,
            "directory": str(self.stem),
            "type": self.type,
            "moment": self.moment.isoformat(),
            "copied": self.copied.isoformat(),
            "components": list(self.components),
            "parent": self.parent,
            "parent_sha256": self.parent_sha256,
            "base": self.base,
            "archive": {"size": self.archive_size, "sha256": self.archive_sha256},
            "recipients": list(self.recipients),
            "segment_bytes": self.segment_bytes,
            "segments": [
                {"name": self.segment_name(number), "size": one.size, "sha256": one.sha256}
                for number, one in enumerate(self.segments)
            ],
            "writer": self.writer,
            **({"wal": {"cluster": self.wal.cluster, "first": self.wal.first}} if self.wal else {}),
        }
        if key is not None:
            document["signer"] = key.signer
            document["signature"] = key.sign(_signed_bytes(document))
        return _signed_bytes(document) + b"\n"

    @classmethod
    def decode(cls, data: bytes, stem: Stem) -> Commit:
        """Decode a commit.

        Arguments:
            stem: the stem in the object's name.

        Raises:
            NotIntactError: it is invalid, has a later format, or belongs to another copy.
        """
        try:
            found = json.loads(data)
            if found["version"] != VERSION:
                raise NotIntactError(
                    f"the commit {stem.commit} has format version {found['version']!r}",
                    hint="Use the release that wrote it, or a later one.",
                )
            commit = cls._of(found, stem)
            if signature := found.pop("signature", None):
                if not is_signed(_signed_bytes(found), found["signer"], signature):
                    raise NotIntactError(
                        f"the signature of the commit {stem.commit} is wrong",
                        hint="It was changed. Take another copy; list the copies.",
                    )
                commit = replace(commit, signer=found["signer"])
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise NotIntactError(
                f"the commit {stem.commit} is invalid", hint="Take another copy; list the copies."
            ) from error
        return commit

    @classmethod
    def _of(cls, found: Mapping[str, Any], stem: Stem) -> Commit:
        if parse_stem(found["directory"]) != stem or found["backup_id"] != stem.backup_id:
            raise ValueError("another copy's")
        identifier = BackupId.parse(stem.backup_id)
        assert identifier is not None
        commit = cls(
            stem=stem,
            type=identifier.type.value,
            moment=identifier.moment,
            copied=_moment(found["copied"]),
            archive_size=_count(found["archive"]["size"]),
            archive_sha256=_digest(found["archive"]["sha256"]),
            segment_bytes=_count(found["segment_bytes"]),
            segments=tuple(Segment(_count(one["size"]), _digest(one["sha256"])) for one in found["segments"]),
            recipients=tuple(map(str, found["recipients"])),
            parent=_name(found["parent"]),
            parent_sha256=_digest(found["parent_sha256"]) if found["parent_sha256"] else None,
            base=_name(found["base"]),
            components=tuple(map(str, found["components"])),
            writer=str(found["writer"]),
            wal=_wal_start(found.get("wal")),
        )
        count = -(-commit.archive_size // commit.segment_bytes)
        if commit.segment_bytes > _MOST_SEGMENT or count != len(commit.segments):
            raise ValueError("segments that do not make up the archive")
        return commit


def _signed_bytes(document: Mapping[str, Any]) -> bytes:
    """The bytes that are signed: the commit without its signature."""
    return json.dumps(document, indent=1).encode("ascii")


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def _count(value: object) -> int:
    if type(value) is not int or value < 1:
        raise ValueError("no size")
    return value


def _digest(value: object) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ValueError("no SHA-256")
    return value


def _wal_start(value: Any) -> WalStart | None:
    if value is None:
        return None
    start = WalStart(str(value["cluster"]), str(value["first"]))
    if not start.cluster.isdigit() or not _SEGMENT_NAME.fullmatch(start.first):
        raise ValueError("no place in the WAL")
    return start


def _name(value: object) -> str | None:
    """The name of another archive, checked, since it becomes a file name."""
    if value is None:
        return None
    if not isinstance(value, str) or BackupId.parse(value) is None:
        raise ValueError("no archive")
    return value
