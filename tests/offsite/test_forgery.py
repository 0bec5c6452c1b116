"""Copies that somebody else has put into the store, who knows the public recipients and may write there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from portal.ops.errors import NotIntactError
from portal.ops.offsite.listing import list_copies
from portal.ops.offsite.signing import ANY, find_key
from portal.ops.repository.repository import Repository
from tests.support.offsite import offsite_at, small_archives

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.offsite import Offsite


@pytest.fixture
def forged(offsite: Offsite, tmp_path: Path) -> Offsite:
    """A destination with a genuine copy, and a newer one that another repository has put there."""
    offsite.copied()
    (tmp_path / "forger").mkdir()
    recipient = offsite.environ["BACKUP_ENCRYPTION_RECIPIENTS"]
    forger = offsite_at(tmp_path / "forger", f"file://{tmp_path}/disk", BACKUP_ENCRYPTION_RECIPIENTS=recipient)
    small_archives(forger.uploads, seed=2)
    forger.uploads.base()
    forger.copied()
    return offsite


def names(offsite: Offsite) -> tuple[str, str]:
    """The ids of the genuine archive and of the forged one."""
    (genuine,) = (path.name.removesuffix(".tar.gz") for path in offsite.uploads.archives.glob("*.tar.gz"))
    (fake,) = {commit.backup_id for commit in list_copies(offsite.backend()).commits} - {genuine}
    return genuine, fake


def test_the_repository_that_made_copies_uses_no_others(forged: Offsite) -> None:
    """A verification names the forged copy, a fetch refuses it, and the newest is the newest genuine one."""
    genuine, fake = names(forged)
    found = forged.verify().run()
    assert not found.intact
    assert fake in found.message
    assert "not made by this repository" in found.message
    path = forged.uploads.archive(genuine)
    content = path.read_bytes()
    path.unlink()
    assert forged.fetch("latest").read_bytes() == content
    with pytest.raises(NotIntactError, match="not made by this repository"):
        forged.fetch(fake)


def test_an_empty_machine_knows_genuine_copies_by_their_signer(forged: Offsite) -> None:
    """With the signer that was kept beside the identity, another machine takes the genuine copy alone."""
    genuine, fake = names(forged)
    key = find_key(Repository(forged.uploads.archives))
    assert key is not None
    other = forged.elsewhere(BACKUP_OFFSITE_SIGNERS=key.signer)
    assert other.fetch("latest").read_bytes() == forged.uploads.archive(genuine).read_bytes()
    with pytest.raises(NotIntactError, match="not made by this repository"):
        other.fetch(fake)
    assert other.fetch(fake, BACKUP_OFFSITE_SIGNERS=ANY).exists()


def test_a_commit_that_was_changed_is_damaged(offsite: Offsite) -> None:
    """One word changed in a signed commit is noticed everywhere, without any key."""
    offsite.copied()
    (path,) = (offsite.directory / "disk").glob("*.json")
    path.write_text(path.read_text().replace('"media"', '"audit"'))
    (listed,) = list_copies(offsite.elsewhere().backend()).damaged
    assert listed == path.stem


def test_copies_from_before_there_was_a_key_stay_ours(offsite: Offsite) -> None:
    """The first copy of a machine takes what is there for its own, as a repository that was set up anew needs it."""
    offsite.copied()
    (offsite.uploads.archives / ".keys" / "offsite.key").unlink()
    offsite.copied()
    assert offsite.verify().run().intact
    assert len(list_copies(offsite.backend()).commits) == 1


def test_first_copy_of_a_machine_with_signers_takes_only_theirs(forged: Offsite) -> None:
    """What somebody else has put there does not become the machine's own because it has no key yet."""
    _, fake = names(forged)
    key = find_key(Repository(forged.uploads.archives))
    assert key is not None
    other = forged.elsewhere(BACKUP_OFFSITE_SIGNERS=key.signer)
    small_archives(other.uploads, seed=3)
    other.uploads.base()
    other.copied()
    with pytest.raises(NotIntactError, match="not made by this repository"):
        other.fetch(fake)
