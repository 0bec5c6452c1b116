"""Copies of small archives, put into a directory without the archives."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

import pyrage

from portal.ops.offsite.commit import Commit, Segment
from portal.ops.offsite.layout import Stem
from portal.ops.offsite.ledger import CopyRecord, Ledger
from portal.ops.offsite.signing import own_key
from portal.ops.repository.access_log import AccessLog
from portal.ops.repository.repository import Repository
from portal.ops.storage.directory import DirectoryBackend
from tests.support.offsite import Offsite, offsite_at

if TYPE_CHECKING:
    from pathlib import Path


NOW: Final = datetime(2026, 3, 1, tzinfo=UTC)
ID: Final = "media_20260201_120000_abcdef"
CHUNK: Final = 65_536


class Put:
    """Puts copies into a directory.

    Arguments:
        recipient: whom they are encrypted for; empty for nobody.
    """

    def __init__(self, directory: Path, recipient: str = "") -> None:
        self.backend = DirectoryBackend(directory)
        self.directory = directory
        self._recipient = recipient

    def copy(self, content: bytes, segment_bytes: int, backup_id: str = ID, *, key: Any = None, **more: Any) -> Commit:
        """A copy of an archive; its commit."""
        commit = Commit(
            stem=Stem(backup_id),
            type="media",
            moment=datetime.strptime(backup_id.split("_")[1], "%Y%m%d").replace(tzinfo=UTC),
            copied=NOW,
            archive_size=len(content),
            archive_sha256=sha256(content).hexdigest(),
            segment_bytes=segment_bytes,
            segments=(),
            recipients=(self._recipient,) if self._recipient else (),
        )
        commit = replace(commit, **more)
        segments = []
        for number, start in enumerate(range(0, len(content), segment_bytes)):
            piece = self._sealed(content[start : start + segment_bytes])
            segments.append(Segment(len(piece), sha256(piece).hexdigest()))
            self.backend.put(commit.segment_name(number), piece, "")
        commit = replace(commit, segments=tuple(segments))
        self.backend.put(commit.stem.commit, commit.encode(key), "")
        return commit

    def _sealed(self, piece: bytes) -> bytes:
        return pyrage.encrypt(piece, [pyrage.x25519.Recipient.from_str(self._recipient)]) if self._recipient else piece

    def change(self, commit: Commit, number: int, data: bytes | None) -> None:
        """Other bytes in place of a segment, or none."""
        path = self.directory / commit.segment_name(number)
        if data is None:
            path.unlink()
        else:
            path.write_bytes(data)


def small_world(tmp_path: Path) -> Offsite:
    """A destination with nothing in it, and a repository with a key."""
    (tmp_path / "disk").mkdir()
    made = offsite_at(tmp_path, f"file://{tmp_path}/disk")
    Repository(made.config().local_path).prepare()
    return made


def put_copy(world: Offsite, day: int, **more: Any) -> Commit:
    """A copy of an archive of a day in February, by this repository."""
    repository = Repository(world.config().local_path)
    put = Put(world.directory / "disk")
    commit = put.copy(b"x" * 250, 100, f"media_202602{day:02d}_120000_abcdef", key=own_key(repository), **more)
    ledger = Ledger(repository, world.config().destinations[0])
    ledger.prepare()
    ledger.add(CopyRecord.of(commit))
    return commit


def actions(world: Offsite) -> list[tuple[str, str, str, dict[str, Any]]]:
    log = AccessLog(Repository(world.config().local_path)).entries()
    return [(str(one.action), one.subject, str(one.outcome), dict(one.details)) for one in log]
