"""Finds the WAL of replaced clusters in a repository, and removes it if no base backup needs it."""

from __future__ import annotations

import os
import re
import shutil
from typing import TYPE_CHECKING, Final

from portal.ops.errors import OpsError
from portal.ops.model import file_time
from portal.ops.pitr import archive_index
from portal.ops.pitr.replaced import ReplacedCluster, removable
from portal.ops.pitr.wal_archive import CLUSTER, DIRECTORY, RECEIVING, STATE, WalArchive
from portal.ops.repository.durable import sync_directory
from portal.ops.repository.repository import LOCK_NAME, Repository
from portal.ops.runtime.logs import engine_log

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime
    from pathlib import Path

log = engine_log("portal.ops.pitr.replaced_wal")

_WAL: Final = re.compile(r"[0-9A-F]{24}(\.partial)?(\.gz)?|[0-9A-F]{8}\.history")
_UNFINISHED: Final = re.compile(r"\..*\.tmp")
_OURS: Final = frozenset({CLUSTER, STATE, RECEIVING, LOCK_NAME, archive_index.NAME, archive_index.LOCK})
_REMOVED: Final = ".removed-"


def replaced_identifiers(repository: Repository) -> tuple[str, ...]:
    """The clusters that have WAL here, without the current one; none if the current one is unknown."""
    directory = repository.path / DIRECTORY
    current = WalArchive.current(repository)
    if current is None:
        return ()
    names = sorted(os.listdir(directory))
    return tuple(name for name in names if name.isdigit() and name != current.cluster.system_identifier)


def find_replaced(repository: Repository, with_base: Collection[str] | None) -> tuple[ReplacedCluster, ...]:
    """The WAL of replaced clusters.

    Arguments:
        with_base: the clusters that have a base backup; None if that is unknown.

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
                newest=file_time(newest),
                has_base=with_base is None or identifier in with_base,
            )
        )
    return tuple(found)


def remove_replaced(repository: Repository, with_base: Collection[str], now: datetime) -> int:
    """Remove the WAL of replaced clusters that no base backup needs; return the number of bytes freed.

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
    """Remove a directory as a whole, if no WAL service uses it and all of it is ours; return whether it was removed."""
    path = repository.path / DIRECTORY / cluster.system_identifier
    if strange := sorted(name for name in (*os.listdir(path), *_received(path)) if not _is_ours(name)):
        log.warning("wal_not_removed", reason=f"{path} has {strange[0]} in it, which is not WAL")
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
