"""Archives that the repository has no longer, and that only their copies are left of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from portal.ops.model import BackupType, Component
from portal.ops.offsite.listing import PREFIX, list_copies
from portal.ops.repository.entry import Entry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from portal.ops.offsite.commit import Commit
    from portal.ops.offsite.signing import Trust
    from portal.ops.storage.backend import Backend


@dataclass(frozen=True, kw_only=True)
class Absent:
    """The archives to copy again from copies.

    Arguments:
        here: the archives that the repository has.
        is_wanted: whether anything is.
        name: the archive that somebody asks for; nothing where all are meant.
    """

    here: frozenset[str]
    is_wanted: bool = False
    name: str | None = None

    def among(self, backend: Backend, trust: Trust, recipients: Sequence[str]) -> list[Commit]:
        """The copies to make anew, parents first; those for the same recipients are left out.

        Raises:
            ConfigurationError: there is no copy of the archive that was asked for.
            NotIntactError: one that it needs is missing.
            StorageError: the store failed.
        """
        if not self.is_wanted:
            return []
        listing = list_copies(backend, trust=trust)
        if self.name is not None:
            found = list(listing.line_of(listing.find(self.name.removeprefix(PREFIX))))
        else:
            found = sorted(
                (one for one in listing.newest().values() if one.backup_id not in self.here),
                key=lambda one: (one.moment, one.backup_id),
            )
        return [one for one in found if set(one.recipients) != set(recipients)]


def entry_of(commit: Commit) -> Entry:
    """A copy as the rules of retention look at archives."""
    return Entry(
        name=commit.backup_id,
        type=BackupType(commit.type),
        moment=commit.moment,
        modified=commit.copied,
        size=commit.stored_bytes,
        checksum=commit.archive_sha256,
        parent=commit.parent,
        base=commit.base,
        components=tuple(Component(name) for name in commit.components if name in set(Component)),
    )
