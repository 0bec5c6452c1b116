"""The source of a restore: one archive with its chain, or the data for a moment."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from portal.ops.archive.open import open_archive
from portal.ops.chains.lineage import is_incremental, line_of
from portal.ops.chains.reader import open_tree
from portal.ops.repository.locks import archive_lock
from portal.ops.repository.sidecar import read_sidecar
from portal.ops.restore.moment import MomentArchive

if TYPE_CHECKING:
    from pathlib import Path

    from portal.ops.archive.protocol import Archive
    from portal.ops.pitr.plan import RecoveryPlan
    from portal.ops.repository.repository import ArchiveFile
    from portal.ops.restore.moment import MomentChoice


@dataclass(frozen=True, kw_only=True)
class RestoreSource:
    """The source of a restore.

    Arguments:
        archive: the archive; for a moment, the first one needed.
        choice: the sources for a moment; None for an archive.
        with_uploads: whether uploads are restored; everything else is in the archive itself, not in its chain.
    """

    archive: ArchiveFile
    choice: MomentChoice | None = None
    with_uploads: bool = True

    @property
    def recovery(self) -> RecoveryPlan | None:
        """How to recover the database to a moment, or None if it comes from an archive."""
        return self.choice.recovery if self.choice else None

    def open(self) -> Archive:
        """Open the source for reading.

        Raises:
            NotIntactError: the archive, or one of its chain, is missing or damaged.
        """
        if self.choice:
            return MomentArchive(self.choice)
        return open_tree(self.archive.path) if self.with_uploads else open_archive(self.archive.path)

    def lock(self, timeout: float) -> ExitStack:
        """Keep the archives from being pruned while the context lasts.

        Arguments:
            timeout: seconds to wait for a prune that is running.
        """
        with ExitStack() as held:
            for path in self._paths():
                held.enter_context(archive_lock(path, timeout))
            return held.pop_all()

    def needed(self) -> dict[Path, str | None]:
        """The archives to be read, the oldest of a chain first, each with its expected SHA-256."""
        needed: dict[Path, str | None] = {}
        for path in self._paths():
            if self.with_uploads and is_incremental(path):
                needed |= {ancestor.path: ancestor.sha256 for ancestor in line_of(path)}
            else:
                needed[path] = read_sidecar(path)
        return needed

    def unchecked(self) -> list[Path]:
        """Archives without a sidecar, whose content nothing confirms."""
        return [path for path in self._paths() if read_sidecar(path) is None]

    def _paths(self) -> tuple[Path, ...]:
        return self.choice.needed if self.choice else (self.archive.path,)
