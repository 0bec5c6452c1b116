"""The facts about an archive for lists, plans and reports, known without opening it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from datetime import datetime

    from portal.ops.model import BackupType, Component, VerifyLevel


class Finding(NamedTuple):
    """The last verification that counts.

    Arguments:
        level: how closely the archive was checked.
        moment: when it was verified.
        intact: whether no damage was found.
    """

    level: VerifyLevel
    moment: datetime
    intact: bool


class Entry(NamedTuple):
    """One archive of a repository.

    Arguments:
        name: the file's name without suffix, usually the backup id.
        type: the type of backup; None if the name is no backup id.
        moment: the time in the id; or the file's, if the name is no id.
        modified: when the file was written.
        size: bytes.
        checksum: the SHA-256 in its sidecar; None without a valid sidecar.
        parent: the archive that an incremental follows.
        base: the first archive of its chain.
        components: the components that it holds.
        fault: why the archive or its chain is incomplete, as far as can be seen without opening it; otherwise empty.
        finding: the last verification; None if there was none.
        pinned: whether a person has pinned it.
        is_stray: whether it may be an incremental of an unknown parent, since its manifest cannot be read.
        read: when its source was read, by the manifest; None if that does not say.
    """

    name: str
    type: BackupType | None
    moment: datetime
    modified: datetime
    size: int
    checksum: str | None = None
    parent: str | None = None
    base: str | None = None
    components: tuple[Component, ...] = ()
    fault: str = ""
    finding: Finding | None = None
    pinned: bool = False
    is_stray: bool = False
    read: datetime | None = None

    @property
    def read_at(self) -> datetime:
        """When its source was read, by the manifest; otherwise the time in its name, which is that of the request."""
        return self.read or self.moment
