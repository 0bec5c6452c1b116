"""Chains of base backups: a full one, then incremental ones with only the blocks changed since their parent.

PostgreSQL makes incremental base backups from version 17 on, if the server summarizes its WAL. Each follows the newest
base backup of its cluster. If it would not save at least half of a full one, or if the chain is long enough, the next
is a full one.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from portal.ops.archive.reader import ArchiveReader
from portal.ops.chains.lineage import line_of
from portal.ops.errors import NotIntactError, OpsError
from portal.ops.model import SUFFIX, BackupType, Component
from portal.ops.pitr.base_manifest import MANIFEST, PREFIX
from portal.ops.repository.catalogue import Catalogue
from portal.ops.repository.restorability import own_fault

if TYPE_CHECKING:
    from collections.abc import Mapping

    from portal.ops.chains.lineage import Ancestor
    from portal.ops.pitr.replication import ServerSettings
    from portal.ops.repository.repository import Repository

MOST_INCREMENTALS: Final = 6
"""The most incremental base backups in a chain: with one a day, each week begins with a full one."""

FIRST_MAJOR: Final = 17


class FullBaseNeededError(Exception):
    """Raised if an incremental base backup is impossible or saves too little; the message has the reason."""


@dataclass(frozen=True, kw_only=True)
class BaseParent:
    """The base backup that an incremental one follows.

    Arguments:
        line: the chain of that base backup, the full one first.
        full_bytes: the bytes in a full base backup.
    """

    line: tuple[Ancestor, ...]
    full_bytes: int

    @property
    def newest(self) -> Ancestor:
        """The archive of the parent."""
        return self.line[-1]

    @property
    def most_bytes(self) -> int:
        """The most bytes that an incremental base backup may hold and still save half of a full one."""
        return self.full_bytes // 2

    @property
    def expected_bytes(self) -> int:
        """The most bytes that the archive of an incremental one may take."""
        return self.line[0].path.stat().st_size // 2

    def check(self, settings: ServerSettings) -> None:
        """Make sure that the server can continue the chain.

        Raises:
            FullBaseNeededError: it cannot.
        """
        if settings.cluster.major < FIRST_MAJOR:
            raise FullBaseNeededError(f"PostgreSQL {settings.cluster.major} makes full base backups only")
        if not settings.summarizes_wal:
            raise FullBaseNeededError("the server does not summarize its WAL (summarize_wal is off)")
        if facts_of(self.newest).get("system_identifier") != settings.cluster.system_identifier:
            raise FullBaseNeededError("the newest base backup is of another cluster")

    def server_manifest(self) -> bytes:
        """The parent's `backup_manifest`, which the server needs for the comparison.

        Raises:
            FullBaseNeededError: it cannot be read.
        """
        try:
            with closing(ArchiveReader(self.newest.path)) as reader:
                member = reader.find(f"{PREFIX}/{MANIFEST}")
                if member is None:
                    raise FullBaseNeededError(f"{self.newest.name} has no {MANIFEST}")
                return b"".join(reader.extract(member))
        except NotIntactError as error:
            raise FullBaseNeededError(error.message) from error


def find_parent(repository: Repository) -> BaseParent:
    """The newest base backup, if an incremental one can follow it.

    Raises:
        FullBaseNeededError: there is none.
        RepositoryError: the repository cannot be read.
    """
    bases = [entry for entry in Catalogue(repository).entries() if entry.type is BackupType.BASE]
    if not bases:
        raise FullBaseNeededError("there is no base backup yet")
    newest = max(bases, key=lambda entry: (entry.modified, entry.name))
    if fault := own_fault(newest):
        raise FullBaseNeededError(f"{newest.name} is not intact: {fault}")
    try:
        line = line_of(repository.path / f"{newest.name}{SUFFIX}")
        full_bytes = int(facts_of(line[0])["bytes"])
    except (OpsError, KeyError, TypeError, ValueError) as error:
        raise FullBaseNeededError(f"the chain of {newest.name} cannot be followed: {error}") from error
    if len(line) > MOST_INCREMENTALS:
        raise FullBaseNeededError(f"{line[0].name} has {len(line) - 1} incremental ones already")
    return BaseParent(line=line, full_bytes=full_bytes)


def facts_of(ancestor: Ancestor) -> Mapping[str, Any]:
    """A base backup's facts about its cluster."""
    return ancestor.manifest.details.get(Component.CLUSTER.value, {})


def cluster_size(facts: Mapping[str, Any]) -> int:
    """About how many bytes the data directory has, from a base backup's manifest: an incremental archive is smaller."""
    return int(facts.get("tree", facts)["bytes"])
