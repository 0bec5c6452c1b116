"""Off-site copies of a full backup that follows another: copied, fetched, read and pruned as what it is."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from portal.ops.errors import ArchiveAbsentError
from portal.ops.offsite.fetch import FetchJob
from portal.ops.offsite.listing import list_copies
from portal.ops.offsite.prune import OffsitePruneJob
from portal.ops.retention.policy import RetentionRule
from portal.ops.runtime.progress import utc_now
from portal.ops.verify.verify import Verifier
from tests.support.incrementals import tree_of_chain
from tests.support.offsite import Offsite, offsite_at, policy

GOLDEN = Path(__file__).parents[1] / "golden" / "chained"
BASE, LAST = (f"full_202401{day}_120000_dd56de" for day in (15, 16))


@pytest.fixture
def copied(tmp_path: Path) -> Offsite:
    """A repository with a chained full backup, which has a copy."""
    (tmp_path / "disk").mkdir()
    world = offsite_at(tmp_path, f"file://{tmp_path}/disk")
    shutil.copytree(GOLDEN, world.uploads.archives)
    world.uploads.archives.chmod(0o700)
    world.copied()
    return world


def content(world: Offsite, path: str, archive: str = LAST) -> bytes:
    with FetchJob(world.config()).file(archive, path) as (reader, member, _):
        return b"".join(map(bytes, reader.extract(member)))


def test_it_comes_back_with_what_it_follows(copied: Offsite) -> None:
    """Both archives are copied, the parent first; a fetch of the last one brings both."""
    commits = {one.backup_id: one for one in list_copies(copied.backend()).commits}
    assert (commits[LAST].type, commits[LAST].parent, commits[LAST].base) == ("full", BASE, BASE)
    other = copied.elsewhere()
    path = other.fetch(LAST)
    assert other.uploads.archive(BASE).exists()
    assert Verifier().verify(path).intact
    assert tree_of_chain(path) == tree_of_chain(GOLDEN / path.name)


def test_single_files_are_read_from_where_they_are(copied: Offsite) -> None:
    """An upload from the last archive that has it; all else from the archive itself, and from no other."""
    assert content(copied, "media/tenant-1/new.json") == b"new"
    assert content(copied, "media/tenant-1/scan.json").startswith(b'{"finding": "XSS"')
    assert content(copied, "database.sql") != content(copied, "database.sql", BASE)
    with pytest.raises(ArchiveAbsentError):
        content(copied, "media/tenant-1/" + "long-" * 40)
    with pytest.raises(ArchiveAbsentError):
        content(copied, "audit/other.jsonl")


def test_a_copy_whose_chain_has_a_gap_is_not_intact(copied: Offsite) -> None:
    """Also where the rules alone would not keep what is missing, and whichever copy's turn it is."""
    assert copied.verify().run().intact
    (commit,) = (copied.directory / "disk").glob(f"{BASE}*.json")
    commit.unlink()
    (copied.uploads.archives / ".offsite").rename(copied.directory / "forgotten")
    missing = f"it needs {BASE}, of which there is no copy"
    assert missing in copied.verify().run().message
    assert missing in copied.verify().run_rotation().message
    assert missing in copied.verify().run(LAST).message


def test_a_prune_keeps_what_it_follows(copied: Offsite) -> None:
    """It is the newest full backup, and needs the other one."""
    job = OffsitePruneJob(
        copied.config(), policy(RetentionRule(days=1, count=1)), clock=lambda: utc_now() + timedelta(days=40)
    )
    assert job.run().removed == ()
