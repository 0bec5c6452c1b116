"""Full backups that follow another archive: database and audit log complete, of the uploads what has changed."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from demo.compare import tree_contents
from portal.ops.archive.reader import ArchiveReader
from portal.ops.backup.job import BackupConfig
from portal.ops.backup.run import BackupRun
from portal.ops.errors import ConfigurationError
from portal.ops.model import CHAINED_VERSION, FORMAT_VERSION, VerifyLevel
from portal.ops.repository.pins import Pins
from portal.ops.repository.repository import Repository
from portal.ops.verify.verify import Verifier
from tests.support.backups import manifest, member, members
from tests.support.portal import Portal, succeeded

if TYPE_CHECKING:
    from portal.ops.backup.job import BackupResult

SUNDAY = datetime(2026, 11, 22, 2, tzinfo=UTC)


def chained(portal: Portal, **given: Any) -> BackupResult:
    """A full backup that follows what there is."""
    job = portal.job(full_uploads="chain", schedule_complete=given.pop("schedule", None))
    result = job.backup_full(**given)
    assert result.error is None, result.error
    return result


def test_the_first_full_backup_is_complete(portal: Portal) -> None:
    """There is nothing to follow, and that needs no warning."""
    result = chained(portal)
    assert (result.parent, result.warnings) == (None, ())
    assert manifest(Path(result.destination_path))["format_version"] == FORMAT_VERSION


def test_the_next_one_has_what_changed(portal: Portal) -> None:
    """Database and audit log are complete, of the uploads there is the file that is new and the one that is gone."""
    first = chained(portal)
    gone, *_ = sorted(path for path in portal.uploads.rglob("*") if path.is_file())
    gone.unlink()
    (portal.uploads / "new.sarif").write_text("new")
    second = chained(portal)
    archive = Path(second.destination_path)
    assert (second.parent, second.base) == (first.backup_id, first.backup_id)
    held = members(archive)
    assert "database.sql" in held
    assert "audit/audit.jsonl" in held
    assert [path for path in held if path.startswith("media/") and path.endswith((".sarif", ".json"))] == [
        "media/new.sarif"
    ]
    told = json.loads(member(archive, "deleted.jsonl"))
    assert told == {"path": f"media/{gone.relative_to(portal.uploads)}"}
    said = manifest(archive)
    assert (said["format_version"], said["type"]) == (CHAINED_VERSION, "full")
    assert said["components"] == ["database", "media", "audit_logs"]


def test_one_is_made_where_nothing_has_changed(portal: Portal) -> None:
    """A full backup stands for its moment: it holds the database anew, and no upload."""
    chained(portal)
    second = chained(portal)
    assert not second.unchanged
    archive = Path(second.destination_path)
    assert not [path for path in members(archive) if path.startswith("media")]
    assert Verifier(jobs=2).verify(archive).intact


def test_it_is_verified_to_its_dump(portal: Portal) -> None:
    """Every level of a verification knows it."""
    chained(portal)
    archive = Path(chained(portal).destination_path)
    found = Verifier(jobs=2, pg_bin_dir=portal.bin_dir).verify(archive, VerifyLevel.DUMP)
    assert found.intact, found.message


def test_complete_is_complete(portal: Portal) -> None:
    """Whoever asks for a complete one gets it, and the next one follows that."""
    chained(portal)
    complete = chained(portal, complete=True)
    assert complete.parent is None
    assert chained(portal).parent == complete.backup_id


def test_the_default_is_complete(portal: Portal) -> None:
    """Without the setting nothing follows anything."""
    succeeded(portal.job().backup_full())
    assert manifest(succeeded(portal.job().backup_full()))["parent"] is None


def test_incrementals_and_full_backups_are_one_chain(portal: Portal) -> None:
    """An upload's own backup follows the full one, and the next full one follows that."""
    first = chained(portal)
    (portal.uploads / "one").write_text("1")
    upload = portal.job().backup_media(incremental=True, changed=["one"])
    (portal.uploads / "two").write_text("2")
    full = chained(portal)
    (portal.uploads / "three").write_text("3")
    last = portal.job().backup_media(incremental=True)
    assert [upload.parent, full.parent, last.parent] == [first.backup_id, upload.backup_id, full.backup_id]
    assert last.base == first.backup_id


def test_the_schedule_asks_for_a_complete_one(portal: Portal) -> None:
    """The first full backup from the slot on is complete, and those after it follow that one."""
    before = chained(portal, moment=SUNDAY - timedelta(hours=1))
    assert chained(portal).parent == before.backup_id
    now = datetime.now(UTC)
    soon = now + timedelta(days=1)
    schedule = f"{soon.minute} {soon.hour} {soon.day} {soon.month} *"
    later = chained(portal, schedule=schedule, moment=soon + timedelta(hours=1))
    assert later.parent is None
    assert later.warnings == ()


