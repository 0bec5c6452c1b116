"""Rollbacks, discarded rollback data, and restores that were interrupted."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING

from portal.ops.repository.access_log import AccessLog
from tests.support.restores import cut_off, done, noon, refused, snapshot
from tests.support.restoring import execute

if TYPE_CHECKING:
    from tests.support.world import World


class TestGoingBack:
    """Which restore is rolled back, and in which order."""

    def test_only_the_uppermost(self, world: World) -> None:
        """A restore that another one lies on is not rolled back before that one; then it is."""
        first = done(world.job(clock=noon).restore_full("latest")).restore_id
        execute(world.portal.database, "UPDATE mark SET value = 'between'")
        between = world.state()
        second = done(world.job(clock=noon).restore_full("latest")).restore_id
        assert [one["restore_id"] for one in world.job().list_restores()] == [second, first]
        assert any(
            f"  database {world.portal.database.name} on " in line for line in world.job().plan_rollback()[1].lines()
        )
        refused(world.job().rollback(first), 1, f"{second} was restored over {first}", f"--rollback {second}")
        assert world.state() == world.before
        done(world.job().rollback())
        assert world.state() == between
        done(world.job().rollback())
        assert world.state() == world.after

    def test_one_that_is_not_in_the_way(self, world: World) -> None:
        """Restores of different things can be rolled back in any order."""
        first = done(world.job().restore_database("latest")).restore_id
        done(world.job().restore_media("latest"))
        done(world.job().rollback(first))
        assert world.state()[0] == world.after[0]

    def test_nobody_says_yes(self, world: World) -> None:
        """A rollback is asked for too."""
        done(world.job().restore_full("latest"))
        refused(world.job(confirm=lambda _: False).rollback(), 3)
        assert world.state() == world.before

    def test_what_it_needs_is_gone(self, world: World) -> None:
        """Where the old database was dropped by hand, nothing is rolled back, not even the files."""
        result = done(world.job().restore_full("latest"))
        world.server.drop_database(result.facts["database"]["kept_database"])
        refused(world.job().rollback(), 1, "cannot be rolled back any more", f"--discard {result.restore_id}")
        assert world.state() == world.before

    def test_twice(self, world: World) -> None:
        """What was rolled back is not rolled back again, and its result offers no rollback."""
        result = done(world.job().restore_full("latest"))
        assert result.to_dict()["rollback"] == f"./tools/restore.sh --rollback {result.restore_id}"
        assert done(world.job().rollback()).to_dict()["rollback"] is None
        refused(world.job().rollback(result.restore_id), 1, "was rolled back already")
        refused(world.job().rollback(), 1, "there is no restore that could be rolled back")


class TestForgetting:
    """What takes a restore back is kept for a while."""

    def test_by_name(self, world: World) -> None:
        """What was forgotten leaves neither database nor files nor record, and what is live stays."""
        restore_id = done(world.job().restore_full("latest")).restore_id
        assert len(world.databases()) == 2
        (listed,) = world.job().list_restores()
        assert any("_before_" in kept for kept in listed["kept"])
        done(world.job().discard(restore_id))
        assert world.databases() == {world.portal.database.name}
        assert world.stages() == []
        assert world.job().list_restores() == []
        assert world.state() == world.before

    def test_in_place(self, world: World) -> None:
        """The safety dump of a restore in place goes too."""
        restore_id = done(world.job(mode="in-place").restore_database("latest")).restore_id
        done(world.job().discard(restore_id))
        assert not (world.portal.archives / ".restores" / restore_id).exists()

    def test_asks(self, world: World) -> None:
        """Nothing is forgotten that nobody agreed to."""
        restore_id = done(world.job().restore_media("latest")).restore_id
        refused(world.job(confirm=lambda _: False).discard(restore_id), 3)
        done(world.job().rollback(restore_id))

    def test_of_itself(self, world: World) -> None:
        """After so many days what an older restore keeps is removed when a later one has succeeded."""
        old = done(world.job(clock=noon).restore_full("latest")).restore_id
        younger = done(world.job(clock=lambda: noon() + timedelta(days=6)).restore_media("latest")).restore_id
        later = world.job(clock=lambda: noon() + timedelta(days=8))
        newest = done(later.restore_media("latest")).restore_id
        assert [one["restore_id"] for one in later.list_restores()] == [newest, younger]
        logged = AccessLog(later.repository).entries()
        assert [entry.subject for entry in logged if entry.action == "discard"] == [old]
        assert world.databases() == {world.portal.database.name}
        assert not any(old in name for name in world.stages())

    def test_never_the_newest(self, world: World) -> None:
        """However short the time is, the last restore can be rolled back."""
        done(world.job(rollback_days=0).restore_full("latest"))
        done(world.job().rollback())
        assert world.state() == world.after

    def test_not_by_a_restore_that_fails(self, world: World) -> None:
        """A restore that was refused removes nothing."""
        done(world.job(clock=noon).restore_media("latest"))
        refused(world.job(confirm=lambda _: False).restore_media("latest"), 3)
        assert len(world.job().list_restores()) == 1


class TestCutOff:
    """A restore that was interrupted is found by the next one."""

    def test_a_dry_run_only_tells(self, world: World) -> None:
        """A dry run says that something is to be finished, and leaves it alone."""
        restore_id = cut_off(world)
        before = snapshot(world.portal.directory)
        result = done(world.job(dry_run=True).restore_full("latest"))
        assert any(restore_id in warning and "its remains will be removed" in warning for warning in result.warnings)
        assert snapshot(world.portal.directory) == before

    def test_it_is_listed(self, world: World) -> None:
        """The list of restores has it too."""
        restore_id = cut_off(world)
        (listed,) = world.job().list_restores()
        assert (listed["restore_id"], listed["state"], listed["can_be_taken_back"]) == (restore_id, "staging", False)

    def test_the_next_one_removes_its_remains(self, world: World) -> None:
        """Even a restore of an archive that does not exist first removes what the last one has left."""
        restore_id = cut_off(world)
        result = refused(world.job().restore_full("absent"), 2, "archive not found")
        assert any(restore_id in warning and "its remains are removed" in warning for warning in result.warnings)
        assert world.databases() == {world.portal.database.name}
        assert world.stages() == []
        assert world.job().list_restores() == []

    def test_on_a_server_that_does_not_answer(self, world: World) -> None:
        """It stands in the way of what goes to the same place, and of nothing else; it can be given up."""
        restore_id = cut_off(world)
        record = world.portal.archives / ".restores" / f"{restore_id}.json"
        found = json.loads(record.read_text())
        found["parts"]["database"]["port"] = 1
        record.write_text(json.dumps(found))
        result = done(world.job().restore_database("latest"))
        assert any(
            restore_id in warning and "cannot be finished or undone now" in warning for warning in result.warnings
        )
        refused(world.job().restore_media("latest"), 1, "has to be finished or undone first", f"--discard {restore_id}")
        given_up = done(world.job().discard(restore_id))
        assert any("to be removed by hand" in warning for warning in given_up.warnings)
        done(world.job().restore_media("latest"))

    def test_what_was_asked_for_is_remembered(self, world: World) -> None:
        """What another process finishes is what was asked for, whatever is asked for now."""
        result = done(world.job(exact=True, create_database=True, mode="swap").restore_full("latest"))
        record = world.job()._context.history.record(result.restore_id)
        parts = world.job(mode="in-place", db_host="elsewhere", media_path="/elsewhere")._context.parts_of(record)
        assert [part.record() for part in parts] == list(record.parts.values())
        assert record.parts["media"]["exact"] is True
        assert record.parts["database"]["mode"] == "swap"
