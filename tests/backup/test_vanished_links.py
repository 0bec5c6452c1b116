"""A file with several names, one of which goes away before it is read: the backup can be restored."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from portal.ops.backup.config import BackupConfig
from portal.ops.backup.job import BackupJob
from tests.support.incrementals import Uploads, succeeded
from tests.support.trees import MIB

if TYPE_CHECKING:
    from pathlib import Path

    from portal.ops.runtime.progress import Step


@pytest.mark.parametrize("size", [100, 2 * MIB], ids=["small", "large"])
def test_an_incremental_has_the_content_under_the_names_that_are_left(tmp_path: Path, size: int) -> None:
    """The name under which the content was to be archived vanishes: each other name has it, also of three and more."""
    uploads = Uploads(directory=tmp_path)
    uploads.write("old")
    uploads.base()
    uploads.write("0", os.urandom(2 * MIB))  # it is read first, and tells of its progress
    first = uploads.write("a", os.urandom(size))
    for name in ("b", "c", "d"):
        os.link(first, uploads.root / name)

    def vanish(step: Step) -> None:
        if step.phase == "media":
            first.unlink(missing_ok=True)

    job = BackupJob(BackupConfig(local_path=uploads.archives, media_path=uploads.root, jobs=2), progress=vanish)
    result = succeeded(job.backup_media(incremental=True, request_id=uuid4().hex))
    assert result.warnings == ("media/a vanished before it could be read",)
    assert job.verify(result.backup_id).intact
    restored = uploads.restored(result.backup_id)
    assert {name: entry.content for name, entry in restored.items()} == {
        name: entry.content for name, entry in uploads.tree().items()
    }
