"""An archive that a backup has written but not published yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from portal.ops.chains.state_cache import Content

if TYPE_CHECKING:
    from portal.ops.archive.writer import WrittenIndex
    from portal.ops.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class Written:
    """An archive on the disk, not published yet; to be closed.

    Arguments:
        manifest: its manifest.
        digest: its SHA-256.
        index: its members.
        deleted: the deletions of an incremental.
    """

    manifest: Manifest
    digest: str
    index: WrittenIndex
    deleted: tuple[str, ...] = ()

    @property
    def content(self) -> Content:
        """Its uploads."""
        return Content(manifest=self.manifest, members=self.index.members(), deleted=self.deleted)

    def close(self) -> None:
        """Close the index."""
        self.index.close()
