"""The plan of a database restore in words, and the comparison of rows."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import pytest

from portal.ops.errors import NotIntactError
from portal.ops.postgres.database_names import Marked, Role
from portal.ops.postgres.server import Session
from portal.ops.restore.database.model import DatabasePlan, RestoreMode
from portal.ops.restore.database.row_check import RowCheck, check_rows

NOW: Final = datetime(2026, 1, 2, tzinfo=UTC)


def plan(**changes: Any) -> DatabasePlan:
    facts: dict[str, Any] = {
        "database": "dojo",
        "host": "db",
        "port": 5433,
        "exists": True,
        "mode": RestoreMode.SWAP,
        "reason": "because",
        "server_version": "17.2",
        "pg_restore_version": "17.3",
        "rows_now": {"public.a": 1000, "public.b": 234},
        "rows_are_estimated": False,
        "rows_in_backup": {"public.a": 2000},
        "needed_bytes": 3_000_000,
        "free_bytes": 5_000_000,
        "sessions": (),
        "leftovers": (),
        "blockers": (),
        "warnings": (),
    }
    return DatabasePlan(**(facts | changes))


def session(pid: int) -> Session:
    return Session(pid=pid, application="dojo", user="app", state="", can_be_ended=True)


def marked(number: int) -> Marked:
    return Marked(name=f"dojo_before_{number}", role=Role.BEFORE, restore_id=f"restore_{number}", moment=NOW)


class TestPlan:
    """What a person reads."""

    def test_all_of_it(self) -> None:
        """Server, rows now and then, mode, room; nothing of sessions and leftovers where there are none."""
        assert plan().lines() == [
            "Database dojo on db:5433 (PostgreSQL 17.2, pg_restore 17.3)",
            "Now: 2 tables, 1,234 rows",
            "In the backup: 1 table, 2,000 rows",
            "Mode swap: because",
            "Room on the server for a second copy: about 3.0 MB; 5.0 MB are free",
        ]

    def test_what_is_not_known(self) -> None:
        """It is said, and not invented."""
        unknown = plan(
            pg_restore_version=None, rows_are_estimated=True, rows_in_backup={}, free_bytes=None, mode=RestoreMode.AUTO
        )
        assert unknown.lines() == [
            "Database dojo on db:5433 (PostgreSQL 17.2)",
            "Now: 2 tables, about 1,234 rows",
            "In the backup: the manifest does not say how many rows",
            "Mode auto: because",
            "Room on the server for a second copy: about 3.0 MB; how much is free cannot be seen from here: look at "
            "the server's disk before you go on",
        ]

    def test_a_full_disk_is_known(self) -> None:
        """No free byte is something else than an unknown number."""
        assert plan(free_bytes=0).lines()[-1].endswith("; 0 B are free")

    def test_a_database_that_is_not_there(self) -> None:
        """It has no rows."""
        assert plan(exists=False).lines()[1] == "Now: there is no such database; it will be created"

    @pytest.mark.parametrize("count", [1, 8, 9, 11])
    def test_sessions_and_leftovers(self, count: int) -> None:
        """Up to eight are named, and the others counted."""
        more = [f"  and {count - 8} more"] if count > 8 else []
        sessions = plan(sessions=tuple(map(session, range(count)))).lines()[5:]
        named = [f"  process {pid} (dojo, user app)" for pid in range(min(count, 8))]
        assert sessions == [f"{count} open session{'' if count == 1 else 's'} will be ended:", *named, *more]
        left = plan(leftovers=tuple(map(marked, range(count)))).lines()[5:]
        named = [f"  dojo_before_{number}" for number in range(min(count, 8))]
        assert left == ["Earlier restores have left:", *named, *more]


class TestRows:
    """What was restored, held against the manifest."""

    def test_equal_numbers(self) -> None:
        """Nothing is wrong, and nothing raised."""
        found = check_rows({"a": 1, "b": 0}, {"a": 1, "b": 0}, {})
        assert (found.wrong, found.moved, found.warnings()) == ((), (), [])
        found.raise_wrong()

    def test_without_numbers_in_the_manifest(self) -> None:
        """Nothing is compared."""
        assert check_rows({"a": 1}, {}, {}) == RowCheck(wrong=(), moved=())

    def test_every_difference_is_named(self) -> None:
        """More, fewer, a table that is missing, one that the backup does not have; an empty one counts too."""
        found = check_rows({"a": 1, "b": 5, "new": 0}, {"a": 2, "b": 4, "lost": 0}, {})
        assert found.wrong == (
            "a has 1 rows, not 2",
            "b has 5 rows, not 4",
            "lost has no rows, not 0",
            "new has 0 rows, not any: it is not in the backup",
        )

    def test_partitions_count_together(self) -> None:
        """Rows in another partition are a warning; rows that are missing are an error of the whole table."""
        roots = {"e_0": "e", "e_1": "e", "f_0": "f", "f_1": "f"}
        then = {"e_0": 3000, "e_1": 4000, "f_0": 1}
        found = check_rows({"e_0": 2000, "e_1": 5000, "f_0": 1, "f_1": 0}, then, roots)
        assert (found.wrong, found.moved) == ((), ("e",))
        assert found.warnings() == ["rows of e are in other partitions than they were; none is missing"]
        found = check_rows({"e_0": 2000, "e_1": 4000, "f_1": 1}, then, roots)
        assert (found.wrong, found.moved) == (("e has 6000 rows, not 7000",), ("f",))

    @pytest.mark.parametrize(("count", "more"), [(1, ""), (5, ""), (6, "; and 1 more"), (9, "; and 4 more")])
    def test_an_error_names_the_first_ones(self, count: int, more: str) -> None:
        """Five of them."""
        found = check_rows({}, {f"t{number}": 1 for number in range(count)}, {})
        with pytest.raises(NotIntactError) as caught:
            found.raise_wrong()
        named = "; ".join(f"t{number} has no rows, not 1" for number in range(min(count, 5)))
        assert caught.value.message == f"the restored rows differ from the backup: {named}{more}"
