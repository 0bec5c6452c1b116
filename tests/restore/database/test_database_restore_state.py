"""The steps of a restore of a database, by one process or several, and the programs that do them."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.errors import (
    NotIntactError,
    RestoreError,
)
from portal.ops.postgres.pg_restore import Restorer, explain_failure, find_restorer
from portal.ops.restore.database.restore import DatabaseState
from tests.support.database_contents import read_contents
from tests.support.database_restores import (
    IN_PLACE,
    Recorder,
    as_superuser,
)
from tests.support.fake_runner import FakeRunner, Script
from tests.support.restoring import ask, bench, execute

if TYPE_CHECKING:
    from collections.abc import Iterator

    from demo.postgres import EmbeddedPostgres
    from portal.ops.runtime.process import RunningProcess, SystemRunner
    from tests.support.restoring import Bench


class TestState:
    """How far a restore is, as the server tells it."""

    def test_a_swap_from_stage_to_rollback(self, portal: Bench) -> None:
        """Each step leaves the state that the next one needs."""
        restore = portal.restore()
        states = [restore.state()]
        for step in (lambda: restore.stage(portal.source(), portal.rows), restore.apply, restore.rollback):
            step()
            states.append(restore.state())
        assert states == ["nothing", "staged", "applied", "rolled_back"]

    def test_another_process_finishes(self, portal: Bench) -> None:
        """What was staged is put in place by somebody who knows the restore's id only, and only once."""
        restore = portal.restore()
        restore.stage(portal.source(), portal.rows)
        execute(portal.target, "DELETE FROM note")
        for _ in range(2):
            portal.restore(restore_id=restore.restore_id).finish()
        assert ask(portal.target, "SELECT count(*) FROM note") == portal.rows["public.note"]

    def test_another_process_undoes(self, portal: Bench) -> None:
        """What was staged is removed by somebody who knows the restore's id only; a second time does no harm."""
        restore = portal.restore()
        restore.stage(portal.source(), portal.rows)
        for _ in range(2):
            portal.restore(restore_id=restore.restore_id).undo()
        assert portal.databases() == {portal.target.name}

    def test_in_place_is_known_by_its_safety_dump(self, portal: Bench) -> None:
        """Another process sees that a restore in place was applied, and takes it back."""
        execute(portal.target, "DELETE FROM note")
        restore = portal.restored(mode=IN_PLACE)
        other = portal.restore(restore_id=restore.restore_id, mode=IN_PLACE)
        assert other.state() is DatabaseState.APPLIED
        other.undo()
        assert ask(portal.target, "SELECT count(*) FROM note") == 0
        assert other.state() is DatabaseState.NOTHING

    def test_the_safety_dump_of_another_restore_is_not_taken(self, portal: Bench) -> None:
        """A safety dump that an earlier restore has left in the same place is replaced, not restored."""
        portal.restored(mode=IN_PLACE)
        execute(portal.target, "DELETE FROM note")
        other = portal.restore(mode=IN_PLACE)
        assert other.state() is DatabaseState.NOTHING
        other.stage(portal.source(), portal.rows)
        other.apply()
        other.rollback()
        assert ask(portal.target, "SELECT count(*) FROM note") == 0

    def test_a_table_that_the_backup_brought_goes_with_the_rollback(self, portal: Bench) -> None:
        """Rolled back in place, a table that was not there before is gone, though it refers to others."""
        execute(portal.target, "DROP TABLE finding_endpoint")
        before = read_contents(portal.target)
        portal.restored(mode=IN_PLACE).rollback()
        assert read_contents(portal.target) == before

    def test_a_rollback_that_drops_a_table_restores_everything_else(self, rich: Bench) -> None:
        """Large objects, sequences, definitions and rights come back in the transaction that drops a table."""
        execute(rich.target, "DROP TABLE session", "SELECT nextval('ticket')", "SELECT lo_put(70002, 0, 'x')")
        before = read_contents(rich.target)
        restore = rich.restored(mode=IN_PLACE)
        assert read_contents(rich.target) != before
        restore.rollback()
        assert read_contents(rich.target) == before

    def test_a_rollback_that_fails_changes_nothing(self, portal: Bench) -> None:
        """A table that the restore brought, and what was written into it, outlasts a rollback that cannot be done."""
        execute(portal.target, "DROP TABLE finding_endpoint")
        before = read_contents(portal.target)
        restore = portal.restored(mode=IN_PLACE)
        execute(portal.target, "INSERT INTO finding_endpoint VALUES (2, 1)", "CREATE VIEW v AS SELECT id FROM finding")
        live = read_contents(portal.target)
        with pytest.raises(RestoreError, match=r"table public\.finding because other objects depend") as caught:
            restore.rollback()
        assert "drop them first" in caught.value.hint
        assert read_contents(portal.target) == live
        assert restore.state() is DatabaseState.APPLIED
        execute(portal.target, "DROP VIEW v")
        restore.rollback()
        assert read_contents(portal.target) == before

    @pytest.mark.parametrize("keeps_bytes", [0, 2_000, 20_000])
    def test_a_rollback_whose_commands_are_cut_short_changes_nothing(self, portal: Bench, keeps_bytes: int) -> None:
        """Where pg_restore ends before it has written all, psql comes to the end of it and commits nothing."""
        execute(portal.target, "DROP TABLE finding_endpoint")
        restore = portal.restored(mode=IN_PLACE)
        live = read_contents(portal.target)
        runner = CuttingShort(portal.runner, keeps_bytes)
        again = portal.restore(restore_id=restore.restore_id, mode=IN_PLACE, runner=runner)
        with pytest.raises(RestoreError, match="pg_restore was ended by SIGKILL"):
            again.rollback()
        assert read_contents(portal.target) == live
        assert restore.state() is DatabaseState.APPLIED


