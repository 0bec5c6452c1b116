"""Directories with objects of WAL, as the WAL service leaves them off-site."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from portal.ops.pitr.wal_archive import Cluster
from portal.ops.pitr.wal_fetch import fetch_wal
from portal.ops.pitr.wal_objects import deflate, with_comment, with_signature
from portal.ops.storage.directory import DirectoryBackend

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path

    from portal.ops.repository.repository import Repository
    from portal.ops.storage.age_keys import Identity
    from portal.ops.storage.backend import Backend
    from portal.ops.storage.signature import SigningKey

CLUSTER: Final = Cluster(system_identifier="7000", segment_bytes=1 << 20, major=17, limits={"max_connections": 100})


class WalStore:
    """A directory with WAL objects."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._directory = directory
        self._number = 0
        self.backend = DirectoryBackend(directory)

    def put(
        self,
        name: str,
        content: bytes,
        *,
        covered: datetime | None = None,
        cluster: str = "7000",
        key: SigningKey | None = None,
    ) -> Path:
        """An object of WAL, signed if there is a key; later ones of the same name come first in a listing."""
        path = self._directory / "wal" / cluster / f"{name}.{99 - self._number:016x}.gz.age"
        self._number += 1
        path.parent.mkdir(parents=True, exist_ok=True)
        stored, told = deflate(content), {"covered": covered.isoformat() if covered else None}
        path.write_bytes(with_comment(stored, with_signature(f"{cluster}/{name}", stored, told, key) if key else told))
        return path

    def describe(self, cluster: Cluster, *, under: str = "7000") -> None:
        """The object that describes a cluster."""
        self.put("cluster", json.dumps(asdict(cluster)).encode(), cluster=under)


def fetched(repository: Repository, backend: Backend, identities: Sequence[Identity] = ()) -> int:
    """Fetch the WAL of a destination; return the number of new files.

    Raises:
        NotIntactError: an object is damaged; all others have been fetched.
    """
    found = fetch_wal(repository, backend, identities)
    if found.damages:
        raise found.damages[0].error
    return len(found.taken)


def segment(filler: bytes = b"x") -> bytes:
    """The content of a segment."""
    return filler * CLUSTER.segment_bytes
