"""Lists the archives of a repository for the guide's API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from portal.ops.model import SUFFIX, timestamp
from portal.ops.repository.catalogue import Catalogue

if TYPE_CHECKING:
    from collections.abc import Iterator

    from portal.ops.repository.entry import Entry
    from portal.ops.repository.repository import Repository


def iterate_archives(repository: Repository) -> Iterator[dict[str, Any]]:
    """The archives one by one, newest first, with their facts as types of JSON.

    Raises:
        RepositoryError: the repository cannot be read.
    """
    directory = str(repository.path)
    return (_listed(entry, directory) for entry in Catalogue(repository).entries())


def _listed(entry: Entry, directory: str) -> dict[str, Any]:
    name = entry.name + SUFFIX
    finding = entry.finding
    return {
        "path": f"{directory}/{name}",
        "name": name,
        "backup_id": entry.name,
        "type": entry.type.value if entry.type else None,
        "timestamp": timestamp(entry.moment),
        "size_bytes": entry.size,
        "modified": timestamp(entry.modified),
        "checksum": entry.checksum,
        "components": list(entry.components),
        "parent": entry.parent,
        "base": entry.base,
        "pinned": entry.pinned,
        "fault": entry.fault or None,
        "verified": {"level": finding.level.value, "moment": timestamp(finding.moment), "intact": finding.intact}
        if finding
        else None,
    }
