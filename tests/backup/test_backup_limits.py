"""Limits of a backup: how much room it needs, when a chain is closed, and what is told of each."""

from __future__ import annotations

import io
import os
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from portal.ops.archive.index import Member, MemberType
from portal.ops.backup import cluster, increment
from portal.ops.backup.changes import TooMuchError
from portal.ops.backup.config import BackupConfig, BackupResult
from portal.ops.backup.job import BackupJob
from portal.ops.backup.search import Search
from portal.ops.chains.state_cache import MediaState
from portal.ops.errors import DumpFailedError, SourceError
from portal.ops.model import BackupType, VerifyLevel
from portal.ops.pitr.base_chain import FullBaseNeededError
from portal.ops.repository.pins import Pins
from portal.ops.settings.load import load_settings
from tests.support.events import Events
from tests.support.incrementals import Uploads, held

if TYPE_CHECKING:
    from collections.abc import Callable

    from portal.ops.backup.changes import Delta
    from portal.ops.pitr.base_chain import BaseParent
    from portal.ops.runtime.progress import Step

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
RESERVE = 64 << 20
OTHERS = ("1/scan.json", "1/old/report.sarif", "2/scan.json")


def disk(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """A disk with so many bytes free."""
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=free // 2, f_frsize=2, f_flag=0))


class TestRoom:
    """A backup begins only where it will probably end."""

    @pytest.mark.parametrize("incremental", [False, True])
    def test_the_last_one_of_its_kind_says_how_much_is_needed(
        self, uploads: Uploads, monkeypatch: pytest.MonkeyPatch, incremental: bool
    ) -> None:
        """Of everything it is as large as the last complete one; of an incremental it is what has changed."""
        uploads.write("large", os.urandom(100_000))
        base = uploads.base()
        uploads.write("changed", os.urandom(50_000))
        if not incremental:
            uploads.incremental()
        needed = RESERVE + (50_000 if incremental else base.size_bytes)
        needed += needed % 2
        disk(monkeypatch, needed - 2)
        refused = uploads.job().backup_media(incremental=incremental)
        assert (refused.success, refused.exit_code) == (False, 1)
        assert f"{uploads.archives} has " in str(refused.error)
        assert "and this backup needs about " in str(refused.error)
        disk(monkeypatch, needed)
        assert uploads.job().backup_media(incremental=incremental).success

    def test_the_first_one_needs_the_reserve(self, uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nobody knows more yet."""
        disk(monkeypatch, RESERVE - 2)
        assert not uploads.job().backup_media().success
        disk(monkeypatch, RESERVE)
        assert uploads.job().backup_media().success


def harmed(uploads: Uploads, harm: str, base: Path, middle: Path) -> None:
    """Do something to a chain of a base and two incrementals."""
    if harm == "base":
        base.unlink()
    elif harm == "base unreadable":
        base.write_bytes(b"garbage")
    elif harm == "middle":
        middle.unlink()
    elif harm == "found":
        content = bytearray(middle.read_bytes())
        content[len(content) // 2] ^= 0xFF
        middle.write_bytes(content)
        uploads.job().verify(middle, VerifyLevel.CONTENTS)


class TestChains:
    """When an incremental becomes a base, and why."""

    @pytest.mark.parametrize(
        ("harm", "said"),
        [
            ("base", "the base of the uploads' chain is missing or cannot be read"),
            ("base unreadable", "the base of the uploads' chain is missing or cannot be read"),
            ("middle", "is broken: what "),
            ("found", "a verification has found a damage in "),
        ],
    )
    def test_the_reason_is_logged(
        self, uploads: Uploads, monkeypatch: pytest.MonkeyPatch, harm: str, said: str
    ) -> None:
        """So that nobody has to guess why a backup is large."""
        events = Events(monkeypatch, "portal.ops.backup.run")
        made = [uploads.incremental()]
        for name in "ab":
            uploads.write(name)
            made.append(uploads.incremental())
        first, *_ = [facts["reason"] for _, event, facts in events.all if event == "base_needed"]
        assert first == "no archive holds the uploads yet"
        harmed(uploads, harm, *(Path(result.destination_path) for result in made[:2]))
        events.all.clear()
        uploads.write("c")
        assert uploads.incremental().parent is None
        ((level, event, facts), *_) = events.all
        assert (level, event) == ("info", "base_needed")
        assert said in facts["reason"]

    def test_how_large_incrementals_may_be_together(self, uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
        """As large as is said, and no byte more."""
        events = Events(monkeypatch, "portal.ops.backup.run")
        base = uploads.base()
        uploads.write("a")
        first = uploads.incremental()
        monkeypatch.setattr(increment, "SMALL_CHAIN", first.size_bytes)
        uploads.write("b")
        second = uploads.incremental(chain_percent=1)
        assert second.parent == first.backup_id
        both = first.size_bytes + second.size_bytes
        monkeypatch.setattr(increment, "SMALL_CHAIN", both - 1)
        uploads.write("c")
        assert uploads.incremental(chain_percent=1).parent is None
        reason = next(facts["reason"] for _, event, facts in events.all if event == "base_needed")
        assert reason == (
            f"the incrementals of {base.backup_id} have {both:,} bytes together, the base {base.size_bytes:,}"
        )

    def test_how_many_incrementals_there_may_be(self, uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
        """The reason has their number."""
        events = Events(monkeypatch, "portal.ops.backup.run")
        base = uploads.base()
        uploads.write("a")
        assert uploads.incremental(chain_length=1).parent == base.backup_id
        uploads.write("b")
        assert uploads.incremental(chain_length=1).parent is None
        reason = next(facts["reason"] for _, event, facts in events.all if event == "base_needed")
        assert reason == f"the chain of {base.backup_id} has 1 incrementals"


class TestChanges:
    """What counts as a change."""

    @pytest.mark.parametrize(
        ("change", "taken"),
        [
            (lambda root: (root / "tenant-1").chmod(0o711), {"tenant-1"}),
            (lambda root: os.chown(root / "tenant-1", 1, -1), {"tenant-1"}),
            (lambda root: os.chown(root / "tenant-1", -1, 1), {"tenant-1"}),
            (lambda root: os.utime(root / "tenant-1", ns=(0, 1)), {"tenant-1"}),
            (lambda root: os.setxattr(root / "tenant-1", "user.x", b"1"), {"tenant-1"}),
            (lambda root: (root / "tenant-1/scan.json").chmod(0o611), {"tenant-1/scan.json"}),
            (lambda root: os.chown(root / "tenant-1/scan.json", 1, -1), {"tenant-1/scan.json"}),
            (lambda root: os.chown(root / "tenant-1/scan.json", -1, 1), {"tenant-1/scan.json"}),
            (lambda root: os.utime(root / "tenant-1/scan.json", ns=(0, 1)), {"tenant-1/scan.json"}),
            (lambda root: os.setxattr(root / "tenant-1/scan.json", "user.x", b"1"), {"tenant-1/scan.json"}),
            (lambda root: root.chmod(0o711), {""}),
        ],
    )
    @pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
    def test_each_attribute_counts(self, uploads: Uploads, change: Callable[[Path], object], taken: set[str]) -> None:
        """Of a file or of a directory, and takes that one alone."""
        uploads.base()
        change(uploads.root)
        found = uploads.incremental()
        assert set(held(found)) == taken
        assert uploads.incremental().unchanged

    def test_a_look_at_the_inode_alone_is_no_change(self, uploads: Uploads) -> None:
        """Where only the time of that is another, the content is read, and found to be the same."""
        base = uploads.base()
        for path in ("tenant-1", "tenant-1/scan.json"):
            (uploads.root / path).chmod((uploads.root / path).stat().st_mode & 0o7777)
        read: list[Step] = []
        result = BackupJob(uploads.job().config, progress=read.append).backup_media(incremental=True)
        assert (result.unchanged, result.backup_id, result.warnings) == (True, base.backup_id, ())
        assert result.components == ("media",)
        assert result.destination_path == base.destination_path

    def test_the_most_changes(self, tmp_path: Path) -> None:
        """So many are kept in memory, and not one more."""
        for name in "abc":
            (tmp_path / name).write_text(name)

        def look(most: int) -> Delta:
            search = Search(root=tmp_path, state=MediaState(None), most=most)
            try:
                return search.everything()
            finally:
                search.tree.close()
                search.state.close()

        assert len(look(4).taken) == 4
        with pytest.raises(TooMuchError, match="more than 3 files and directories differ"):
            look(3)

    def test_a_file_in_the_place_of_the_tree_has_no_changes(self, tmp_path: Path) -> None:
        """It is refused, and nothing stays open."""
        (tmp_path / "file").touch()
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(SourceError, match=f"{tmp_path}/file is not a directory"):
            Search(root=tmp_path / "file", state=MediaState(None))
        assert len(os.listdir("/proc/self/fd")) == before


class TestTold:
    """Logs, lists, results and progress."""

    def test_each_end_is_logged(self, uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
        """An archive, the same one again, nothing new, a failure, and what a killed backup had left."""
        events = Events(monkeypatch, "portal.ops.backup.run")
        uploads.archives.mkdir()
        remains = uploads.archives / ".media_20260101_000000_abcdef.tar.gz.partial"
        remains.touch()
        job = uploads.job()
        made = job.backup_media(moment=NOON, request_id="one")
        job.backup_media(moment=NOON, request_id="one")
        job.backup_media(incremental=True)
        uploads.root.rename(uploads.directory / "away")
        failed = job.backup_media()
        assert [(level, event) for level, event, _ in events.all] == [
            ("warning", "unfinished_work_removed"),
            ("info", "archive_published"),
            ("info", "archive_found"),
            ("info", "archive_published"),
            ("info", "nothing_changed"),
            ("error", "backup_failed"),
        ]
        facts = [one for _, _, one in events.all]
        assert facts[0] == {"name": remains.name}
        assert (facts[1]["path"], facts[1]["bytes"]) == (made.destination_path, made.size_bytes)
        assert facts[1]["seconds"] == round(made.duration_seconds, 3) >= 0
        assert facts[2] == {"path": made.destination_path}
        assert facts[4]["path"] == made.destination_path
        assert facts[5]["error"] == failed.error
        assert "does not exist, so the uploads cannot be backed up" in str(failed.error)

    def test_a_list_has_every_fact(self, uploads: Uploads) -> None:
        """As types of JSON."""
        base = uploads.base()
        job = uploads.job()
        assert job.verify(base.backup_id).intact
        Pins(job.repository).pin(base.backup_id, reason="", who="ada", moment=NOON)
        (listed,) = job.list_backups()
        assert listed.pop("modified").endswith("Z")
        assert listed["verified"].pop("moment").endswith("Z")
        assert listed == {
            "path": base.destination_path,
            "name": Path(base.destination_path).name,
            "backup_id": base.backup_id,
            "type": "media",
            "timestamp": base.to_dict()["timestamp"],
            "size_bytes": base.size_bytes,
            "checksum": base.checksum,
            "components": ["media"],
            "parent": None,
            "base": None,
            "pinned": True,
            "fault": None,
            "verified": {"level": "contents", "intact": True},
        }

    def test_a_result_by_default_is_of_nothing(self) -> None:
        """With every field of its JSON."""
        result = BackupResult(success=False, backup_id="one", backup_type=BackupType.MEDIA, timestamp=NOON)
        assert (result.exit_code, result.retryable) == (0, False)
        assert result.to_dict() == {
            "success": False,
            "backup_id": "one",
            "type": "media",
            "backup_type": "media",
            "timestamp": "2026-01-02T12:00:00Z",
            "path": "",
            "destination_path": "",
            "size_bytes": 0,
            "checksum": "",
            "components": [],
            "warnings": [],
            "error": None,
            "duration_seconds": 0.0,
            "encrypted": False,
            "format_version": 1,
            "parent": None,
            "base": None,
            "unchanged": False,
        }

    @pytest.mark.parametrize("incremental", [False, True])
    def test_how_much_will_be_read(self, uploads: Uploads, incremental: bool) -> None:
        """All of the uploads, or what has changed of them; the repository in them does not count."""
        job = uploads.job(local_path=uploads.root / "archives")
        assert job.backup_media().success
        uploads.write("changed", bytes(1_000))
        steps: list[Step] = []
        inside = BackupJob(job.config, progress=steps.append)
        result = inside.backup_media(incremental=incremental)
        assert (result.error, result.parent is not None) == (None, incremental)
        total = 1_000 + sum(len((uploads.root / f"tenant-{path}").read_bytes()) for path in OTHERS)
        last = [step for step in steps if step.phase == "media"][-1]
        assert last.expect() == (1_000 if incremental else total)


class TestConfiguration:
    """Values at their limits."""

    def test_each_smallest_value_is_allowed(self, tmp_path: Path) -> None:
        """And the largest port."""
        for port in (1, 65535):
            config = BackupConfig(
                local_path=tmp_path,
                db_port=port,
                jobs=1,
                lock_timeout=0,
                dump_timeout=0.001,
                chain_length=1,
                chain_percent=1,
                retention_days=0,
                retention_count=0,
            )
            assert config.db_port == port

    def test_the_defaults_are_those_of_the_settings(self) -> None:
        """Whoever says nothing gets the same, by arguments and by the environment."""
        own = BackupConfig()
        found = BackupConfig.from_settings(load_settings({}, lambda _: ""))
        others = {"offsite", "store_variables", "commands", "replication_target", "unbuilt"}
        differing = {
            one.name: (getattr(own, one.name), getattr(found, one.name))
            for one in fields(BackupConfig)
            if one.name not in others and getattr(own, one.name) != getattr(found, one.name)
        }
        assert differing == {}


class TestCluster:
    """An incremental base backup that is worth its while."""

    def test_it_holds_at_most_what_is_said(self) -> None:
        """One byte more, or a server that refuses, asks for a full one."""
        members = [(Member(f"cluster/{size}", MemberType.FILE, size), io.BytesIO()) for size in (60, 40)]

        def worthwhile(most: int) -> list[Any]:
            parent = cast("BaseParent", SimpleNamespace(most_bytes=most))
            return list(cluster._worthwhile(iter(members), parent))

        assert worthwhile(100) == members
        with pytest.raises(FullBaseNeededError, match="more than half of a full one"):
            worthwhile(99)
        assert list(cluster._worthwhile(iter(members), None)) == members

        def refused() -> Any:
            yield members[0]
            raise DumpFailedError("summaries are off", hint="")

        with pytest.raises(FullBaseNeededError, match="summaries are off"):
            list(cluster._worthwhile(refused(), cast("BaseParent", SimpleNamespace(most_bytes=100))))
        with pytest.raises(DumpFailedError):
            list(cluster._worthwhile(refused(), None))


def test_the_moment_of_a_request_is_now_unless_it_is_said(uploads: Uploads) -> None:
    """By the clock of the job."""
    job = BackupJob(uploads.job().config, clock=lambda: NOON)
    assert job.backup_media().timestamp == NOON
    assert job.backup_media(moment=NOON - timedelta(1)).timestamp == NOON - timedelta(1)
