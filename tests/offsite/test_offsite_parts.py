"""The record of copies, keys and room: the parts of off-site copies that need no store."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import pytest

from portal.ops.errors import BusyError, ConfigurationError, DiskFullError, RepositoryError
from portal.ops.manifest import Manifest
from portal.ops.model import BackupId, BackupType, Component, VerifyLevel
from portal.ops.offsite import ledger as ledgers
from portal.ops.offsite import signing
from portal.ops.offsite.absent import entry_of
from portal.ops.offsite.commit import WalStart
from portal.ops.offsite.config import OffsiteConfig
from portal.ops.offsite.health import Proof, WalCopying
from portal.ops.offsite.layout import Stem
from portal.ops.offsite.ledger import CopyRecord, Ledger
from portal.ops.offsite.missing import is_copy_missing, unexpectedly_gone, wanted_copies, without_copy
from portal.ops.offsite.place import check_space, own_place, unwritable
from portal.ops.offsite.signing import ANY, Trust, find_key, own_key, trusted_signers
from portal.ops.offsite.state import destination_states
from portal.ops.offsite.wal import wal_start
from portal.ops.repository.entry import Entry, Finding
from portal.ops.repository.records import RecordStore
from portal.ops.repository.repository import Repository
from portal.ops.retention.policy import RetentionPolicy, RetentionRule
from portal.ops.settings.destination import parse_destination
from portal.ops.settings.load import OffsiteSettings
from tests.offsite.test_commits import COMMIT

if TYPE_CHECKING:
    from collections.abc import Iterable

NOON: Final = datetime(2026, 11, 29, 12, tzinfo=UTC)
DISK: Final = parse_destination("file:///disk")
POLICY: Final = RetentionPolicy(rule=RetentionRule(days=10, count=1))
FULL: Final = "full_20261120_120000_aaaaaa"


def record(backup_id: str = FULL, generation: int = 0, **changes: Any) -> CopyRecord:
    made = CopyRecord(
        stem=Stem(backup_id, generation), copied=NOON, archive_sha256="ab", stored_bytes=7, recipients=("age1a",)
    )
    return replace(made, **changes)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository(tmp_path / "archives")
    made.prepare()
    return made


@pytest.fixture
def ledger(repository: Repository) -> Ledger:
    made = Ledger(repository, DISK)
    made.prepare()
    return made


class TestLedger:
    def test_copies(self, ledger: Ledger) -> None:
        """Each is added as a line, for the owner only; the record is replaced as a whole."""
        assert ledger.copies() == {}
        one, two = record(), record(generation=1)
        ledger.add(one)
        ledger.add(two)
        path = ledger.directory / "copies.jsonl"
        assert path.read_bytes() == one.encode() + two.encode()
        assert path.stat().st_mode & 0o777 == 0o600
        assert ledger.directory.stat().st_mode & 0o777 == 0o700
        assert ledger.copies() == {one.stem: one, two.stem: two}
        ledger.replace([two])
        assert ledger.copies() == {two.stem: two}

    def test_a_line_that_was_cut(self, ledger: Ledger) -> None:
        """The next one begins behind it."""
        (ledger.directory / "copies.jsonl").write_bytes(b"x")
        ledger.add(record())
        assert (ledger.directory / "copies.jsonl").read_bytes() == b"x\n" + record().encode()

    def test_it_cannot_be_used(self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
        """The file and the reason are named; a full disk is told as such."""
        (ledger.directory / "copies.jsonl").mkdir()
        with pytest.raises(RepositoryError, match=r"^cannot use .*/copies\.jsonl: is a directory\n") as caught:
            ledger.copies()
        assert "Run this as the user" in caught.value.hint
        with pytest.raises(RepositoryError, match="is a directory"):
            ledger.add(record())

        def full(*_: object, **__: object) -> None:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

        monkeypatch.setattr(ledgers, "write_durably", full)
        with pytest.raises(DiskFullError):
            ledger.replace([])

    def test_one_process_copies(self, ledger: Ledger, repository: Repository) -> None:
        """Another one waits as long as it may; without a record there is nothing to lock."""
        with ledger.locked(0):
            with pytest.raises(BusyError, match=r"^another process copies to file:///disk, or removes copies there"):
                ledger.locked(0).__enter__()
            with pytest.raises(BusyError):
                ledger.locked_if_kept(0).__enter__()
        with ledger.locked(0), Ledger(repository, parse_destination("file:///other")).locked_if_kept(0):
            assert not (repository.path / ".offsite" / parse_destination("file:///other").identifier).exists()
        with ledger.locked(0):
            assert ledger.directory.is_dir()

    def test_progress(self, ledger: Ledger) -> None:
        """Of an interrupted copy; one that is damaged is none."""
        assert ledger.pending(FULL) is None
        ledger.save_pending(FULL, {"generation": 1})
        found = ledger.pending(FULL)
        assert found
        assert found["generation"] == 1
        (ledger.directory / "pending" / f"{FULL}.json").write_text("{")
        assert ledger.pending(FULL) is None
        ledger.forget_pending(FULL)
        assert list((ledger.directory / "pending").iterdir()) == []

    def test_proofs(self, ledger: Ledger) -> None:
        """One of each kind; damaged ones are forgotten."""
        assert ledger.proof() == {}
        for kind, level in (("verified", 1), ("drilled", 2), ("verified", 3)):
            ledger.note_proof(kind, {"level": level})
        found = ledger.proof()
        assert {name: found[name] for name in ("verified", "drilled")} == {
            "verified": {"level": 3},
            "drilled": {"level": 2},
        }
        (ledger.directory / "proof.json").write_text("{")
        assert ledger.proof() == {}

    def test_wal(self, ledger: Ledger) -> None:
        """When it was last copied stays, while it fails."""
        assert ledger.wal() == {}
        ledger.note_wal(NOON, "it is full")
        assert _wal(ledger) == (NOON.isoformat(), "it is full")
        ledger.note_wal(NOON + timedelta(minutes=1), "it is full still")
        assert _wal(ledger) == (NOON.isoformat(), "it is full still")
        ledger.note_wal(NOON + timedelta(minutes=2), "")
        assert _wal(ledger) == ((NOON + timedelta(minutes=2)).isoformat(), "")
        (ledger.directory / "wal.json").write_text("{")
        assert ledger.wal() == {}

    def test_turns(self, ledger: Ledger) -> None:
        """When each copy was verified; nothing where that makes no sense."""
        assert ledger.turns() == {}
        ledger.note_turns({FULL: NOON})
        assert ledger.turns() == {FULL: NOON}
        for text in (
            "{",
            '{"version": 1, "verified": {"a": "soon"}}',
            '{"version": 1}',
            '{"version": 1, "verified": 5}',
        ):
            (ledger.directory / "turns.json").write_text(text)
            assert ledger.turns() == {}

    def test_nobody_else_records(self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
        """Who does not get the lock records nothing, and goes on."""
        monkeypatch.setattr(ledgers, "_LOCK_SECONDS", 0.0)
        with ledger.recording() as first, ledger.recording() as second:
            assert (first, second) == (True, False)
        with ledger.recording() as again:
            assert again

    def test_what_cannot_be_recorded_fails_nothing(self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
        """Proofs, turns and WAL are told on the log."""

        def fails(*_: object) -> None:
            raise RepositoryError("no", hint="x")

        monkeypatch.setattr(RecordStore, "write", fails)
        ledger.note_proof("verified", {})
        ledger.note_turns({})
        ledger.note_wal(NOON, "")
        assert sorted(path.name for path in ledger.directory.iterdir()) == []

    def test_without_a_repository(self, tmp_path: Path) -> None:
        """Nothing is kept, and none is made."""
        bare = Ledger(Repository(tmp_path / "none"), DISK)
        assert not bare.can_be_kept
        with bare.recording() as is_ours:
            assert not is_ours
        assert list(tmp_path.iterdir()) == []


def _wal(ledger: Ledger) -> tuple[str, str]:
    found = ledger.wal()
    return found["worked"], found["problem"]


class TestRoom:
    def test_it_suffices(self, repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
        """With 64 MiB to spare; for nothing, any room does."""
        free = [0]
        monkeypatch.setattr("portal.ops.offsite.place.shutil.disk_usage", lambda _: SimpleNamespace(free=free[0]))
        check_space(repository, 0)
        free[0] = (100 << 20) + (64 << 20)
        check_space(repository, 100 << 20)
        free[0] -= 1
        with pytest.raises(DiskFullError) as caught:
            check_space(repository, 100 << 20)
        assert caught.value.message == f"{repository.path} has 163 MiB free, and the fetch needs 100 MiB"
        assert "BACKUP_LOCAL_PATH" in caught.value.hint

    def test_a_file_that_cannot_be_written(self, repository: Repository) -> None:
        """A full disk, or something else."""
        assert isinstance(unwritable(repository, OSError(errno.ENOSPC, "full")), DiskFullError)
        other = unwritable(repository, OSError(errno.EROFS, "Read-only file system"))
        assert not isinstance(other, DiskFullError)
        assert other.message.startswith(f"cannot write to {repository.path}: ")

    def test_a_place_of_its_own(self, repository: Repository) -> None:
        """It goes with all that is in it, also after an error; unused ones go before. No descriptor stays."""
        directory = repository.path / ".offsite"
        before = len(os.listdir("/proc/self/fd"))
        with own_place(directory) as first:
            (first / "x").write_text("x")
            (directory / "verify-old").mkdir()
            (directory / "verify-file").write_text("")
            (directory / "other").mkdir()
            with pytest.raises(KeyError), own_place(directory) as second:
                assert second != first
                assert second.stat().st_mode & 0o777 == 0o700
                raise KeyError
            assert {path.name for path in directory.iterdir()} == {first.name, "other", "verify-file"}
        assert {path.name for path in directory.iterdir()} == {"other", "verify-file"}
        assert len(os.listdir("/proc/self/fd")) == before


class TestKeys:
    def test_it_is_made_once(self, repository: Repository) -> None:
        """For the owner only, and it stays."""
        assert find_key(repository) is None
        key = own_key(repository)
        path = repository.path / ".keys/offsite.key"
        assert own_key(repository).signer == key.signer
        assert (path.stat().st_mode & 0o777, path.stat().st_nlink) == (0o600, 1)
        assert [one.name for one in path.parent.iterdir()] == ["offsite.key"]
        found = find_key(repository)
        assert found
        assert found.signer == key.signer

    def test_two_at_once(self, repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
        """The first one's counts."""
        link = os.link
        made: list[str] = []

        def late(source: Path, target: Path) -> None:
            if not made:
                made.append("")
                made.append(own_key(repository).signer)
            link(source, target)

        monkeypatch.setattr("portal.ops.offsite.signing.os.link", late)
        assert own_key(repository).signer == made[1]

    @pytest.mark.parametrize("content", [b"short", b"x" * 33])
    def test_another_file(self, repository: Repository, content: bytes) -> None:
        """It is no key."""
        (repository.path / ".keys").mkdir()
        (repository.path / ".keys/offsite.key").write_bytes(content)
        with pytest.raises(RepositoryError, match=r"offsite\.key, cannot be used: it is no key\n") as caught:
            find_key(repository)
        assert "older copies count as foreign" in caught.value.hint

    def test_it_cannot_be_read_or_made(self, repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
        """The reason is told; without a repository there is none."""
        (repository.path / ".keys/offsite.key").mkdir(parents=True)
        with pytest.raises(RepositoryError, match="cannot be used: is a directory\n"):
            find_key(repository)
        (repository.path / ".keys/offsite.key").rmdir()

        def fails(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(signing, "write_whole", fails)
        with pytest.raises(RepositoryError, match="cannot be used: no space left on device\n"):
            own_key(repository)
        assert find_key(Repository(repository.path / "none")) is None
        (repository.path / "file").write_text("")
        assert find_key(Repository(repository.path / "file")) is None

    def test_whose_copies_are_taken(self, repository: Repository) -> None:
        """Everybody's, or those of the key and of the signers that are given."""
        assert trusted_signers(repository, ()) is None
        assert trusted_signers(repository, ("a",)) == frozenset({"a"})
        assert trusted_signers(repository, ("a", ANY)) is None
        own = own_key(repository).signer
        assert trusted_signers(repository, ()) == frozenset({own})
        assert trusted_signers(repository, ("a",)) == frozenset({own, "a"})

    def test_older_copies_that_are_known(self) -> None:
        """By their digest; whose signer is trusted needs no record."""
        known = record(archive_sha256=COMMIT.archive_sha256, stem=COMMIT.stem)
        trust = Trust(signers=frozenset({"a"}), known={known.stem: known})
        assert trust.accepts(COMMIT)
        assert not trust.accepts(replace(COMMIT, archive_sha256="x"))
        assert not trust.accepts(replace(COMMIT, stem=Stem(FULL)))
        assert Trust(signers=frozenset({"a"}), known={}).accepts(replace(COMMIT, signer="a"))
        assert not Trust(signers=frozenset({"a"}), known={}).accepts(replace(COMMIT, signer="b"))
        assert Trust(known={}).accepts(COMMIT)


def entry(day: int, kind: BackupType = BackupType.FULL, **changes: Any) -> Entry:
    moment = datetime(2026, 11, day, 12, tzinfo=UTC)
    name = str(BackupId.of(kind, moment, ""))
    return Entry(name=name, type=kind, moment=moment, modified=moment, size=1)._replace(**changes)


def config(directory: Path = Path("/none"), *urls: str, types: Iterable[str] = ()) -> OffsiteConfig:
    return OffsiteConfig(
        local_path=directory,
        destinations=tuple(map(parse_destination, urls)),
        settings=OffsiteSettings(types=tuple(types), recipients=("age1a",)),
    )


class TestMissing:
    def test_what_should_have_copies(self) -> None:
        """Intact archives of the types that are copied, which the rules keep."""
        bad = Finding(level=VerifyLevel.CHECKSUM, moment=NOON, intact=False)
        entries = [
            entry(29),
            entry(28, finding=bad),
            entry(27, fault="cut"),
            entry(26, finding=bad._replace(intact=True)),
            entry(25, BackupType.MEDIA),
            entry(24, type=None),
            entry(2),
        ]
        wanted = wanted_copies(config(types=("full",)), POLICY, entries, NOON)
        assert wanted == [entries[0], entries[3]]
        assert entries[4] in wanted_copies(config(), POLICY, entries, NOON)
        assert (config().includes(None), config().includes("media")) == (False, True)

    def test_what_has_none(self, repository: Repository) -> None:
        """In any of the destinations."""
        assert without_copy(["a", "b", "c"], [Stem("b", 1), Stem("x")]) == ("a", "c")
        entries = [entry(29)]
        two = config(repository.path, "file:///disk", "file:///other")
        for url, is_missing in (("file:///disk", True), ("file:///other", False)):
            Ledger(repository, parse_destination(url)).prepare()
            Ledger(repository, parse_destination(url)).add(record(entries[0].name))
            assert is_copy_missing(two, POLICY, repository, entries, NOON) is is_missing
        assert not is_copy_missing(config(repository.path), POLICY, repository, [entry(28)], NOON)

    def test_copies_that_are_gone(self) -> None:
        """Those that the rules would keep; another copy of the archive stands for one."""
        kept, old = entry(29).name, entry(2).name
        known = {one.stem: one for one in (record(kept), record(old, copied=NOON - timedelta(days=20)))}
        assert unexpectedly_gone(known, [], POLICY, NOON) == [Stem(kept)]
        assert unexpectedly_gone(known, [Stem(kept, 1)], POLICY, NOON) == []
        assert unexpectedly_gone(known, list(known), POLICY, NOON) == []

    def test_a_copy_as_an_entry(self) -> None:
        """With all that the rules look at."""
        assert entry_of(COMMIT) == Entry(
            name=COMMIT.backup_id,
            type=BackupType.BASE,
            moment=COMMIT.moment,
            modified=COMMIT.copied,
            size=COMMIT.stored_bytes,
            checksum=COMMIT.archive_sha256,
            parent=COMMIT.parent,
            base=COMMIT.base,
            components=(Component.CLUSTER,),
        )

    def test_no_destination(self) -> None:
        """It is said which setting names some."""
        with pytest.raises(ConfigurationError, match="there is no destination of off-site copies") as caught:
            config().require_destinations()
        assert "BACKUP_OFFSITE_URLS" in caught.value.hint


class TestState:
    def test_of_a_destination(self, repository: Repository, ledger: Ledger) -> None:
        """By the record: what is there, what is not, and what was proven."""
        entries = [entry(29), entry(28), entry(27)]
        ledger.add(record(entries[2].name))
        ledger.add(record(entries[0].name, stored_bytes=5))
        facts = {"moment": NOON.isoformat(), "level": "checksum", "damaged": ["d"], "foreign": ["f"]}
        ledger.note_proof("verified", facts)
        drill = {"moment": NOON.isoformat(), "success": True, "backup_id": "b", "recipients": ["age1a", "age1b"]}
        ledger.note_proof("drilled", drill)
        ledger.note_wal(NOON, "p")
        given = config(repository.path, "file:///disk")
        (state,) = destination_states(given, POLICY, repository, entries, NOON, has_wal=True)
        assert (state.shown, state.identifier, state.copies, state.stored_bytes) == (
            "file:///disk",
            DISK.identifier,
            2,
            12,
        )
        assert (state.newest, state.moment) == (entries[0].name, entries[0].moment)
        assert (state.missing, state.oldest_missing) == ((entries[1].name,), entries[1].moment)
        assert state.verified == Proof(moment=NOON, level="checksum", damaged=("d",))
        assert state.drilled == Proof(moment=NOON, level="drill")
        assert (state.foreign, state.wal, state.recipients_proven) == (
            ("f",),
            WalCopying(worked=NOON, problem="p"),
            True,
        )
        ledger.note_proof("drilled", {**drill, "success": False})
        (state,) = destination_states(given, POLICY, repository, entries, NOON)
        assert state.drilled == Proof(moment=NOON, level="drill", damaged=("b",))
        assert (state.recipients_proven, state.wal) == (False, None)
        ledger.note_proof("drilled", {**drill, "recipients": []})
        (state,) = destination_states(given, POLICY, repository, entries, NOON)
        assert not state.recipients_proven

    def test_records_that_make_no_sense(self, repository: Repository, ledger: Ledger) -> None:
        """They are none."""
        given = config(repository.path, "file:///disk")
        (state,) = destination_states(given, POLICY, repository, [], NOON, has_wal=True)
        assert (state.newest, state.moment, state.verified, state.drilled, state.wal, state.foreign) == (
            None,
            None,
            None,
            None,
            None,
            (),
        )
        (ledger.directory / "wal.json").write_text(json.dumps({"version": 1, "worked": 5, "problem": ""}))
        for wrong in ({"moment": "soon", "success": True, "level": ""}, {"moment": 5, "success": False, "level": ""}):
            ledger.note_proof("verified", {**wrong, "damaged": []})
            ledger.note_proof("drilled", {**wrong, "backup_id": ""})
            (state,) = destination_states(given, POLICY, repository, [], NOON, has_wal=True)
            assert (state.verified, state.drilled, state.wal) == (None, None, None)
        assert destination_states(config(repository.path), POLICY, repository, [], NOON) == ()


class TestWalStart:
    FACTS: Final = {"segment_bytes": 1 << 20, "timeline": 2, "start_lsn": "0/300028", "system_identifier": 7}

    def manifest(self, **facts: Any) -> Manifest:
        """The manifest of a base backup."""
        return Manifest(
            backup_id="b", type="base", timestamp="", components=(), hostname="", db_name="", details={"cluster": facts}
        )

    def test_of_a_base_backup(self) -> None:
        """The segment in which it begins."""
        assert wal_start(self.manifest(**self.FACTS)) == WalStart("7", "000000020000000000000003")

    @pytest.mark.parametrize("name", FACTS)
    def test_unknown(self, name: str) -> None:
        """Where a fact is missing or makes no sense; and of other archives."""
        assert wal_start(self.manifest(**{key: value for key, value in self.FACTS.items() if key != name})) is None
        assert wal_start(self.manifest()) is None
        assert wal_start(None) is None
        for wrong in ("x", None):
            if name != "system_identifier":
                assert wal_start(self.manifest(**{**self.FACTS, name: wrong})) is None