def test_the_dump_is_not_counted_twice(portal: Portal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the uploads turn out to be taken completely, the dump is on the disk: there has to be room for the rest."""
    first = chained(portal)
    chained(portal)
    asked: list[int] = []
    monkeypatch.setattr(BackupRun, "_check_space", lambda _, expected: asked.append(expected))
    job = portal.job(full_uploads="chain", schedule_complete=None, chain_length=1)
    assert manifest(succeeded(job.backup_full()))["parent"] is None
    assert 0 <= asked[-1] < first.size_bytes


def damage(archive: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:-100])


def remove(archive: Path) -> None:
    archive.unlink()
    archive.with_name(f"{archive.name}.sha256").unlink()


def lose_the_sidecar(archive: Path) -> None:
    archive.with_name(f"{archive.name}.sha256").unlink()


def unmount(archive: Path) -> None:
    """A link to where nothing is any more."""
    archive.unlink()
    archive.symlink_to("/nowhere/at/all")


@pytest.mark.parametrize(
    ("which", "harm"), [("parent", damage), ("base", remove), ("base", lose_the_sidecar), ("parent", unmount)]
)
def test_what_cannot_be_followed_makes_the_next_one_complete(portal: Portal, harm: Any, which: str) -> None:
    """Damaged, missing, or on a disk that is not mounted: a warning names the archive."""
    base = chained(portal)
    (portal.uploads / "one").write_text("1")
    parent = chained(portal)
    (portal.uploads / "two").write_text("2")
    portal.job().backup_media(incremental=True)
    hurt = {"base": base, "parent": parent}[which]
    harm(Path(hurt.destination_path))
    result = chained(portal)
    assert result.parent is None
    assert "complete in this backup" in result.warnings[0]
    assert "two" in {path.rpartition("/")[2] for path in members(Path(result.destination_path))}
    assert chained(portal).parent == result.backup_id


def test_a_finding_of_damage_makes_the_next_one_complete(portal: Portal) -> None:
    """What a verification has found is known before a byte is read."""
    base = chained(portal)
    archive = Path(base.destination_path)
    whole = archive.read_bytes()
    damage(archive)
    assert not portal.job().verify(archive).intact
    archive.write_bytes(whole)
    result = chained(portal)
    assert result.parent is None
    assert "verification has found a damage" in result.warnings[0]


def test_a_single_file_as_uploads_has_no_chain(portal: Portal) -> None:
    """It is taken completely each time."""
    file = portal.directory / "one.sarif"
    file.write_text("one")
    job = portal.job(full_uploads="chain", media_path=file)
    for _ in range(2):
        result = job.backup_full()
        assert (result.error, result.parent, result.warnings) == (None, None, ())


def test_another_word_is_refused(portal: Portal) -> None:
    """The configuration says what there is."""
    with pytest.raises(ConfigurationError, match="neither complete nor chain"):
        portal.config(full_uploads="some")
    with pytest.raises(ConfigurationError, match="no cron expression"):
        portal.config(full_uploads="chain", schedule_complete="each Sunday")
    assert isinstance(portal.config(full_uploads="chain"), BackupConfig)


def test_tar_opens_it(portal: Portal, tmp_path: Path) -> None:
    """And whoever unpacks base and follower, removing between them what is listed, has the whole portal."""
    base = chained(portal)
    gone, *_ = sorted(path for path in portal.uploads.rglob("*") if path.is_file())
    gone.unlink()
    (portal.uploads / "new.sarif").write_text("new")
    last = chained(portal)
    place = tmp_path / "by-hand"
    place.mkdir()
    for result in (base, last):
        command = ["tar", "xzf", result.destination_path, "-C", str(place), "--strip-components=1"]
        subprocess.run(command, check=True)
        listed = place / "deleted.jsonl"
        if result is base:
            removed = [
                json.loads(line)["path"] for line in member(Path(last.destination_path), "deleted.jsonl").splitlines()
            ]
            for path in removed:
                (place / path).unlink()
    assert listed.exists()
    assert contents(place / "media") == contents(portal.uploads)


def contents(root: Path) -> dict[str, tuple[int, int, str]]:
    return dict(tree_contents(root))


def test_a_pin_keeps_all_that_it_needs(portal: Portal) -> None:
    """A prune with no mercy leaves a pinned one with its chain."""
    base = chained(portal)
    (portal.uploads / "one").write_text("1")
    between = portal.job().backup_media(incremental=True)
    kept = chained(portal)
    last = chained(portal, complete=True)
    Pins(Repository(portal.archives)).pin(kept.backup_id, reason="audit", who="anna", moment=datetime.now(UTC))
    job = portal.job(retention_days=0, retention_count=1)
    job.cleanup_old_backups()
    left = {archive.name for archive in Repository(portal.archives).archives()}
    assert left == {base.backup_id, between.backup_id, kept.backup_id, last.backup_id}


def test_the_database_is_read_before_the_uploads_are_compared(portal: Portal, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that comes while the database is dumped is in the archive."""
    from portal.ops.backup import collect

    chained(portal)
    dump = collect.Collection._dump

    def slow(self: collect.Collection, writer: Any) -> dict[str, Any]:
        found = dump(self, writer)
        (portal.uploads / "late.sarif").write_text("late")
        return found

    monkeypatch.setattr(collect.Collection, "_dump", slow)
    archive = Path(chained(portal).destination_path)
    with closing(ArchiveReader(archive)) as reader:
        assert reader.find("media/late.sarif")


@pytest.mark.parametrize(
    "command",
    [
        ("tools.backup", "verify"),
        ("tools.restore", "--force"),
        ("tools.restore", "--force", "--database-only"),
    ],
    ids=" ".join,
)
def test_an_older_release_refuses_it(portal: Portal, previous_release: Path, command: tuple[str, ...]) -> None:
    """It says that the format is a later one, and changes nothing."""
    chained(portal)
    (portal.uploads / "new.sarif").write_text("new")
    archive = chained(portal).destination_path
    (portal.uploads / "later.sarif").write_text("later")
    before = tree_contents(portal.uploads)
    program, *options = command
    done = subprocess.run(
        [sys.executable, "-m", program, *options, archive],
        cwd=previous_release,
        env=portal.environ(PYTHONPATH=str(previous_release)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 4, done.stderr
    assert "the archive has format version 4; this release reads 1 and 2" in done.stdout
    assert tree_contents(portal.uploads) == before
