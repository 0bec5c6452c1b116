"""What beat reads in a repository: archives, ends of operations, and verifications."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from beat.due import Held
from beat.repository_facts import logged, read_facts
from portal.ops.model import BackupType, VerifyLevel
from portal.ops.repository.access_log import AccessLog, Action, Outcome
from portal.ops.repository.repository import Repository
from portal.ops.repository.verifications import Verifications
from tests.support.kept import finding, put_archive
from worker.operations import (
    BACKUP_DATABASE,
    BACKUP_FULL,
    BACKUP_MEDIA,
    DRILL_RESTORE,
    OFFSITE_COPY,
    OFFSITE_PRUNE,
    OFFSITE_VERIFY,
    PRUNE_REPOSITORY,
    VERIFY_ARCHIVE,
)

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 11, 22, 9, 10, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    found = Repository(tmp_path / "archives")
    found.prepare()
    return found


def write(repository: Repository, *lines: tuple[Action, str, Outcome, dict[str, Any]]) -> None:
    """Have lines in the access log, a minute after each other."""
    log = AccessLog(repository)
    for number, (action, subject, outcome, details) in enumerate(lines):
        log.append(action, subject, outcome, who="ann", host="here", moment=NOW + number * MINUTE, **details)


@pytest.mark.parametrize("operations", [{BACKUP_FULL}, {BACKUP_FULL, VERIFY_ARCHIVE}, {OFFSITE_COPY}])
def test_archives_are_those_of_any_name(repository: Repository, operations: Any) -> None:
    """One that somebody has copied there has no type."""
    name = put_archive(repository.path, BackupType.MEDIA, NOW)
    (repository.path / f"{name}.tar.gz").rename(repository.path / "copied.tar.gz")
    (repository.path / f"{name}.tar.gz.sha256").unlink(missing_ok=True)
    name = put_archive(repository.path, BackupType.DATABASE, NOW - MINUTE)
    facts = read_facts(repository, operations)
    found = {held.name: held.type for held in facts.archives}
    assert found == {"copied": None, name: BackupType.DATABASE}
    assert Held(name=name, type=BackupType.DATABASE, moment=NOW - MINUTE) in facts.archives
    assert (facts.verified, facts.ended, facts.uncopied) == ({}, {}, False)


def test_verifications_are_read_where_somebody_asks(repository: Repository) -> None:
    """Those that there are."""
    names = [put_archive(repository.path, BackupType.FULL, NOW - number * MINUTE) for number in range(2)]
    Verifications(repository).record(finding(repository.path, names[0], VerifyLevel.DUMP), NOW)
    verified = read_facts(repository, {VERIFY_ARCHIVE}).verified
    assert {name: (one.level, one.moment) for name, one in verified.items()} == {names[0]: (VerifyLevel.DUMP, NOW)}
    assert read_facts(repository, {BACKUP_FULL}).verified == {}


def test_the_last_end_of_an_operation_counts(repository: Repository) -> None:
    """A prune's lines for single archives are no end, nor is a failure; a failed drill is one."""
    write(
        repository,
        (Action.PRUNE, "it", Outcome.DONE, {"removed": 3}),
        (Action.PRUNE, "it", Outcome.DONE, {"removed": 0}),
        (Action.DRILL, "it", Outcome.DONE, {}),
        (Action.DRILL, "it", Outcome.FAILED, {}),
        (Action.PRUNE, "it", Outcome.DONE, {"archives": ["x"]}),
        (Action.PRUNE, "it", Outcome.FAILED, {}),
        (Action.DRILL, "it", Outcome.REFUSED, {}),
        (Action.VERIFY, "it", Outcome.DONE, {}),
    )
    ended = read_facts(repository, {PRUNE_REPOSITORY}).ended
    assert ended == {PRUNE_REPOSITORY: NOW + MINUTE, DRILL_RESTORE: NOW + 3 * MINUTE}
    assert read_facts(repository, {BACKUP_FULL, OFFSITE_COPY}).ended == {}


@pytest.mark.parametrize(
    ("action", "operation"), [(Action.OFFSITE_VERIFY, OFFSITE_VERIFY), (Action.OFFSITE_PRUNE, OFFSITE_PRUNE)]
)
def test_the_end_at_a_destination_is_not_that_of_one_copy(
    repository: Repository, action: Action, operation: Any
) -> None:
    """It is about the destination itself."""
    write(
        repository,
        (action, "file:///there", Outcome.DONE, {"destination": "file:///there"}),
        (action, "full_20261122_020000_abcdef", Outcome.DONE, {"destination": "file:///there"}),
        (action, "file:///there", Outcome.FAILED, {"destination": "file:///there"}),
        (action, "file:///there", Outcome.DONE, {}),
    )
    assert read_facts(repository, {operation}).ended == {operation: NOW}


def test_whose_lines_of_the_log_are_those_of_scheduled_operations(repository: Repository) -> None:
    """A backup's by the type of its archive, whoever asked for it; others are passed over."""
    write(
        repository,
        (Action.BACKUP, "full_20261122_020000_abcdef", Outcome.DONE, {}),
        (Action.BACKUP, "database_20261122_020000_abcdef", Outcome.FAILED, {}),
        (Action.BACKUP, "media_20261122_020000_abcdef", Outcome.DONE, {}),
        (Action.BACKUP, "one", Outcome.FAILED, {}),
        (Action.RESTORE, "full_20261122_020000_abcdef", Outcome.DONE, {}),
        (Action.VERIFY, "full_20261122_020000_abcdef", Outcome.DONE, {}),
        (Action.PRUNE, "it", Outcome.DONE, {"archives": ["x"]}),
        (Action.PRUNE, "it", Outcome.DONE, {}),
    )
    found = [(operation, entry.number) for operation, entry in logged(repository)]
    first = found[0][1]
    assert [(operation, number - first) for operation, number in found] == [
        (BACKUP_FULL, 0),
        (BACKUP_DATABASE, 1),
        (VERIFY_ARCHIVE, 5),
        (PRUNE_REPOSITORY, 7),
    ]
    assert BACKUP_MEDIA not in dict(found)


def test_the_log_is_read_back_to_the_oldest_slot_only(repository: Repository) -> None:
    """An operation that has not ended since is not looked for in the log of years."""
    write(
        repository,
        (Action.DRILL, "it", Outcome.DONE, {}),
        (Action.PRUNE, "it", Outcome.DONE, {}),
    )
    day = timedelta(days=1)
    for since, found in ((NOW + day, {DRILL_RESTORE, PRUNE_REPOSITORY}), (NOW + day + MINUTE, {PRUNE_REPOSITORY})):
        assert read_facts(repository, {PRUNE_REPOSITORY}, since=since).ended.keys() == found
    assert read_facts(repository, {PRUNE_REPOSITORY}, since=NOW + 2 * day).ended == {}
