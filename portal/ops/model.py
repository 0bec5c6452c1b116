"""The basic nouns: types and components of backups, and their names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from portal.ops.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

FORMAT_VERSION: Final = 1
INCREMENTAL_VERSION: Final = 2
"""The format of archives that need others: earlier releases, which do not know that, must not restore them."""

CLUSTER_VERSION: Final = 3
"""The format of archives of a whole cluster, which need WAL to be useful."""

CHAINED_VERSION: Final = 4
"""The format of a full backup whose uploads are an incremental, with complete database and audit log.

Releases that know only chains of uploads would take the database of the chain's base for that of the archive.
"""

SUFFIX: Final = ".tar.gz"
SIDECAR_SUFFIX: Final = ".sha256"
RESTORE_DIRECTORY: Final = ".kekkai-restore"
"""A restore's own directory at the top of the tree that it restores; backups leave it out."""
DELETED: Final = "deleted.jsonl"
"""The member of an incremental that lists deleted paths, relative to the archive's top directory."""


class BackupType(StrEnum):
    """The types of backups."""

    FULL = "full"
    DATABASE = "database"
    MEDIA = "media"
    AUDIT_LOGS = "audit_logs"
    BASE = "base"


class Component(StrEnum):
    """A part of the portal, as the manifest names it."""

    DATABASE = "database"
    MEDIA = "media"
    AUDIT_LOGS = "audit_logs"
    CLUSTER = "cluster"

    @property
    def member(self) -> str:
        """Its path in an archive, relative to the top directory."""
        return _MEMBERS[self]

    @property
    def spoken(self) -> str:
        """Its name in text for people."""
        return _SPOKEN[self]


def spoken_names(names: Iterable[str]) -> str:
    """Components by their names in JSON, as people read them: ``database, uploads``."""
    return ", ".join(Component(name).spoken for name in names)


_MEMBERS: Final = {
    Component.DATABASE: "database.sql",
    Component.MEDIA: "media",
    Component.AUDIT_LOGS: "audit",
    Component.CLUSTER: "data",
}
_SPOKEN: Final = {
    Component.DATABASE: "database",
    Component.MEDIA: "uploads",
    Component.AUDIT_LOGS: "audit log",
    Component.CLUSTER: "database cluster",
}


class Loss(StrEnum):
    """A loss that stops a backup until a person has confirmed it, each for itself."""

    UPLOADS = "uploads"
    AUDIT_LOG = "audit-log"
    REPOSITORY = "repository"


def confirmed_losses(confirmed: bool | Collection[str]) -> frozenset[Loss]:
    """The losses that a person has confirmed.

    Arguments:
        confirmed: their names, or whether all of them are.

    Raises:
        ConfigurationError: there is no such loss.
    """
    if isinstance(confirmed, bool):
        return frozenset(Loss) if confirmed else frozenset()
    names = [confirmed] if isinstance(confirmed, str) else list(confirmed)
    if wrong := [name for name in names if name not in tuple(Loss)]:
        raise ConfigurationError(
            f"{wrong[0]!r} is not a loss that can be confirmed", hint=f"Confirm one of {', '.join(Loss)}."
        )
    return frozenset(map(Loss, names))


class VerifyLevel(StrEnum):
    """The levels of verification; each includes the previous ones."""

    CHECKSUM = "checksum"
    CONTENTS = "contents"
    DUMP = "dump"
    DRILL = "drill"

    def covers(self, other: VerifyLevel) -> bool:
        """True if this level includes the other one."""
        levels = list(VerifyLevel)
        return levels.index(self) >= levels.index(other)


_ID: Final = re.compile(
    r"(full|database|db|media|audit_logs|base)_(\d{4})(\d\d)(\d\d)_(\d\d)(\d\d)(\d\d)_([0-9a-f]{6,40})", re.ASCII
)
_STAMP: Final = "%Y%m%d_%H%M%S"
_API_DATABASE: Final = "db"


@dataclass(frozen=True, kw_only=True)
class BackupId:
    """The id of a backup, such as ``full_20240115_120000_abc123``, computed from the request.

    Arguments:
        type: the requested type.
        moment: the slot or the time of the request, to the second, in UTC.
        digest: the start of the SHA-256 of the request's id, in hexadecimal.
        prefix: the first part if it is not the type: the portal's own API writes ``db``.
    """

    type: BackupType
    moment: datetime
    digest: str
    prefix: str = ""

    @classmethod
    def of(cls, kind: BackupType, moment: datetime, request_id: str) -> BackupId:
        """The id for a request."""
        digest = sha256(request_id.encode()).hexdigest()[:6]
        return cls(type=kind, moment=moment.astimezone(UTC).replace(microsecond=0), digest=digest)

    @classmethod
    def parse(cls, text: str) -> BackupId | None:
        """Parse an id; None if the text is none."""
        found = _ID.fullmatch(text)
        if not found:
            return None
        kind, *numbers, digest = found.groups()
        year, month, day, hour, minute, second = map(int, numbers)
        try:
            moment = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
        except ValueError:
            return None
        if kind == _API_DATABASE:
            return cls(type=BackupType.DATABASE, moment=moment, digest=digest, prefix=kind)
        return cls(type=BackupType(kind), moment=moment, digest=digest)

    def __str__(self) -> str:
        return f"{self.prefix or self.type.value}_{self.moment.strftime(_STAMP)}_{self.digest}"


def timestamp(moment: datetime) -> str:
    """A moment in the manifest's format: ``2024-01-15T12:00:00Z``."""
    utc = moment if moment.tzinfo is UTC else moment.astimezone(UTC)
    return f"{_day(utc.year, utc.month, utc.day)}T{_time(utc.hour, utc.minute, utc.second)}Z"


_FIRST: Final = datetime(2, 1, 1, tzinfo=UTC).timestamp()
_LAST: Final = datetime(9998, 12, 31, tzinfo=UTC).timestamp()
"""What is a moment in every time zone, also some days earlier or later."""


def file_time(seconds: float) -> datetime:
    """The time of a file as a moment; some file systems can store times that are in no calendar.

    Arguments:
        seconds: since 1970, such as ``st_mtime``.
    """
    return datetime.fromtimestamp(min(max(seconds, _FIRST), _LAST), UTC)


@lru_cache(1000)  # lists have very many timestamps, and isoformat takes four times as long
def _day(year: int, month: int, day: int) -> str:
    return f"{year:04d}-{month:02d}-{day:02d}"


@lru_cache(10_000)
def _time(hour: int, minute: int, second: int) -> str:
    return f"{hour:02d}:{minute:02d}:{second:02d}"


class Compression(StrEnum):
    """The levels of compression."""

    AUTO = "auto"
    """As hard as possible without slowing the backup down."""
    FAST = "fast"
    SMALL = "small"


def version_of(kind: BackupType, parent: str | None) -> int:
    """The format version of an archive with this type, with or without a parent."""
    if kind is BackupType.BASE:
        return CLUSTER_VERSION
    if not parent:
        return FORMAT_VERSION
    return CHAINED_VERSION if kind is BackupType.FULL else INCREMENTAL_VERSION


class FullUploads(StrEnum):
    """How a full backup takes the uploads."""

    COMPLETE = "complete"
    CHAIN = "chain"
    """Only changes since its parent."""


class LogFormat(StrEnum):
    """The formats of log lines."""

    AUTO = "auto"
    JSON = "json"
    CONSOLE = "console"
