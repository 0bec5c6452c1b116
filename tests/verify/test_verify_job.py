"""A verification on request: what is looked at, locked, kept as a result and told."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from portal.ops.backup.job import BackupConfig, BackupJob
from portal.ops.errors import ArchiveAbsentError, BusyError
from portal.ops.model import VerifyLevel
from portal.ops.repository.access_log import AccessLog, Action, Outcome, Witness
from portal.ops.repository.locks import claim
from portal.ops.repository.repository import Repository
from portal.ops.repository.sidecar import sidecar_of
from portal.ops.repository.verifications import Verifications
from portal.ops.verify.job import VerifyJob
from portal.ops.verify.verify import Expected
from tests.support.events import Events
from tests.support.portal import succeeded

if TYPE_CHECKING:
    from pathlib import Path

    from portal.ops.runtime.progress import Step

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
CONTENT = b"content" * 1000


@pytest.fixture
def archives(tmp_path: Path) -> list[Path]:
    """A backup, and an incremental on it."""
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    (uploads / "first").write_bytes(CONTENT)
    job = BackupJob(BackupConfig(local_path=tmp_path / "repository", media_path=uploads))
    base = succeeded(job.backup_media(incremental=True))
    (uploads / "second").write_bytes(CONTENT)
    return [base, succeeded(job.backup_media(incremental=True))]


@pytest.fixture
def job(archives: list[Path]) -> VerifyJob:
    """A job of a fixed time, which gives up waiting at once."""
    repository = Repository(archives[0].parent)
    witness = Witness(repository=repository, who="ada", clock=lambda: NOW)
    return VerifyJob(repository=repository, witness=witness, lock_timeout=0.1, clock=lambda: NOW)


def damage(archive: Path) -> None:
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 0xFF
    archive.write_bytes(content)


def test_what_was_found_is_kept_logged_and_told(
    job: VerifyJob, archives: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an intact archive and of a damaged one: in the records, the access log and the log."""
    events = Events(monkeypatch, "portal.ops.verify.job")
    kept, log = Verifications(job.repository), AccessLog(job.repository)
    name = archives[0].name.removesuffix(".tar.gz")
    for level, outcome in (("info", Outcome.DONE), ("error", Outcome.FAILED)):
        found = job.run(name, VerifyLevel.CONTENTS)
        assert found.intact is (outcome is Outcome.DONE)
        record = kept.of(name)
        assert record is not None
        assert (record.intact, record.moment) == (found.intact, NOW)
        told, event, facts = events.all.pop()
        assert (told, event) == (level, "archive_verified" if found.intact else "archive_damaged")
        assert (facts["backup_id"], facts["verify_level"]) == (name, "contents")
        assert facts["damages"] == len(found.damages)
        assert 0 <= facts["seconds"] == round(found.duration_seconds, 3) < 60
        *_, line = log.entries()
        assert (line.action, line.subject, line.outcome, line.who) == (Action.VERIFY, name, outcome, "ada")
        assert line.details["level"] == "contents"
        assert line.details["damages"] == len(found.damages)
        assert ("error" in line.details) is not found.intact
        assert str(line.details.get("error", "")).startswith(str(found.damages[0]) if found.damages else "")
        assert not events.all
        damage(archives[0])


def test_a_result_is_not_kept_where_it_is_not_wanted(job: VerifyJob, archives: list[Path]) -> None:
    """It is returned all the same."""
    assert replace(job, is_recorded=False).run("latest").intact
    assert Verifications(job.repository).names() == []
    assert job.run("latest").path == archives[1]
    assert Verifications(job.repository).names() == [archives[1].name.removesuffix(".tar.gz")]


def test_an_archive_alone_is_looked_at_without_those_it_needs(job: VerifyJob, archives: list[Path]) -> None:
    """Otherwise a base that is gone is damage of whatever was made on it."""
    for path in (archives[0], sidecar_of(archives[0])):
        path.unlink()
    alone, whole = (
        next(job.examine(archives[1:], VerifyLevel.CONTENTS, is_alone=is_alone)) for is_alone in (True, False)
    )
    assert alone.intact
    assert not whole.intact
    assert archives[0].name.removesuffix(".tar.gz") in whole.damages[0].what