class TestFilling:
    """A dump that goes into the server without ever being on the disk."""

    def test_several_programs_fill_it(self, portal: Bench) -> None:
        """Where several tables are large, each of several programs loads its share, and all rows are there."""
        before, runner = read_contents(portal.target), Recorder(portal.runner)
        execute(portal.target, "DELETE FROM note")
        restore = portal.restore(runner=runner)
        restore.stage(portal.source(**{"public.finding": 10, "public.note": 9, "public.test": 8}), portal.rows)
        restore.apply()
        assert len([command for command in runner.commands if "--section=data" in command]) == 2
        assert read_contents(portal.target) == before

    def test_it_is_not_on_the_disk(self, portal: Bench) -> None:
        """A swap writes no dump to the place that is for it."""
        portal.restored()
        assert not portal.source().path.exists()

    def test_an_owner_without_rights_to_a_table(self, owned: Bench, postgres: EmbeddedPostgres, tmp_path: Path) -> None:
        """Rights come after the rows: a table that its owner may not write to is filled, and stays so."""
        execute(as_superuser(owned.target, postgres), f"ALTER ROLE {owned.target.user} CREATEDB")
        execute(owned.target, "REVOKE INSERT, UPDATE ON finding FROM CURRENT_USER")
        (tmp_path / "other").mkdir()
        with bench(owned.target, postgres.bin_dir, tmp_path / "other") as made:
            made.restored()
            assert ask(made.target, "SELECT count(*) FROM finding") == made.rows["public.finding"] > 0
            assert not ask(made.target, "SELECT has_table_privilege('finding', 'INSERT')")

    @pytest.mark.parametrize("weights", [{}, {"public.finding": 10, "public.note": 10}])
    def test_an_archive_that_is_damaged_further_on(self, portal: Bench, weights: dict[str, int]) -> None:
        """What is found when rows are in the server already leaves nothing there."""
        before, databases, runner = read_contents(portal.target), portal.databases(), Recorder(portal.runner)

        @contextmanager
        def content() -> Iterator[Iterator[memoryview]]:
            def pieces(opened: Iterator[memoryview]) -> Iterator[memoryview]:
                for _ in range(4):
                    yield next(opened)
                raise NotIntactError("the frame is damaged", hint="take another archive")

            with portal.source().open() as opened:
                yield pieces(opened)

        with pytest.raises(NotIntactError, match="the frame is damaged"):
            portal.restore(runner=runner).stage(replace(portal.source(**weights), open=content), portal.rows)
        assert len([command for command in runner.commands if "--section=data" in command]) == (2 if weights else 1)
        assert (read_contents(portal.target), portal.databases()) == (before, databases)

    @pytest.mark.parametrize("which", [0, 1])
    def test_one_of_several_programs_is_killed(self, portal: Bench, which: int) -> None:
        """One that ends before its time ends all of them, and leaves nothing."""
        before, databases = read_contents(portal.target), portal.databases()
        source = portal.source(**{"public.finding": 10, "public.note": 10})
        with pytest.raises(RestoreError, match="pg_restore was ended by SIGKILL"):
            portal.restore(runner=KillingOne(portal.runner, which)).stage(source, portal.rows)
        assert (read_contents(portal.target), portal.databases()) == (before, databases)


