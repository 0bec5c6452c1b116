"""An incremental says in two places what is gone: a list that disagrees with the manifest is damage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from portal.ops.backup import BackupConfig, BackupJob, collect
from portal.ops.chains.deletions import encode_deletions
from portal.ops.verify.verify import Verifier

if TYPE_CHECKING:
    import io
    from collections.abc import Iterable


@pytest.mark.parametrize(("listed", "count"), [(["media/a"], 1), (["media/a", "media/b", "media/c"], 3)])
def test_list_that_disagrees_with_the_manifest_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: list[str], count: int
) -> None:
    """One path too few, or too many: verification names the list and both numbers."""
    uploads, repository = tmp_path / "uploads", tmp_path / "repository"
    uploads.mkdir()
    repository.mkdir(mode=0o700)
    for name in "abc":
        (uploads / name).write_text(name)
    job = BackupJob(BackupConfig(local_path=repository, media_path=uploads))
    assert job.backup_media(incremental=True).success
    for name in "ab":
        (uploads / name).unlink()

    def lying(_: Iterable[str]) -> io.BytesIO:
        return encode_deletions(listed)

    monkeypatch.setattr(collect, "encode_deletions", lying)
    result = job.backup_media(incremental=True)
    found = Verifier(jobs=1).verify(Path(result.destination_path))
    assert [damage.what for damage in found.damages] == [f"it has {count} lines, and the manifest says 2"]
    assert found.damages[0].path == "deleted.jsonl"
