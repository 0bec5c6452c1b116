"""Removes WAL that no base backup needs."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from portal.ops.errors import OpsError
from portal.ops.model import SUFFIX, BackupId, BackupType, file_time
from portal.ops.pitr.look import base_of, read_wal
from portal.ops.pitr.lsn import parse_history_name
from portal.ops.pitr.replaced_wal import remove_replaced
from portal.ops.pitr.wal_archive import DIRECTORY, WalArchive
from portal.ops.pitr.window import Base, unneeded
from portal.ops.runtime.logs import engine_log

if TYPE_CHECKING:
    from pathlib import Path

    from portal.ops.repository.repository import Repository

log = engine_log("portal.ops.pitr.prune_wal")

_YOUNG: Final = timedelta(days=1)
_PATTERN: Final = f"{BackupType.BASE}_*{SUFFIX}"


def prune_wal(repository: Repository, now: datetime) -> int:
    """Remove segments older than every base backup of their cluster; return the number of bytes freed.

    What came within the last day stays, since its base backup may be on its way: being made, or fetched after the WAL.
    A base backup that cannot be read keeps all WAL, since its start is unknown. Without any base backup the WAL of the
    current cluster stays, since one may be under way; that of a replaced cluster is removed after a week. History files
    are small and stay with their cluster.

    Raises:
        OSError: a file cannot be removed.
    """
    found: dict[str, list[Base]] = {}
    for path in repository.path.glob(_PATTERN):
        if BackupId.parse(path.name.removesuffix(SUFFIX)) is None:
            continue
        described = base_of(path)
        if described is None:
            log.warning("wal_not_removed", reason=f"{path.name} cannot be read")
            return 0
        found.setdefault(str(described[1].get("system_identifier")), []).append(described[0])
    freed = sum(_prune(repository, identifier, bases, now) for identifier, bases in found.items())
    return freed + remove_replaced(repository, found, now)


def _prune(repository: Repository, identifier: str, bases: list[Base], now: datetime) -> int:
    try:
        archive = WalArchive.of(repository, identifier)
    except OpsError as error:
        log.warning("wal_not_removed", reason=error.message)
        return 0
    if archive is None:
        return 0
    gone = unneeded(bases, read_wal(archive, archive.state()))
    names = {
        name
        for name in archive.files()
        if not parse_history_name(name)
        and (segment := archive.segment(name))
        and segment in gone
        and not _is_young(archive.stored(name), now)
    }
    if not names:
        return 0
    freed = archive.remove(names)
    log.info("wal_removed", directory=f"{DIRECTORY}/{identifier}", files=len(names), bytes=freed)
    return freed


def _is_young(path: Path, now: datetime) -> bool:
    """True if a file came within the last day, or is gone."""
    try:
        return now - file_time(path.stat().st_mtime) < _YOUNG
    except FileNotFoundError:
        return True
