"""What is said of a restore: its plan, its record, its result; and how errors become results."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from portal.ops.errors import BusyError, DiskFullError, OpsError, RestoreError
from portal.ops.model import Component
from portal.ops.restore.config import RestoreResult, RestoreScope
from portal.ops.restore.journal import RestoreRecord, RestoreState
from portal.ops.restore.outcome import ResultBuilder, reported, warnings_of
from portal.ops.restore.plan import RestorePlan
from tests.support.events import Events

if TYPE_CHECKING:
    from portal.ops.restore.plan import PartPlan

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Words:
    """The plan of a part."""

    said: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    blockers: tuple[OpsError, ...] = ()

    def lines(self) -> list[str]:
        """What it says."""
        return list(self.said)


def plan(**changes: Any) -> RestorePlan:
    facts: dict[str, Any] = {
        "backup_id": "full_1",
        "backup_file": Path("/archives/full_1.tar.gz"),
        "timestamp": "2026-01-02T03:04:05Z",
        "components": (Component.DATABASE, Component.MEDIA),
    }
    return RestorePlan(**(facts | changes))


class TestPlan:
    """What a person is asked."""

    def test_of_an_archive(self) -> None:
        """What is restored and when it was made, each component, warnings and what is in the way."""
        parts = {Component.DATABASE: Words(("one", "two")), Component.MEDIA: Words(("three",))}
        found = plan(
            parts=cast("dict[Component, PartPlan]", parts),
            warnings=("mind this",),
            blockers=(BusyError("in use"), RestoreError("no")),
        )
        assert found.lines() == [
            "Restore database, uploads from full_1, made 2026-01-02 03:04:05 UTC.",
            "",
            "Database",
            "  one",
            "  two",
            "",
            "Uploads",
            "  three",
            "",
            "Warning: mind this",
            "",
            "In the way: in use",
            "In the way: no",
        ]

    def test_of_a_moment(self) -> None:
        """With its sources; nothing else where there is nothing."""
        found = plan(backup_id="noon", timestamp="", is_moment=True, sources=("Uploads: those of x",))
        assert found.lines() == ["Restore database, uploads as of noon.", "Uploads: those of x"]
        assert plan(timestamp="").lines() == ["Restore database, uploads from full_1."]

    def test_of_a_rollback(self) -> None:
        """With the places that the restore went to."""
        found = plan(takes_back="restore_1", targets=("database dojo on db:1", "uploads in /up"))
        assert found.lines() == [
            "Roll back restore_1: database, uploads as before full_1 was restored.",
            "  database dojo on db:1",
            "  uploads in /up",
        ]

    def test_of_a_discard(self) -> None:
        """With what is removed for ever."""
        assert plan(discards="restore_1", kept=("database old",)).lines() == [
            "Discard the rollback data of restore_1 (full_1): no rollback is possible afterwards. Removed for ever:",
            "  database old",
        ]


def test_a_record_tells_where_it_went() -> None:
    """A log goes beside the live one, everything else in its place."""
    record = RestoreRecord(
        restore_id="restore_1",
        number=1,
        backup_id="full_1",
        backup_file="/a",
        started="then",
        changed="now",
        parts={
            "database": {"database": "dojo", "host": "db", "port": 1},
            "media": {"path": "/up"},
            "audit_logs": {"path": "/log"},
        },
    )
    assert record.state is RestoreState.STAGING
    assert record.told() == {
        "restore_id": "restore_1",
        "backup_id": "full_1",
        "started": "then",
        "changed": "now",
        "state": "staging",
        "components": ["database", "media", "audit_logs"],
        "targets": ["database dojo on db:1", "uploads in /up", "audit log beside /log"],
    }


@pytest.mark.parametrize("state", RestoreState)
def test_only_the_end_of_a_restore_is_settled(state: RestoreState) -> None:
    """All else was interrupted, or is at work."""
    assert state.is_settled is (state in (RestoreState.APPLIED, RestoreState.ROLLED_BACK))


def builder(**facts: Any) -> ResultBuilder:
    return ResultBuilder(
        result=RestoreResult(success=True, backup_id="full_1", scope=RestoreScope.FULL, timestamp=NOON, **facts)
    )


class TestResult:
    """What comes of it."""

    def test_a_warning_is_told_once(self) -> None:
        """In the order in which they came."""
        made = builder(warnings=("a",))
        made.warn(["b", "a"])
        made.warn(["c", "b"])
        assert made.result.warnings == ("a", "b", "c")

    def test_an_error_ends_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """With its hint and its exit code, in the log too; what was known stays known, and the time is taken."""
        events = Events(monkeypatch, "portal.ops.restore.outcome")
        made = builder(restore_id="restore_1", duration_seconds=-1.0)
        with reported(made):
            raise BusyError("in use", hint="Wait.")
        found = made.result
        assert (found.success, found.exit_code, found.error) == (False, 5, "in use\n  hint: Wait.")
        assert (found.restore_id, found.duration_seconds >= 0) == ("restore_1", True)
        assert events.all == [("error", "restore_failed", {"error": "in use\n  hint: Wait."})]

    @pytest.mark.parametrize(("number", "kind"), [(errno.EIO, RestoreError), (errno.ENOSPC, DiskFullError)])
    def test_a_refusal_of_the_system_ends_it(self, number: int, kind: type[OpsError]) -> None:
        """As an error of the restore, with what to do."""
        made = builder()
        with reported(made):
            raise OSError(number, "refused", "/place")
        assert made.result.exit_code == kind.exit_code
        assert (made.result.error or "").startswith("cannot use /place: ")
        assert "it goes on, or undoes what was begun" in (made.result.error or "")

    def test_nothing_else_does(self) -> None:
        """A fault of the program is not a result."""
        with pytest.raises(ZeroDivisionError), reported(builder()):
            raise ZeroDivisionError

    def test_without_an_error_it_is_what_was_noted(self) -> None:
        """And took its time."""
        made = builder(duration_seconds=-1.0)
        with reported(made):
            pass
        assert (made.result.success, made.result.error, made.result.duration_seconds >= 0) == (True, None, True)

    def test_warnings_of_all_parts(self) -> None:
        """A part without any has none."""
        assert warnings_of({"media": {"warnings": ["a", "b"]}, "database": {}, "x": {"warnings": ()}}) == ["a", "b"]

    def test_as_json(self) -> None:
        """A rollback is offered where there is something to roll back; a moment only where it was restored to."""
        found = builder(
            backup_file="/a", components_restored=("media",), warnings=("w",), duration_seconds=1.23456, facts={"a": 1}
        ).result.to_dict()
        assert found == {
            "success": True,
            "backup_file": "/a",
            "backup_id": "full_1",
            "scope": "full",
            "timestamp": "2026-01-02T12:00:00Z",
            "dry_run": False,
            "components_restored": ["media"],
            "warnings": ["w"],
            "error": None,
            "duration_seconds": 1.235,
            "restore_id": "",
            "rollback": None,
            "facts": {"a": 1},
            "portal": None,
            "plan": [],
            "format_version": 1,
        }
        made = builder(restore_id="restore_1", at="noon", portal={"answers": True}, plan=("p",)).result
        offered = made.to_dict()
        assert (offered["at"], offered["portal"], offered["plan"]) == ("noon", {"answers": True}, ["p"])
        assert offered["rollback"] == "./tools/restore.sh --rollback restore_1"
        assert made.exit_code == 0
        assert builder(restore_id="restore_1", is_rollback=True).result.to_dict()["rollback"] is None
