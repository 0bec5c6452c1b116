"""The arguments of tasks: which are taken, which are refused, and how they travel."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from portal.ops.errors import ConfigurationError
from portal.ops.model import VerifyLevel
from worker import arguments as module
from worker.arguments import (
    Arguments,
    BackupArguments,
    DrillArguments,
    FullArguments,
    MediaArguments,
    OffsiteCopyArguments,
    OffsiteVerifyArguments,
    PruneArguments,
    RestoreArguments,
    RollbackArguments,
    VerifyArguments,
    word,
)
from worker.errors import RefusedError

MOMENT = "2026-11-22T02:00:00+00:00"


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (Arguments, {}),
        (Arguments, {"actor": None}),
        (Arguments, {"actor": "x" * 4096}),
        (BackupArguments, {"moment": MOMENT, "confirm_loss": True}),
        (BackupArguments, {"moment": MOMENT, "confirm_loss": ["database", "media"]}),
        (MediaArguments, {"moment": MOMENT, "changed": []}),
        (MediaArguments, {"moment": MOMENT, "changed": None}),
        (RestoreArguments, {"moment": MOMENT, "jobs": 4}),
        (FullArguments, {"moment": MOMENT, "complete": True}),
        (VerifyArguments, {"archive": "a", "level": "dump"}),
        (RollbackArguments, {"restore_id": "a"}),
        (PruneArguments, {"dry_run": True}),
        (DrillArguments, {"archive": "a"}),
        (OffsiteCopyArguments, {"archive": "a", "again": True}),
        (OffsiteVerifyArguments, {"archive": "a", "level": "dump"}),
    ],
)
def test_values_of_the_types_of_the_fields_are_taken(kind: type[Arguments], given: dict[str, Any]) -> None:
    """A list arrives as a tuple."""
    found = kind.of(given)
    expected = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    assert {name: getattr(found, name) for name in given} == expected


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (Arguments, {"actor": 7}),
        (Arguments, {"actor": ["ann"]}),
        (Arguments, {"actor": {}}),
        (Arguments, {"actor": "x" * 4097}),
        (Arguments, {"actor": "a\0b"}),
        (Arguments, {"of": "ann"}),
        (BackupArguments, {"moment": None}),
        (BackupArguments, {"moment": MOMENT, "confirm_loss": 1}),
        (BackupArguments, {"moment": MOMENT, "confirm_loss": "all"}),
        (BackupArguments, {"moment": MOMENT, "confirm_loss": [True]}),
        (MediaArguments, {"moment": MOMENT, "changed": ["a", 7]}),
        (MediaArguments, {"moment": MOMENT, "changed": ["a", "b\0"]}),
        (MediaArguments, {"moment": MOMENT, "changed": ["x" * 4097]}),
        (MediaArguments, {"moment": MOMENT, "incremental": 1}),
        (RestoreArguments, {"moment": MOMENT, "jobs": True}),
        (RestoreArguments, {"moment": MOMENT, "jobs": 4.0}),
        (RestoreArguments, {"moment": MOMENT, "patterns": None}),
    ],
)
def test_anything_else_is_refused(kind: type[Arguments], given: dict[str, Any]) -> None:
    """With the argument's name, and who makes tasks."""
    with pytest.raises(RefusedError, match=rf"argument '{list(given)[-1]}' that is invalid\n.*hint: Tasks are made by"):
        kind.of(given)


def test_a_task_without_what_it_needs_is_refused() -> None:
    """An archive to verify, or the moment of a backup."""
    for kind in (VerifyArguments, BackupArguments):
        with pytest.raises(RefusedError, match="lacks an argument"):
            kind.of({})


def test_a_list_has_a_longest_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """One path more is refused."""
    monkeypatch.setattr(module, "_MOST_PATHS", 3)
    assert MediaArguments.of({"moment": MOMENT, "changed": ["a", "b", "c"]}).changed == ("a", "b", "c")
    with pytest.raises(RefusedError):
        MediaArguments.of({"moment": MOMENT, "changed": ["a", "b", "c", "d"]})


def test_what_nobody_says_is_the_careful_choice() -> None:
    """A task without options verifies, confirms nothing, and leaves nothing out."""
    restore = RestoreArguments(moment=MOMENT)
    assert (restore.actor, restore.archive, restore.at, restore.scope, restore.mode) == (None, "", None, "full", "auto")
    assert (restore.dry_run, restore.exact, restore.create_database) == (False, False, False)
    assert (restore.allow_unverified, restore.allow_outside_links, restore.verify) == (False, False, True)
    assert FullArguments(moment=MOMENT) == FullArguments(moment=MOMENT, complete=False, confirm_loss=False)
    assert MediaArguments(moment=MOMENT) == MediaArguments(moment=MOMENT, incremental=False, changed=None)
    assert VerifyArguments(archive="latest").level == "contents"
    assert (DrillArguments().archive, PruneArguments().dry_run) == ("latest", False)
    assert OffsiteVerifyArguments() == OffsiteVerifyArguments(archive=None, level="checksum")
    assert OffsiteCopyArguments() == OffsiteCopyArguments(archive=None, again=False)


def test_an_argument_with_its_default_does_not_travel() -> None:
    """Any other does, also one that is false."""
    assert RestoreArguments(moment=MOMENT).to_dict() == {"moment": MOMENT}
    assert RestoreArguments(moment=MOMENT, verify=False, patterns=("a",)).to_dict() == {
        "moment": MOMENT,
        "verify": False,
        "patterns": ["a"],
    }


def test_a_moment_is_one_in_any_zone() -> None:
    """It is shown in UTC; what is none, or lies outside all calendars, is refused."""
    assert BackupArguments(moment="2026-11-22T04:00:00+02:00").when() == datetime(2026, 11, 22, 2, tzinfo=UTC)
    assert BackupArguments(moment=MOMENT).when().tzinfo is UTC
    for text in ("yesterday", "", "0001-01-01T00:00:00+23:00", "9999-12-31T23:59:59-23:00"):
        with pytest.raises(RefusedError, match="is no moment"):
            BackupArguments(moment=text).when()


def test_a_word_is_one_of_those_that_there_are() -> None:
    """Another is named, with the choice."""
    assert word(VerifyLevel, "dump") is VerifyLevel.DUMP
    with pytest.raises(ConfigurationError, match=r"'glance' is none of .*contents.*dump") as caught:
        word(VerifyLevel, "glance")
    assert caught.value.__suppress_context__