def test_several_are_looked_at_in_turn(job: VerifyJob, archives: list[Path]) -> None:
    """What comes after a damaged one is looked at as well; each result is there before the next is begun."""
    damage(archives[0])
    kept = Verifications(job.repository)
    found = job.examine(archives, VerifyLevel.CONTENTS)
    assert not next(found).intact
    assert len(kept.names()) == 1
    assert next(found).intact
    assert len(kept.names()) == 2
    assert next(found, None) is None


def test_an_archive_that_a_prune_has_claimed_is_busy(job: VerifyJob, archives: list[Path]) -> None:
    """It is waited for as long as the job says, and the access log says that nothing came of it."""
    with claim(archives[1]), pytest.raises(BusyError, match=archives[1].name):
        job.run(archives[1])
    *_, line = AccessLog(job.repository).entries()
    assert line.outcome is not Outcome.DONE
    assert Verifications(job.repository).names() == []


def test_an_archive_cannot_be_claimed_while_it_is_looked_at(
    job: VerifyJob, archives: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prune that comes then leaves it; afterwards it may be claimed."""
    seen: list[bool] = []

    def look() -> None:
        with claim(archives[1]) as claimed:
            seen.append(bool(claimed))

    monkeypatch.setattr("portal.ops.verify.job._log", lambda _: look())
    job.run(archives[1])
    look()
    assert seen == [False, True]


def test_one_that_is_not_there(job: VerifyJob) -> None:
    """Is named as it was asked for, in the error and in the access log."""
    with pytest.raises(ArchiveAbsentError):
        job.run("full_20000101_000000_abcdef")
    *_, line = AccessLog(job.repository).entries()
    assert (line.action, line.subject) == (Action.VERIFY, "full_20000101_000000_abcdef")


def test_one_outside_the_repository_is_looked_at_too(job: VerifyJob, archives: list[Path], tmp_path: Path) -> None:
    """A copy on another disk, which nothing here prunes."""
    (tmp_path / "elsewhere").mkdir()
    for path in (archives[0], sidecar_of(archives[0])):
        os.link(path, tmp_path / "elsewhere" / path.name)
    found = job.run(tmp_path / "elsewhere" / archives[0].name, VerifyLevel.CHECKSUM)
    assert (found.intact, found.level, found.path.parent.name) == (True, VerifyLevel.CHECKSUM, "elsewhere")


def test_only_what_lies_in_the_repository_waits_for_its_lock(
    job: VerifyJob, archives: list[Path], tmp_path: Path
) -> None:
    """An archive of another disk is nobody's who works here."""
    os.link(archives[0], tmp_path / archives[0].name)
    quick = replace(job, repository=Repository(job.repository.path, lock_timeout=0.1))
    with job.repository.exclusive():
        assert quick.run(tmp_path / archives[0].name).intact
        with pytest.raises(BusyError, match=r"the repository .* is locked"):
            quick.run(archives[0])


def test_progress_is_told_of_all_bytes(job: VerifyJob, archives: list[Path]) -> None:
    """Of what is read, and what will have been read in the end."""
    steps: list[Step] = []
    found = list(replace(job, progress=steps.append).examine(archives, VerifyLevel.CONTENTS))
    assert all(one.intact for one in found)
    assert {step.phase for step in steps} == {"verify"}
    assert steps[-1].expect() == sum(one.content_bytes for one in found) >= 2 * len(CONTENT)
    assert steps[-1].done >= 2 * len(CONTENT)


def test_what_will_be_read_is_not_known_of_what_cannot_be_opened(archives: list[Path]) -> None:
    """The verification itself says what is wrong with it; what is known is found out once."""
    sizes = [Expected([path])() for path in archives]
    both = Expected(archives)
    assert both() == sum(sizes)  # type: ignore[arg-type]
    damage_end = archives[0].read_bytes()[:-1]
    archives[0].write_bytes(damage_end)
    assert both() == sum(sizes)  # type: ignore[arg-type]
    assert Expected(archives)() is None
    archives[0].unlink()
    assert Expected(archives)() is None
