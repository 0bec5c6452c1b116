"""What a prune does about archives that cannot be read, and while others are at work."""

from __future__ import annotations

import os
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.errors import BusyError
from portal.ops.model import BackupId, VerifyLevel
from portal.ops.repository.catalogue import kin_of
from portal.ops.repository.locks import archive_lock, claim
from portal.ops.repository.pins import Pins
from portal.ops.repository.repository import Repository
from portal.ops.repository.verifications import Verifications
from portal.ops.retention import prune
from portal.ops.retention.prune import PruneJob
from tests.support import ages
from tests.support.kept import finding
from tests.support.pruning import FULL, MEDIA, NOW, POLICY, archives, assert_sound, job, put
from tests.support.waiting import LONG_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class TestDoubt:
    def test_a_finding_that_cannot_be_read(self, tmp_path: Path) -> None:
        """An archive that may have failed its verification does not take the place of a good one."""
        place = tmp_path / "repository"
        good, bad = put(place, FULL, 30), put(place, FULL, 20)
        Verifications(Repository(place)).record(finding(place, bad, VerifyLevel.DUMP, damage="gone bad"), NOW)
        (place / ".verifications" / f"{bad}.json").write_bytes(b"")
        assert job(place).run().removed == ()
        assert archives(place) == {good, bad}

    @pytest.fixture
    def chain(self, tmp_path: Path) -> tuple[Path, list[str]]:
        """An old chain of four under a newer base, and the names of the chain in order."""
        place = tmp_path / "repository"
        base = put(place, MEDIA, 60)
        middle = put(place, MEDIA, 50, parent=base)
        child = put(place, MEDIA, 40, parent=middle)
        names = [base, middle, child, put(place, MEDIA, 30, parent=child)]
        put(place, MEDIA, 1)
        return place, names

    @pytest.mark.parametrize("is_known", [True, False])
    @pytest.mark.parametrize(
        "spoil",
        [
            lambda path: path.write_bytes(b"garbage"),
            lambda path: (path.unlink(), path.symlink_to("/nowhere/cold.tar.gz")),
        ],
    )
    def test_the_middle_of_a_chain_that_cannot_be_read(
        self, chain: tuple[Path, list[str]], spoil: Callable[[Path], object], is_known: bool
    ) -> None:
        """What it stands on stays, whether that was known before or not."""
        place, names = chain
        if is_known:
            ages.age(place)
        spoil(place / f"{names[1]}.tar.gz")
        result = job(place).run()
        assert result.removed == ()
        assert ("cannot be read" in "".join(result.warnings)) is not is_known

    def test_the_end_of_a_chain_that_cannot_be_read(self, chain: tuple[Path, list[str]]) -> None:
        """Nobody else says what it stands on, so all that it may be stays; what is newer may go."""
        place, names = chain
        whole = archives(place)
        newer, _ = put(place, MEDIA, 25), put(place, MEDIA, 20)
        (place / f"{names[3]}.tar.gz").write_bytes(b"garbage")
        gone = {one.entry.name for one in job(place).run().removed}
        assert newer in gone
        assert whole <= archives(place)

    def test_a_full_backup_at_the_end_that_cannot_be_read(self, chain: tuple[Path, list[str]]) -> None:
        """It may have been a link of that chain, so all that it may stand on stays."""
        place, _ = chain
        last = put(place, FULL, 20)
        put(place, FULL, 1)
        whole = archives(place)
        (place / f"{last}.tar.gz").write_bytes(b"garbage")
        result = job(place).run()
        assert (result.removed, archives(place)) == ((), whole)
        assert f"{last} cannot be read, so its needs are unknown" in "".join(result.warnings)

    def test_one_that_comes_and_cannot_be_read(self, repository: Path) -> None:
        """It may need anything, so nothing more is removed, and that is said."""

        class Late(PruneJob):
            def plan(self) -> Any:
                found = super().plan()
                (repository / "media_20260301_110000_abcdef.tar.gz").write_bytes(b"half")
                (repository / "full_20260301_110000_abcdef.tar.gz").mkdir()
                return found

        result = Late(Repository(repository), POLICY, clock=lambda: NOW).run()
        assert (result.success, result.removed, len(result.spared)) == (True, (), 5)
        assert "media_20260301_110000_abcdef has come, and cannot be read" in result.warnings[0]

    def test_one_that_comes_and_goes_is_no_hindrance(self, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nor is what is only being written; what is doubtful is told once, however many archives are to go."""
        there = kin_of

        def gone(path: Path) -> Any:
            if "_110000_" in path.name:
                path.unlink()
            return there(path)

        class Late(PruneJob):
            def plan(self) -> Any:
                found = super().plan()
                (repository / "media_20260301_110000_abcdef.tar.gz").write_bytes(b"half")
                (repository / ".media_20260301_100000_abcdef.tar.gz").write_bytes(b"half")
                (repository / "notes.txt").write_bytes(b"half")
                return found

        monkeypatch.setattr(prune, "kin_of", gone)
        monkeypatch.setattr(prune, "_GROUP", 2)
        result = Late(Repository(repository), POLICY, clock=lambda: NOW).run()
        assert (len(result.removed), result.warnings) == (5, ())

    def test_one_that_cannot_be_read_is_told_of_once(self, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """However many groups of archives it keeps."""

        class Late(PruneJob):
            def plan(self) -> Any:
                found = super().plan()
                (repository / "media_20260301_110000_abcdef.tar.gz").write_bytes(b"half")
                return found

        monkeypatch.setattr(prune, "_GROUP", 2)
        result = Late(Repository(repository), POLICY, clock=lambda: NOW).run()
        assert (len(result.spared), len(result.warnings)) == (5, 1)


class TestBesideOthers:
    def test_a_removed_archive_that_comes_again_keeps_what_it_needs(
        self, repository: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is another one of that name: what it needs stays, although the plan was to remove that."""
        tip = next(one for one in archives(repository) if "20260120" in one)
        full = next(one for one in archives(repository) if one.startswith("full_20260209"))
        made: list[str] = []

        class Overtaken(PruneJob):
            def _tidy(self, gone: Any) -> None:
                super()._tidy(gone)
                if not made:
                    made.append(put(repository, MEDIA, 40, parent=full))

        monkeypatch.setattr(prune, "_GROUP", 1)
        order = [one.entry.name for one in job(repository).plan().removals]
        assert (order[0], order[-1]) == (tip, full)
        result = Overtaken(Repository(repository), POLICY, clock=lambda: NOW).run()
        assert (result.success, made, result.spared) == (True, [tip], (full,))
        assert (len(result.removed), {tip, full} <= archives(repository)) == (4, True)
        assert_sound(repository)

    def test_what_somebody_else_has_removed(self, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """An archive or a sidecar that goes at the last moment ends nothing."""
        old = next(one for one in archives(repository) if one.startswith("full_20260130"))
        path = repository / f"{old}.tar.gz"

        class Overtaken(PruneJob):
            def _claimed(self, name: str, *rest: Any) -> bool:
                is_claimed = super()._claimed(name, *rest)
                if name == old:
                    path.unlink()
                    path.with_name(f"{path.name}.sha256").unlink()
                return is_claimed

        result = Overtaken(Repository(repository), POLICY, clock=lambda: NOW).run()
        assert (result.success, len(result.removed)) == (True, 5)

    def test_an_archive_that_went_after_the_plan(self, repository: Path) -> None:
        """Is not among those removed, and ends nothing."""
        old = next(one for one in archives(repository) if one.startswith("full_20260130"))

        class Late(PruneJob):
            def plan(self) -> Any:
                found = super().plan()
                (repository / f"{old}.tar.gz").unlink()
                return found

        result = Late(Repository(repository), POLICY, clock=lambda: NOW).run()
        assert (result.success, len(result.removed), result.spared) == (True, 4, (old,))

    def test_what_is_held_is_passed_over(self, repository: Path) -> None:
        """An archive that somebody reads stays, with all that it needs, and goes the next time."""
        tip = next(one for one in archives(repository) if "20260120" in one)
        with archive_lock(repository / f"{tip}.tar.gz", 1):
            result = job(repository).run()
        assert result.success
        assert len(result.spared) == 3
        assert tip in archives(repository)
        assert_sound(repository)
        assert len(job(repository).run().removed) == 3

    def test_a_long_backup_is_no_hindrance(self, repository: Path) -> None:
        """A prune does not wait for a backup, nor keep one waiting."""
        with Repository(repository).shared():
            assert len(job(repository).run().removed) == 5

    def test_two_prunes_at_once(self, repository: Path) -> None:
        """The second one is refused at once."""
        other = os.open(repository, os.O_RDONLY)
        import fcntl

        fcntl.flock(other, fcntl.LOCK_EX)
        result = job(repository).run()
        os.close(other)
        assert isinstance(result.fault, BusyError)
        assert (result.exit_code, len(archives(repository))) == (5, 8)

    def test_what_comes_after_the_plan_keeps_what_it_needs(self, repository: Path) -> None:
        """An incremental that was made meanwhile, and a pin that was set, count."""
        tip = next(one for one in archives(repository) if "20260120" in one)
        old = next(one for one in archives(repository) if one.startswith("full_20260130"))

        class Late(PruneJob):
            def plan(self) -> Any:
                found = super().plan()
                put(repository, MEDIA, 0.5, parent=tip)
                Pins(self.repository).pin(old, reason="", who="ada", moment=NOW)
                return found

        result = Late(Repository(repository), POLICY, clock=lambda: NOW).run()
        assert result.success
        assert {tip, old} <= archives(repository)
        assert len(result.removed) == 1
        assert_sound(repository)

    def test_a_backup_that_is_made_again(self, repository: Path) -> None:
        """What belongs to an archive that has come again under the same name stays, with the archive."""
        (old,) = (name for name in archives(repository) if name.startswith("full_20260130"))

        class Overtaken(PruneJob):
            def _tidy(self, gone: Any) -> None:
                put(repository, FULL, 30)
                super()._tidy(gone)

        assert Overtaken(Repository(repository), POLICY, clock=lambda: NOW).run().success
        assert old in archives(repository)
        assert_sound(repository)

    def test_a_backup_that_is_being_made_again(self, repository: Path) -> None:
        """A sidecar that waits for its archive is not taken for that of the one that is gone."""
        backup_id = BackupId.of(FULL, NOW - timedelta(days=30), "30")
        sidecar = repository / f"{backup_id}.tar.gz.sha256"
        assert sidecar.exists()

        class Overtaken(PruneJob):
            def _tidy(self, gone: Any) -> None:
                with Repository(repository).pending(backup_id) as draft:
                    assert draft
                    super()._tidy(gone)
                    assert sidecar.exists()
                    draft.discard()

        assert Overtaken(Repository(repository), POLICY, clock=lambda: NOW).run().success
        assert not sidecar.exists()

    def test_a_reader_waits_for_a_claim(self, repository: Path) -> None:
        """Whoever comes while a prune looks at an archive waits, and then reads it or is told that it is gone."""
        path = next(repository.glob("*.tar.gz"))
        held = threading.Event()

        def read() -> None:
            with archive_lock(path, LONG_SECONDS):
                held.set()

        with claim(path) as is_free:
            assert is_free
            reader = threading.Thread(target=read)
            reader.start()
            assert not held.wait(0.1)
        reader.join()
        assert held.is_set()

    def test_one_that_cannot_be_opened(self, repository: Path) -> None:
        """It is passed over with a warning, with what it needs, and the others go."""
        doomed = next(one for one in archives(repository) if "20260120" in one)

        class Late(PruneJob):
            def plan(self) -> Any:
                found = super().plan()
                path = repository / f"{doomed}.tar.gz"
                path.unlink()
                path.symlink_to(path)
                return found

        result = Late(Repository(repository), POLICY, clock=lambda: NOW).run()
        assert (result.success, len(result.removed), len(result.spared)) == (True, 2, 3)
        assert f"{doomed} is passed over: cannot read" in result.warnings[0]
