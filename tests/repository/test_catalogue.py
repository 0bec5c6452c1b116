"""A catalogue says what the files say: its memory can be absent, old, damaged or closed, and nothing is different."""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from portal.ops.archive.open import open_archive, peek_manifest
from portal.ops.backup.job import BackupConfig, BackupJob
from portal.ops.errors import RepositoryError
from portal.ops.model import BackupType, Component, VerifyLevel
from portal.ops.repository import bulk_stat, catalogue
from portal.ops.repository.catalogue import Catalogue, _read_at, kin_of
from portal.ops.repository.catalogue_cache import CatalogueCache, Memory
from portal.ops.repository.pins import Pins
from portal.ops.repository.repository import Repository
from portal.ops.repository.sidecar import sidecar_of
from portal.ops.repository.verifications import Verifications
from tests.support.ages import age
from tests.support.archives import NAME, Recipe, compressor_pool, write_archive
from tests.support.events import Events
from tests.support.kept import finding, packed, put_archive, put_sidecar

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from portal.ops.manifest import Manifest
    from portal.ops.repository.entry import Entry

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def entries(directory: Path) -> list[Entry]:
    return Catalogue(Repository(directory)).entries()


def one(directory: Path, name: str) -> Entry:
    return next(entry for entry in entries(directory) if entry.name == name)


@pytest.fixture
def names(tmp_path: Path) -> list[str]:
    """Three archives, the last one an incremental, newest first."""
    full = put_archive(tmp_path, BackupType.FULL, NOW - timedelta(3))
    base = put_archive(tmp_path, BackupType.MEDIA, NOW - timedelta(2))
    tip = put_archive(tmp_path, BackupType.MEDIA, NOW - timedelta(1), parent=base)
    return [tip, base, full]


def remembered(cache: Path) -> Memory:
    """What is in a cache; its rows are used up, which ends the reading of the database."""
    memory = CatalogueCache(cache).load()
    return memory._replace(rows=iter(list(memory.rows)))