class TestPrograms:
    """pg_restore, and how it is called."""

    def test_the_password_is_in_no_argument(self, portal: Bench) -> None:
        """The password reaches the programs by their environment alone."""
        runner = Recorder(portal.runner)
        portal.restored(runner=runner)
        assert portal.target.password is not None
        password = portal.target.password.reveal()
        assert any("--clean --if-exists --no-owner --exit-on-error" in command for command in runner.commands)
        assert not any(password in command for command in runner.commands)

    @pytest.mark.parametrize("real", ["", "could not execute query: ERROR:  relation does not exist\n"])
    def test_words_of_parallel_programs_that_are_mixed(self, portal: Bench, real: str) -> None:
        """The processes of a pg_restore with several connections write at once, so one begins within another's line."""
        refused = 'could not execute query: ERROR:  unrecognized configuration parameter "transaction_timeout"\n'
        words = f"pg_restore:pg_restore:  error: error: {refused}{refused}{real}"
        words += "pg_restore: warning: errors ignored on restore: 2\n"
        version = Script(stdout=b"pg_restore (PostgreSQL) 18.4\n")
        fake = FakeRunner({"pg_restore": [version, Script(stderr=words, returncode=1)]})
        restorer = find_restorer(16, 18, runner=fake, bin_dir=Path("/fake"))
        assert fills(restorer, portal) is (not real)

    def test_the_setting_that_is_refused_is_not_the_reason(self) -> None:
        """What made a restore fail is told, and not what is refused each time."""
        refused = "pg_restore: error: could not execute query: ERROR:  "
        words = f'{refused}unrecognized configuration parameter "transaction_timeout"\n{refused}must be owner of x\n'
        assert explain_failure(1, words).message == "pg_restore failed: must be owner of x"

    @pytest.mark.parametrize(("errors", "accepted"), [([], True), (["ERROR:  relation does not exist"], False)])
    def test_an_older_server_may_lack_one_setting(self, portal: Bench, errors: list[str], accepted: bool) -> None:
        """That an older server does not know a setting of pg_restore 17 is no failure; anything else is."""
        errors = ['ERROR:  unrecognized configuration parameter "transaction_timeout"', *errors]
        words = "".join(f"pg_restore: error: could not execute query: {error}\n" for error in errors)
        words += f"pg_restore: warning: errors ignored on restore: {len(errors)}\n"
        version = Script(stdout=b"pg_restore (PostgreSQL) 17.10\n")
        fake = FakeRunner({"pg_restore": [version, Script(stderr=words, returncode=1)]})
        restorer = find_restorer(16, 17, runner=fake, bin_dir=Path("/fake"))
        assert fills(restorer, portal) is accepted
        assert "--exit-on-error" not in fake.commands[1]


def fills(restorer: Restorer, made: Bench) -> bool:
    try:
        restorer.stage(made.target, [], made.dump)
    except RestoreError:
        return False
    return True


class KillingOne:
    """A runner that has one of the programs that load rows killed as soon as it reads."""

    def __init__(self, runner: Any, which: int) -> None:
        self._runner: SystemRunner = runner
        self._left = which

    def start(self, argv: Any, **options: Any) -> RunningProcess:
        """Start a program."""
        if "--section=data" in argv:
            self._left -= 1
            if self._left == -1:
                argv = ["/bin/sh", "-c", "head -c 1000 >/dev/null; kill -KILL $$"]
        return self._runner.start(argv, **options)


class CuttingShort:
    """A runner whose pg_restore is killed when it has written so many bytes of its commands."""

    def __init__(self, runner: Any, keeps_bytes: int) -> None:
        self._runner: SystemRunner = runner
        self._shell = ["/bin/sh", "-c", f'"$@" 2>/dev/null | head -c {keeps_bytes}; kill -KILL $$', "sh"]

    def start(self, argv: Any, **options: Any) -> RunningProcess:
        """Start a program."""
        writes_commands = "--file=-" in argv and "--single-transaction" in argv
        return self._runner.start([*self._shell, *argv] if writes_commands else argv, **options)
