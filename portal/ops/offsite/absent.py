"""Archives that the repository no longer has, of which only copies are left."""

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
    """Finds copies to be made again from a copy.

    Arguments:
        here: the archives in the repository.
        is_wanted: whether any such copies are wanted.
        name: the requested archive; None for all.
    """

    here: frozenset[str]
    is_wanted: bool = False
    name: str | None = None

    def among(self, backend: Backend, trust: Trust, recipients: Sequence[str]) -> list[Commit]:
        """The copies to make again, parents first, without those for the same recipients.

        Raises:
            ConfigurationError: the requested archive has no copy.
            NotIntactError: a copy that it needs is missing.
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
    """A copy as an entry for the retention rules."""
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
