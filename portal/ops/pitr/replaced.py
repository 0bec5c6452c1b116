"""Clusters whose WAL is in the repository and is not received any more: another one took their place.

A server that was set up anew, or moved by a dump, has a new system identifier. The WAL of the one before is worth
something for as long as a base backup of that cluster is there. Without one nothing can be recovered from it.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from portal.ops.errors import OpsError
from portal.ops.pitr import archive_index
from portal.ops.pitr.wal_archive import CLUSTER, DIRECTORY, RECEIVING, STATE, WalArchive
from portal.ops.repository.durable import sync_directory
from portal.ops.repository.repository import LOCK_NAME, Repository
from portal.ops.runtime.logs import engine_log

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

log = engine_log("portal.ops.pitr.replaced")

YOUNG: Final = timedelta(days=7)
"""The base backup of younger WAL may be still to come: it is fetched from off-site after the WAL, or is being made."""

_WAL: Final = re.compile(r"[0-9A-F]{24}(\.partial)?(\.gz)?|[0-9A-F]{8}\.history")
_UNFINISHED: Final = re.compile(r"\..*\.tmp")
_OURS: Final = frozenset({CLUSTER, STATE, RECEIVING, LOCK_NAME, archive_index.NAME, archive_index.LOCK})
_REMOVED: Final = ".removed-"


@dataclass(frozen=True, kw_only=True)
class ReplacedCluster:
    """The WAL of a cluster that is not received any more.

    Arguments:
        newest: when the last of its WAL was written.
        has_base: whether a base backup of it is there, or may be: one that cannot be read may be of any cluster.
    """

    system_identifier: str
    bytes: int
    newest: datetime
    has_base: bool

    @property
    def removable_from(self) -> datetime | None:
        """From when on a prune removes it; nothing while a base backup needs it."""
        return None if self.has_base else self.newest + YOUNG

    def to_dict(self) -> dict[str, Any]:
        """The facts in the types of JSON."""
        removable = self.removable_from
        return {
            "system_identifier": self.system_identifier,
            "wal_bytes": self.bytes,
            "newest": self.newest.isoformat(timespec="seconds"),
            "removable_from": removable.isoformat(timespec="seconds") if removable else None,
        }

    def __str__(self) -> str:
        if (removable := self.removable_from) is None:
            stays = "it stays as long as its base backups"
        else:
            stays = f"no base backup needs it, and a prune removes it from {removable:%Y-%m-%d} on"
        return (
            f"WAL of the replaced cluster {self.system_identifier}, until {self.newest:%Y-%m-%d %H:%M} UTC, "
            f"{self.bytes >> 20} MB: {stays}"
        )


def removable(clusters: Iterable[ReplacedCluster], current: str | None, now: datetime) -> frozenset[str]:
    """The clusters whose WAL leads nowhere; a pure function.

    Where it is unknown which cluster is received, all are kept.

    Arguments:
        current: the system identifier of the cluster that is received.
    """
    if current is None:
        return frozenset()
    return frozenset(
        one.system_identifier
        for one in clusters
        if one.system_identifier != current and (since := one.removable_from) is not None and since < now
    )


def replaced_identifiers(repository: Repository) -> tuple[str, ...]:
    """The clusters that have WAL here, but for the current one; none where that is unknown."""
    directory = repository.path / DIRECTORY
    current = WalArchive.current(repository)
    if current is None:
        return ()
    names = sorted(os.listdir(directory))
    return tuple(name for name in names if name.isdigit() and name != current.cluster.system_identifier)


def find_replaced(repository: Repository, with_base: Collection[str] | None) -> tuple[ReplacedCluster, ...]:
    """What is there of replaced clusters.

    Arguments:
        with_base: the clusters that have a base backup; nothing means that this is not known.

    Raises:
        OSError: the directory cannot be read.
    """
    found = []
    for identifier in replaced_identifiers(repository):
        directory = repository.path / DIRECTORY / identifier
        paths = (*directory.glob("*"), *directory.glob(f"{RECEIVING}/*"))
        files = [path.stat() for path in paths if _WAL.fullmatch(path.name)]
        newest = max((file.st_mtime for file in files), default=directory.stat().st_mtime)
        found.append(
            ReplacedCluster(
                system_identifier=identifier,
                bytes=sum(file.st_size for file in files),
                newest=datetime.fromtimestamp(newest, UTC),
                has_base=with_base is None or identifier in with_base,
            )
        )
    return tuple(found)


def remove_replaced(repository: Repository, with_base: Collection[str], now: datetime) -> int:
    """Remove the WAL of replaced clusters that leads nowhere; the bytes that were freed.

    Arguments:
        with_base: the clusters that have a base backup.

    Raises:
        OSError: a file cannot be removed.
    """
    current = WalArchive.current(repository)
    clusters = find_replaced(repository, with_base)
    gone = removable(clusters, current.cluster.system_identifier if current else None, now)
    directory = repository.path / DIRECTORY
    for left in directory.glob(f"{_REMOVED}*"):  # of a prune that was killed
        shutil.rmtree(left)
    return sum(one.bytes for one in clusters if one.system_identifier in gone and _remove(repository, one))


def _remove(repository: Repository, cluster: ReplacedCluster) -> bool:
    """Remove a directory at once, if nobody works in it and all of it is ours."""
    path = repository.path / DIRECTORY / cluster.system_identifier
    if strange := sorted(name for name in (*os.listdir(path), *_received(path)) if not _is_ours(name)):
        log.warning("wal_not_removed", reason=f"{path} has {strange[0]} in it, which is no WAL")
        return False
    aside = path.with_name(f"{_REMOVED}{path.name}")
    try:
        with Repository(path, lock_timeout=0).exclusive():  # as a WAL service that receives into it
            path.rename(aside)
    except OpsError as error:
        log.warning("wal_not_removed", reason=error.message)
        return False
    sync_directory(path.parent)
    shutil.rmtree(aside)
    log.info("replaced_wal_removed", directory=f"{DIRECTORY}/{path.name}", bytes=cluster.bytes)
    return True


def _received(path: Path) -> list[str]:
    return os.listdir(path / RECEIVING) if (path / RECEIVING).is_dir() else []


def _is_ours(name: str) -> bool:
    return name in _OURS or bool(_WAL.fullmatch(name) or _UNFINISHED.fullmatch(name))
