"""Whether beat requests off-site copies: by what the destination lacks, whatever else is scheduled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from beat.repository_facts import read_facts
from worker.operations import OFFSITE_COPY, VERIFY_ARCHIVE

if TYPE_CHECKING:
    from tests.support.offsite import Offsite


def test_an_archive_without_a_copy_is_missing_one(offsite: Offsite) -> None:
    """Also where verifications are off; once it has been copied, nothing is missing."""
    repository, settings = offsite.uploads.job().repository, offsite.settings()
    for operations in ({OFFSITE_COPY}, {OFFSITE_COPY, VERIFY_ARCHIVE}):
        assert read_facts(repository, operations, settings).uncopied
    offsite.copied()
    for operations in ({OFFSITE_COPY}, {OFFSITE_COPY, VERIFY_ARCHIVE}):
        assert not read_facts(repository, operations, settings).uncopied
    assert len(read_facts(repository, {OFFSITE_COPY}, settings).archives) == 1


def test_nothing_is_missing_where_no_copy_is_scheduled(offsite: Offsite) -> None:
    """Neither without settings, nor where only verifications are."""
    repository = offsite.uploads.job().repository
    assert not read_facts(repository, {OFFSITE_COPY}).uncopied
    assert not read_facts(repository, {VERIFY_ARCHIVE}, offsite.settings()).uncopied