class TestEntries:
    def test_what_is_known(self, tmp_path: Path, names: list[str]) -> None:
        """An entry has what name, manifest, sidecar, finding and pin say."""
        _, base, full = names
        repository = Repository(tmp_path)
        Verifications(repository).record(finding(tmp_path, full, VerifyLevel.DUMP), NOW)
        Pins(repository).pin(base, reason="", who="ada", moment=NOW)
        found = entries(tmp_path)
        assert [entry.name for entry in found] == names
        assert [entry.parent for entry in found] == [base, None, None]
        assert [entry.pinned for entry in found] == [False, True, False]
        assert found[0].components == (Component.MEDIA,)
        assert found[2].finding is not None
        assert (found[2].finding.level, found[2].finding.intact) == (VerifyLevel.DUMP, True)
        assert found[2].checksum == (tmp_path / f"{full}.tar.gz.sha256").read_text()[:64]
        assert found[0].moment == NOW - timedelta(1)

    def test_the_listing_keeps_its_keys(self, tmp_path: Path, names: list[str]) -> None:
        """What a program reads of a list is still there, and what is new beside it."""
        listed = BackupJob(BackupConfig(local_path=tmp_path)).list_backups()
        old = {"path", "name", "backup_id", "type", "timestamp", "size_bytes", "modified", "checksum"}
        assert old | {"parent", "base", "pinned", "verified", "fault", "components"} == listed[0].keys()
        assert listed[0]["timestamp"] == "2026-02-28T12:00:00Z"

    @pytest.mark.parametrize(
        ("spoil", "fault"),
        [
            (lambda path: path.with_name(path.name + ".sha256").unlink(), "beside it"),
            (lambda path: path.with_name(path.name + ".sha256").write_text("short"), "damaged"),
            (lambda path: path.write_bytes(b"garbage"), "manifest"),
            (lambda path: path.write_bytes(b""), "manifest"),
            (lambda path: path.write_bytes(packed(path.name.removesuffix(".tar.gz"), b"[]")), "manifest"),
        ],
    )
    def test_what_is_not_whole_has_a_fault(
        self, tmp_path: Path, names: list[str], spoil: Callable[[Path], object], fault: str
    ) -> None:
        """Sidecars and manifests that are missing or are invalid are told, and the rest is listed."""
        spoil(tmp_path / f"{names[0]}.tar.gz")
        assert fault in one(tmp_path, names[0]).fault
        assert one(tmp_path, names[1]).fault == ""

    def test_a_manifest_of_another_archive(self, tmp_path: Path, names: list[str]) -> None:
        """A file that was given the name of another backup is not that backup."""
        (tmp_path / f"{names[1]}.tar.gz").replace(tmp_path / f"{names[0]}.tar.gz")
        put_sidecar(tmp_path / f"{names[0]}.tar.gz")
        assert one(tmp_path, names[0]).fault == "its manifest is another archive's"

    def test_what_is_removed_while_it_is_read_is_not_listed(
        self, tmp_path: Path, names: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A prune beside a look is no archive without a sidecar, and no missed target."""

        def late(path: Path) -> Any:
            if names[0] in path.name:
                path.unlink()
                sidecar_of(path).unlink()
            return sidecar(path)

        sidecar = catalogue._sidecar
        monkeypatch.setattr(catalogue, "_sidecar", late)
        assert {one.name: one.fault for one in entries(tmp_path)} == dict.fromkeys(names[1:], "")

    def test_what_is_removed_before_its_base_is_seen_is_not_listed(
        self, tmp_path: Path, names: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A prune removes an incremental first, then its base: no status has one without the other."""
        tip, base, full = names

        def late(directory: int, listed: list[bytes]) -> Any:
            found = list(bulk_stat.states(directory, listed))
            for name in (tip, base):
                for path in tmp_path.glob(f"{name}*"):
                    path.unlink()
            gone = listed.index(f"{base}.tar.gz".encode())
            found[gone] = next(iter(bulk_stat.states(directory, listed[gone : gone + 1])))
            return found

        first = entries(tmp_path)
        assert [one.name for one in first] == names
        monkeypatch.setattr(catalogue, "_SETTLED_NS", -(1 << 62))
        assert [one.name for one in entries(tmp_path)] == names
        monkeypatch.setattr(catalogue, "states", late)
        assert [(one.name, one.fault) for one in entries(tmp_path)] == [(full, "")]

    def test_strange_names(self, tmp_path: Path) -> None:
        """Any file that ends like an archive is listed, also one whose name is no text."""
        (tmp_path / "mine.tar.gz").write_bytes(packed("mine", b"{}"))
        (tmp_path / os.fsdecode(b"\xff.tar.gz")).write_bytes(b"x")
        (tmp_path / "directory.tar.gz").mkdir()
        assert {entry.name for entry in entries(tmp_path)} == {"mine", os.fsdecode(b"\xff")}
        assert {entry.type for entry in entries(tmp_path)} == {None}

    def test_no_repository(self, tmp_path: Path) -> None:
        """Where there is none, there is nothing; where it is none, that is an error."""
        assert entries(tmp_path / "absent") == []
        (tmp_path / "file").write_text("x")
        with pytest.raises(RepositoryError):
            entries(tmp_path / "file")

    def test_a_manifest_is_peeked_at_as_it_is_read(self, tmp_path: Path) -> None:
        """The start of an archive of ours gives the manifest that the whole archive gives."""
        (tmp_path / "tree").mkdir()
        (tmp_path / "tree" / "file").write_text("content")
        with compressor_pool() as two:
            path = write_archive(tmp_path / NAME, two, Recipe(media=tmp_path / "tree"))
        archive = open_archive(path)
        assert peek_manifest(path) == archive.manifest()
        archive.close()


class TestChains:
    """What stands on something incomplete is incomplete too, whatever was found of it alone."""

    def test_a_base_that_is_gone(self, tmp_path: Path, names: list[str]) -> None:
        """The archive that needs it says so, and nothing else has a fault."""
        tip, base, full = names
        (tmp_path / f"{base}.tar.gz").unlink()
        assert one(tmp_path, tip).fault == f"it needs {base}, which is gone"
        assert one(tmp_path, full).fault == ""

    def test_a_base_that_is_damaged(self, tmp_path: Path, names: list[str]) -> None:
        """Also where the one that needs it was verified, since that is a look at one archive."""
        tip, base, _ = names
        later = put_archive(tmp_path, BackupType.MEDIA, NOW, parent=tip)
        verifications = Verifications(Repository(tmp_path))
        verifications.record(finding(tmp_path, tip, VerifyLevel.DUMP), NOW)
        assert one(tmp_path, later).fault == ""
        verifications.record(finding(tmp_path, base, VerifyLevel.CONTENTS, damage="a bit is another"), NOW)
        assert one(tmp_path, tip).fault == one(tmp_path, later).fault == f"it needs {base}, which is damaged"
        (listed,) = [
            one for one in BackupJob(BackupConfig(local_path=tmp_path)).list_backups() if one["backup_id"] == tip
        ]
        assert "which is damaged" in listed["fault"]


KINDS = {
    "full_20260101_000000_aaaaaa": True,
    "media_20260101_000000_aaaaaa": True,
    "base_20260101_000000_aaaaaa": True,
    "database_20260101_000000_aaaaaa": False,
    "audit_logs_20260101_000000_aaaaaa": False,
    "copy": False,
}


@pytest.mark.parametrize("name", KINDS)
def test_what_may_follow_another_one_is_a_stray(tmp_path: Path, name: str) -> None:
    """If it cannot be read: other types need nothing, whatever is in them."""
    path = tmp_path / f"{name}.tar.gz"
    path.write_bytes(b"garbage")
    assert one(tmp_path, name).is_stray is KINDS[name]
    assert kin_of(path) == (None if KINDS[name] else ())


def test_what_an_archive_needs_directly(tmp_path: Path, names: list[str]) -> None:
    """Its parent and its base; nothing, if it is no file."""
    tip, base, full = names
    (tmp_path / "full_20260101_000000_aaaaaa.tar.gz").mkdir()
    found = [kin_of(tmp_path / f"{name}.tar.gz") for name in (tip, base, full, "full_20260101_000000_aaaaaa")]
    assert found == [(base, base), (), (), ()]
    assert kin_of(tmp_path / "media_20260101_000000_aaaaaa.tar.gz") is None


class TestManyArchives:
    """What the file system says comes from another process where there are many."""

    @pytest.fixture(autouse=True)
    def few_are_many(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Here three are."""
        monkeypatch.setattr("portal.ops.repository.bulk_stat._MANY", 1)
        monkeypatch.setattr("portal.ops.repository.bulk_stat.threading.active_count", lambda: 1)  # as in a command

    def test_the_entries_are_the_same(self, tmp_path: Path, names: list[str]) -> None:
        """Also of what is no archive, or has no sidecar."""
        (tmp_path / "absent.tar.gz").symlink_to("nowhere")
        (tmp_path / "directory.tar.gz").mkdir()
        (tmp_path / f"{names[1]}.tar.gz.sha256").unlink()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("portal.ops.repository.bulk_stat._MANY", 1000)
            wanted = entries(tmp_path)
        assert len(wanted) == 4
        assert entries(tmp_path) == wanted

    def test_the_helper_does_its_part(self, tmp_path: Path, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        """What it has found out, nobody else finds out again."""
        parent, state, own = os.getpid(), bulk_stat._state, []

        def noted(directory: int, name: bytes) -> bulk_stat.State:
            if os.getpid() == parent:
                own.append(name)
            return state(directory, name)

        monkeypatch.setattr(bulk_stat, "_state", noted)
        assert [entry.name for entry in entries(tmp_path)] == names
        assert own == []

    def test_a_helper_that_ends_early(self, tmp_path: Path, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        """What it has not said is found out without it, and no process is left behind."""
        wanted = entries(tmp_path)
        parent, state, fork = os.getpid(), bulk_stat._state, os.fork
        helpers: list[int] = []

        def forks() -> int:
            helpers.append(fork())
            return helpers[-1]

        def dies(directory: int, name: bytes) -> bulk_stat.State:
            if os.getpid() != parent and name.startswith(names[0].encode()):
                os.kill(os.getpid(), signal.SIGKILL)
            return state(directory, name)

        monkeypatch.setattr(bulk_stat, "_state", dies)
        monkeypatch.setattr("os.fork", forks)
        assert entries(tmp_path) == wanted
        assert len(helpers) == 1
        with pytest.raises(ChildProcessError):
            os.waitpid(helpers[0], os.WNOHANG)

    def test_no_process_is_to_be_had(self, tmp_path: Path, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        """Then it goes without."""

        def refused() -> int:
            raise BlockingIOError(errno.EAGAIN, "no more processes")

        monkeypatch.setattr("os.fork", refused)
        assert [entry.name for entry in entries(tmp_path)] == names


class TestMemory:
    @pytest.fixture
    def cache(self, tmp_path: Path, names: list[str]) -> Path:
        """The memory of a repository that was looked at."""
        age(tmp_path)
        found = tmp_path / ".cache" / "catalogue.sqlite"
        assert sqlite3.connect(found).execute("SELECT count(*) FROM archive").fetchone() == (3,)
        return found

    def test_it_is_used(self, tmp_path: Path, names: list[str], cache: Path) -> None:
        """What has not changed is not read again."""
        with sqlite3.connect(cache) as database:
            database.execute("UPDATE archive SET parent = 'remembered'")
        assert {entry.parent for entry in entries(tmp_path)} == {"remembered"}

    def test_it_is_for_its_owner_alone(self, cache: Path) -> None:
        """Nobody else reads it."""
        assert (cache.stat().st_mode & 0o777, cache.parent.stat().st_mode & 0o777) == (0o600, 0o700)

    def test_whatever_becomes_of_it(self, tmp_path: Path, names: list[str], cache: Path) -> None:
        """Absent, cut, garbage, of another version, or with rows that are invalid: the entries are the same."""
        wanted, whole = entries(tmp_path), cache.read_bytes()
        for spoilt in (b"", b"garbage" * 1000, whole[:5000], whole[:4096] + bytes(len(whole) - 4096)):
            cache.write_bytes(spoilt)
            assert entries(tmp_path) == wanted
        for change in (
            "PRAGMA user_version = 99",
            "UPDATE archive SET kind = 'nonsense'",
            "UPDATE archive SET taken = 'x', components = 'y'",
            "UPDATE archive SET components = 5",
            "UPDATE archive SET level = 'deep', found_at = 1e300",
            "UPDATE archive SET name = CAST(name AS TEXT)",
            "DELETE FROM archive",
            "DROP TABLE archive",
        ):
            cache.write_bytes(whole)
            with sqlite3.connect(cache) as database:
                database.execute(change)
            database.close()
            assert entries(tmp_path) == wanted, change
        cache.unlink()
        cache.mkdir()
        assert entries(tmp_path) == wanted

    def test_what_changes_is_seen(self, tmp_path: Path, names: list[str], cache: Path) -> None:
        """New, removed and changed archives, sidecars, findings and pins are all noticed."""
        tip, base, full = names
        Verifications(Repository(tmp_path)).record(finding(tmp_path, base, VerifyLevel.DUMP), NOW)
        assert one(tmp_path, base).finding is not None
        Verifications(Repository(tmp_path)).forget(base)
        assert one(tmp_path, base).finding is None
        (tmp_path / f"{base}.tar.gz.sha256").unlink()
        assert one(tmp_path, base).fault
        (tmp_path / f"{full}.tar.gz").unlink()
        new = put_archive(tmp_path, BackupType.FULL, NOW)
        assert [entry.name for entry in entries(tmp_path)] == [new, tip, base]
        Pins(Repository(tmp_path)).pin(tip, reason="", who="", moment=NOW)
        assert one(tmp_path, tip).pinned

    def test_findings_are_looked_at_one_by_one_once_their_directory_has_changed(
        self, tmp_path: Path, names: list[str], cache: Path
    ) -> None:
        """Also those that were there before, and whichever look has last been remembered."""
        verifications = Verifications(Repository(tmp_path))
        for name in names:
            verifications.record(finding(tmp_path, name, VerifyLevel.CONTENTS), NOW)
        age(tmp_path)
        assert remembered(cache).findings is not None
        verifications.record(finding(tmp_path, names[1], VerifyLevel.DUMP), NOW)
        levels = [entry.finding and entry.finding.level for entry in entries(tmp_path)]
        assert levels == [VerifyLevel.CONTENTS, VerifyLevel.DUMP, VerifyLevel.CONTENTS]
        assert remembered(cache).findings is None, "a row of before is still there"
        age(tmp_path)
        assert [entry.finding and entry.finding.level for entry in entries(tmp_path)] == levels
        assert remembered(cache).findings is not None

    def test_a_first_look_that_is_cut_off(
        self, tmp_path: Path, names: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What it has read by then is not read again."""
        wanted, reads = entries(tmp_path), []
        cache.unlink()
        monkeypatch.setattr("portal.ops.repository.catalogue._AT_ONCE", 1)

        def peek(path: Path) -> Manifest | None:
            reads.append(path)
            if len(reads) == 3:
                raise KeyboardInterrupt
            return peek_manifest(path)

        monkeypatch.setattr("portal.ops.repository.catalogue.peek_manifest", peek)
        with pytest.raises(KeyboardInterrupt):
            entries(tmp_path)
        assert (entries(tmp_path), len(reads)) == (wanted, 4)

    def test_a_look_is_not_remembered_over_a_later_one(self, tmp_path: Path, names: list[str], cache: Path) -> None:
        """It may know less, and began before."""
        early, late = remembered(cache), remembered(cache)
        late = CatalogueCache(cache).save(late, [], [names[0].encode()], b"later")
        for _ in range(2):
            early = CatalogueCache(cache).save(early, [], [names[1].encode()], b"early")
        CatalogueCache(cache).save(late, [], [], b"late")
        left = remembered(cache)
        assert ([row[0] for row in left.rows], left.findings) == ([names[2].encode(), names[1].encode()], b"late")

    def test_a_record_that_cannot_be_read_is_a_fault(self, tmp_path: Path, names: list[str]) -> None:
        """It may say that the archive is damaged, so nothing is known of it, until the record can be read again."""
        Verifications(Repository(tmp_path)).record(finding(tmp_path, names[0], VerifyLevel.DUMP), NOW)
        record = tmp_path / ".verifications" / f"{names[0]}.json"
        whole = record.read_bytes()
        record.write_bytes(b"")
        age(tmp_path)
        assert "its verification record cannot be read" in one(tmp_path, names[0]).fault
        record.write_bytes(whole)
        assert one(tmp_path, names[0]).fault == ""

    def test_what_could_not_be_read_is_not_remembered(self, tmp_path: Path, names: list[str]) -> None:
        """A trouble that passes leaves nothing behind, though the files look as they did."""
        Verifications(Repository(tmp_path)).record(finding(tmp_path, names[0], VerifyLevel.DUMP), NOW)
        record = tmp_path / ".verifications" / f"{names[0]}.json"
        record.write_bytes(b"")
        (tmp_path / f"{names[1]}.tar.gz.sha256").write_bytes(b"")
        age(tmp_path)
        with sqlite3.connect(tmp_path / ".cache" / "catalogue.sqlite") as database:
            assert database.execute("SELECT name FROM archive").fetchall() == [(names[2].encode(),)]

    def test_an_archive_without_a_checksum_is_remembered(self, tmp_path: Path, names: list[str]) -> None:
        """That it has none is a fact, and seen as soon as it changes."""
        (tmp_path / f"{names[1]}.tar.gz.sha256").unlink()
        age(tmp_path)
        with sqlite3.connect(tmp_path / ".cache" / "catalogue.sqlite") as database:
            assert database.execute("SELECT count(*) FROM archive").fetchone() == (3,)
        put_sidecar(tmp_path / f"{names[1]}.tar.gz")
        assert one(tmp_path, names[1]).fault == ""

    def test_what_is_new_is_not_remembered(
        self, tmp_path: Path, names: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It could change once more and look the same; what has gone is forgotten."""
        monkeypatch.setattr("portal.ops.repository.catalogue._SETTLED_NS", 3_600_000_000_000)
        new = put_archive(tmp_path, BackupType.FULL, NOW)
        (tmp_path / f"{names[0]}.tar.gz").unlink()
        assert len(entries(tmp_path)) == 3
        assert [row[0].decode() for row in remembered(cache).rows] == sorted(names[1:])
        assert new not in names

    def test_a_damaged_memory_is_thrown_away(
        self, tmp_path: Path, names: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With what SQLite has put beside it; that is logged, and why a memory cannot be saved."""
        events = Events(monkeypatch, "portal.ops.repository.catalogue")
        cache.write_bytes(b"garbage" * 1000)
        journal = cache.with_name("catalogue.sqlite-journal")
        journal.mkdir()
        CatalogueCache(cache).discard()
        assert (cache.exists(), journal.exists()) == (False, True)
        journal.rmdir()
        journal.write_bytes(b"x")
        cache.write_bytes(b"garbage" * 1000)
        assert [entry.name for entry in entries(tmp_path)] == names
        assert not journal.exists()
        assert [event[:2] for event in events.all] == [("debug", "catalogue_discarded")]

    def test_a_repository_that_cannot_be_written(
        self, tmp_path: Path, names: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Who may only read still gets everything; the log says why nothing is remembered."""
        events = Events(monkeypatch, "portal.ops.repository.catalogue_cache")
        (tmp_path / ".cache").write_text("in the way")
        assert [entry.name for entry in entries(tmp_path)] == names
        ((level, event, facts),) = events.all
        assert (level, event) == ("debug", "catalogue_unsaved")
        assert ".cache" in facts["detail"]


def test_an_archive_says_when_its_data_was_read(tmp_path: Path) -> None:
    """A backup that is asked for under an earlier moment has that in its name; what was read is of today."""
    (tmp_path / "uploads").mkdir()
    config = BackupConfig(local_path=tmp_path / "archives", media_path=tmp_path / "uploads")
    begun = datetime.now(UTC)
    assert BackupJob(config).backup_media(moment=begun - timedelta(days=20)).success
    (found,) = Catalogue(Repository(tmp_path / "archives")).entries()
    assert found.moment < begun - timedelta(days=19)
    assert begun <= found.read_at <= datetime.now(UTC)


@pytest.mark.parametrize(
    ("moments", "seconds"),
    [
        ([], None),
        ([0], 0.0),
        ([3_500_000_000, 1_500_000_000], 1.5),
        ([-1], None),
        ([1, "1"], None),
        ([True], None),
        ([1.0], None),
    ],
)
def test_the_earliest_of_the_components_counts(moments: list[Any], seconds: float | None) -> None:
    """Where one of them says what cannot be, it is not known when the data was read."""
    details = {str(number): {"read_from_ns": moment} for number, moment in enumerate(moments)}
    assert _read_at(cast("Manifest", SimpleNamespace(details={**details, "other": {}}))) == seconds
