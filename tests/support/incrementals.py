"""Uploads that change, and their incremental backups: what the tests of chains share."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from portal.ops.archive.reader import ArchiveReader
from portal.ops.backup.increment import CACHE
from portal.ops.backup.job import BackupConfig, BackupJob, BackupResult
from portal.ops.chains.lineage import read_manifest
from portal.ops.chains.reader import open_tree
from portal.ops.model import RESTORE_DIRECTORY, SUFFIX
from portal.ops.restore.job import RestoreConfig, RestoreJob, RestoreResult
from tests.support.archives import Tree, entry_in_archive, tree_on_disk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from portal.ops.archive.index import MemberType
    from portal.ops.manifest import Manifest

_OURS: Final = os.fsencode(RESTORE_DIRECTORY)


@dataclass(frozen=True, kw_only=True)
class Uploads:
    """A tree of uploads and the repository of its backups."""

    directory: Path

    @property
    def root(self) -> Path:
        """The uploads."""
        return self.directory / "uploads"

    @property
    def archives(self) -> Path:
        """The repository."""
        return self.directory / "archives"

    @property
    def cache(self) -> Path:
        """The file with the state."""
        return self.archives / CACHE

    def job(self, **changes: Any) -> BackupJob:
        """A job that backs the uploads up."""
        arguments: dict[str, Any] = {"local_path": self.archives, "media_path": self.root, "jobs": 2}
        return BackupJob(BackupConfig(**(arguments | changes)))

    def base(self) -> BackupResult:
        """A backup of everything."""
        return succeeded(self.job().backup_media(request_id=uuid4().hex))

    def incremental(self, changed: Sequence[str] | None = None, **changes: Any) -> BackupResult:
        """An incremental backup, of the whole tree or of some paths."""
        job = self.job(**changes)
        return succeeded(job.backup_media(incremental=True, changed=changed, request_id=uuid4().hex))

    def write(self, path: str, content: bytes = b"content") -> Path:
        """A file, with the directories above it."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        return file

    def tree(self) -> Tree:
        """The uploads as they are now."""
        return without_ours(tree_on_disk(self.root))

    def archive(self, backup_id: str) -> Path:
        """Where an archive is."""
        return self.archives / f"{backup_id}{SUFFIX}"

    def restore(self, backup_id: str, target: Path | None = None, **options: Any) -> RestoreResult:
        """Restore the uploads exactly; by default into a directory of its own."""
        config = RestoreConfig(
            local_path=self.archives, media_path=target or self.directory / "restored", jobs=2, exact=True, **options
        )
        return RestoreJob(config).restore_media(backup_id)

    def restored(self, backup_id: str) -> Tree:
        """What a restore of an archive gives."""
        target = self.directory / f"restored-{uuid4().hex[:8]}"
        result = self.restore(backup_id, target)
        assert result.error is None, result.error
        found = without_ours(tree_on_disk(target))
        shutil.rmtree(target)
        return found


def succeeded(result: BackupResult) -> BackupResult:
    """The result of a backup that must not fail."""
    assert result.error is None, result.error
    assert result.success
    return result


def without_ours(tree: Tree) -> Tree:
    """A tree without what a restore keeps in it."""
    return {name: entry for name, entry in tree.items() if name.split(b"/")[0] != _OURS}


def members_of(path: Path) -> dict[str, MemberType]:
    """What an archive itself holds of the uploads: paths relative to them."""
    with closing(ArchiveReader(path)) as archive:
        return {
            member.path.removeprefix("media").removeprefix("/"): member.type
            for member in archive.members()
            if member.path.split("/")[0] == "media"
        }


def tree_of_chain(path: Path) -> Tree:
    """The tree that an archive stands for, read through all that it stands on."""
    tree: Tree = {}
    with closing(open_tree(path)) as archive:
        for member, content in archive.contents(2, below="media"):
            tree[os.fsencode(member.path.removeprefix("media").removeprefix("/"))] = entry_in_archive(
                member, content, tree, "media"
            )
    return tree


def manifest_of(result: BackupResult) -> Manifest:
    """What the archive of a backup says of itself."""
    found = read_manifest(Path(result.destination_path))
    assert found is not None
    return found


def held(result: BackupResult) -> dict[str, MemberType]:
    """The members of the archive of a backup."""
    return members_of(Path(result.destination_path))


def deleted(result: BackupResult) -> list[str]:
    """The list of what is gone, as a stranger reads it."""
    with tarfile.open(result.destination_path) as archive:
        file = archive.extractfile(f"{result.backup_id}/deleted.jsonl")
        assert file is not None
        return [json.loads(line)["path"] for line in file]


def two_tenants(directory: Path) -> Uploads:
    """Uploads of two tenants in a directory, without a backup."""
    found = Uploads(directory=directory)
    for path in ("tenant-1/scan.json", "tenant-1/old/report.sarif", "tenant-2/scan.json"):
        found.write(path, path.encode())
    return found
