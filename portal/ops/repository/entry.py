"""The facts about an archive that lists, plans and reports are made of, without opening it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from datetime import datetime

    from portal.ops.model import BackupType, Component, VerifyLevel


class Finding(NamedTuple):
    """The result of the last verification that counts.

    Arguments:
        level: how closely the archive was looked at.
        moment: when.
        intact: whether nothing was wrong.
    """

    level: VerifyLevel
    moment: datetime
    intact: bool


class Entry(NamedTuple):
    """One archive of a repository.

    Arguments:
        name: the file's name without its suffix: the id, where it is one.
        type: what was asked for; nothing where the name is no id.
        moment: when the backup was made, by its id; by its file where it has none.
        modified: when the file was written.
        size: bytes.
        checksum: the SHA-256 that it should have; nothing where it has no sidecar that is valid.
        parent: the archive that it follows, where it is an incremental.
        base: the first archive of its chain.
        components: what it holds.
        fault: why it, or the chain that it stands on, is not complete, as far as that can be seen from outside; empty
            where nothing is wrong.
        finding: what a verification has found; nothing where there was none.
        pinned: whether a person has said that it is to be kept.
        is_stray: whether it may follow another one, and nobody knows which: its manifest cannot be read.
        read: when its data was read, by its manifest; nothing where that does not say.
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
        """The time its data was read, by its manifest; the name has only the time of the request."""
        return self.read or self.moment
