"""Chains that are restored, verified and listed: whole ones, broken ones, and ones that lie."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.archive import index
from portal.ops.archive.reader import ArchiveReader
from portal.ops.backup.job import BackupConfig, BackupJob
from portal.ops.chains.reader import ChainReader, open_tree
from portal.ops.errors import NotIntactError
from portal.ops.manifest import Manifest
from portal.ops.model import DELETED, RESTORE_DIRECTORY, Component, VerifyLevel
from portal.ops.repository.sidecar import sidecar_of
from portal.ops.restore.files.restore import FileRestore
from portal.ops.restore.job import RestoreConfig, RestoreJob
from portal.ops.verify.verify import Verifier
from tests.support.archives import program, seal
from tests.support.hostile import Piece, directory, file, hardlink, write_chained
from tests.support.incrementals import Uploads, succeeded, tree_of_chain, two_tenants

if TYPE_CHECKING:
    from portal.ops.archive.index import Member
    from tests.support.archives import Tree

ROOT = Path(__file__).parents[2]


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    """Two tenants, and no backup yet."""
    return two_tenants(tmp_path)


class Chain:
    """A base and its incrementals, each with the tree of its moment."""

    def __init__(self, uploads: Uploads) -> None:
        self.uploads = uploads
        self.ids: list[str] = []
        self.trees: list[Tree] = []
        self._note(uploads.base().backup_id)
        uploads.write("tenant-1/new.json", b"new")
        self._note(uploads.incremental().backup_id)
        shutil.rmtree(uploads.root / "tenant-1" / "old")
        uploads.write("tenant-2/scan.json", b"changed")
        self._note(uploads.incremental().backup_id)
        uploads.write("tenant-3/last.json", b"last")
        self._note(uploads.incremental().backup_id)

    def _note(self, backup_id: str) -> None:
        self.ids.append(backup_id)
        self.trees.append(self.uploads.tree())

    def path(self, number: int) -> Path:
        """Where one of them is."""
        return self.uploads.archive(self.ids[number])


@pytest.fixture
def chain(uploads: Uploads) -> Chain:
    return Chain(uploads)


# -- whole ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("hands")
def test_every_moment_can_be_restored(chain: Chain) -> None:
    """Each archive gives the tree exactly as it was when it was made, deleted files too."""
    assert len(chain.ids) > 2
    for backup_id, tree in zip(chain.ids, chain.trees, strict=True):
        assert chain.uploads.restored(backup_id) == tree


@pytest.mark.usefixtures("hands")
def test_an_exact_restore_moves_what_came_later_aside(chain: Chain) -> None:
    """In place: what an older incremental does not have steps aside, and a rollback brings it back."""
    result = chain.uploads.restore(chain.ids[1], chain.uploads.root)
    assert result.error is None
    assert chain.uploads.tree() == chain.trees[1]


def test_latest_is_the_newest_that_holds_the_media(chain: Chain) -> None:
    """Incremental or not."""
    result = chain.uploads.restore("latest")
    assert (result.error, result.backup_id) == (None, chain.ids[-1])


def test_a_dry_run_counts_the_whole_tree(chain: Chain) -> None:
    """The plan is about the tree, not about what the incremental itself holds."""
    result = chain.uploads.restore(chain.ids[-1], dry_run=True)
    assert result.success
    assert any("4 new" in line or "4 files" in line for line in result.plan), result.plan


@pytest.mark.usefixtures("hands")
def test_single_files_come_from_where_they_are(chain: Chain) -> None:
    """By a pattern, from the base and from an incremental."""
    target = chain.uploads.directory / "restored"
    config = RestoreConfig(local_path=chain.uploads.archives, media_path=target, patterns=("tenant-1/*",), jobs=2)
    result = RestoreJob(config).restore_media(chain.ids[-1])
    assert result.error is None
    assert (target / "tenant-1" / "scan.json").read_bytes() == b"tenant-1/scan.json"
    assert (target / "tenant-1" / "new.json").read_bytes() == b"new"
    assert not (target / "tenant-1" / "old").exists()


def test_a_file_is_found_in_the_archive_that_has_it(chain: Chain) -> None:
    """`find` and `extract` as of one archive; what is gone is not found."""
    with closing(open_tree(chain.path(3))) as archive:
        assert isinstance(archive, ChainReader)
        contents = {
            path: b"".join(archive.extract(member)) if (member := archive.find(path)) else None
            for path in ("media/tenant-1/scan.json", "media/tenant-2/scan.json", "media/tenant-1/old/report.sarif")
        }
    assert list(contents.values()) == [b"tenant-1/scan.json", b"changed", None]


def test_no_file_is_read_twice(chain: Chain) -> None:
    """Every path comes once, whichever archives have it."""
    with closing(open_tree(chain.path(3))) as archive:
        paths = []
        for member, content in archive.contents(2):
            paths.append(member.path)
            assert sum(map(len, content)) == member.size
    assert len(paths) == len(set(paths)) == len(chain.trees[3])


def test_the_extract_command_knows_chains(chain: Chain) -> None:
    """A file of the base out of an incremental."""
    command = [sys.executable, "-m", "tools.backup", "extract", chain.path(3), "media/tenant-1/scan.json"]
    output = chain.uploads.directory / "taken"
    subprocess.run([*map(str, command), "--output", str(output)], check=True, cwd=ROOT, capture_output=True)
    assert output.read_bytes() == b"tenant-1/scan.json"


def test_the_list_shows_what_an_archive_stands_on(chain: Chain) -> None:
    """Parent and base of each, and a mark for a person."""
    backups = {backup["backup_id"]: backup for backup in chain.uploads.job().list_backups()}
    assert [backups[one]["parent"] for one in chain.ids] == [None, *chain.ids[:3]]
    assert [backups[one]["base"] for one in chain.ids] == [None, *[chain.ids[0]] * 3]
    environ = os.environ | {"BACKUP_LOCAL_PATH": str(chain.uploads.archives)}
    done = subprocess.run(
        [sys.executable, "-m", "tools.backup", "list"],
        env=environ,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.count("+ media") == 3
    assert [f"on {one}" in done.stderr for one in chain.ids] == [True, True, True, False]


def test_the_command_makes_incrementals(uploads: Uploads) -> None:
    """`media --incremental`, with and without changes."""
    environ = os.environ | {"BACKUP_LOCAL_PATH": str(uploads.archives), "PORTAL_UPLOAD_DIR": str(uploads.root)}
    command = [sys.executable, "-m", "tools.backup", "media", "--incremental"]
    base, same = (
        json.loads(subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, check=True).stdout)
        for _ in range(2)
    )
    assert (base["parent"], base["unchanged"]) == (None, False)
    assert (same["unchanged"], same["backup_id"]) == (True, base["backup_id"])


def test_a_prune_never_breaks_a_chain(chain: Chain) -> None:
    """Where only the newest is to be kept, all that it stands on is; what nothing stands on goes."""
    job, soon = chain.uploads.job(), datetime.now(UTC) + timedelta(hours=1)  # of one second the name decides
    base = succeeded(job.backup_media(moment=soon, request_id="base")).backup_id
    chain.uploads.write("tenant-4/only.json")
    newest = succeeded(job.backup_media(incremental=True, moment=soon + timedelta(hours=1))).backup_id
    later = datetime.now(UTC) + timedelta(days=400)
    config = BackupConfig(
        local_path=chain.uploads.archives, media_path=chain.uploads.root, retention_days=1, retention_count=1
    )
    result = BackupJob(config, clock=lambda: later).cleanup_old_backups()
    assert result, "nothing was removed"
    left = {backup["backup_id"] for backup in chain.uploads.job().list_backups()}
    assert left == {base, newest}
    assert chain.uploads.restored(newest) == chain.uploads.tree()


# -- broken ---------------------------------------------------------------------------------------------------------


def test_a_missing_archive_is_named_before_anything_is_touched(chain: Chain) -> None:
    """By every way to look at it; what does not need it is not concerned."""
    chain.path(1).unlink()
    target = chain.uploads.directory / "restored"
    asked: list[dict[str, Any]] = [{}, {"dry_run": True}, {"verify_before_restore": False}]
    for options in asked:
        result = chain.uploads.restore(chain.ids[3], **options)
        assert result.exit_code == NotIntactError.exit_code
        assert f"{chain.ids[2]} needs {chain.ids[1]}, which is not there" in (result.error or "")
        assert not target.exists()
    for level in (VerifyLevel.CHECKSUM, VerifyLevel.CONTENTS, VerifyLevel.DUMP):
        found = Verifier().verify(chain.path(3), level)
        assert not found.intact
        assert chain.ids[1] in found.message
    assert Verifier().verify(chain.path(0)).intact


@pytest.mark.usefixtures("hands")
def test_a_damaged_archive_is_named_before_anything_is_touched(chain: Chain) -> None:
    """A flipped bit in a file of the base, which the restore of an incremental would read."""
    path = chain.path(0)
    data = bytearray(path.read_bytes())
    with closing(ArchiveReader(path)) as archive:
        data[archive.frames.offsets[1] + 30] ^= 1
    path.write_bytes(data)
    result = chain.uploads.restore(chain.ids[3])
    assert result.exit_code == NotIntactError.exit_code
    assert chain.ids[0] in (result.error or "")
    assert not (chain.uploads.directory / "restored").exists()
    unverified = chain.uploads.restore(chain.ids[3], verify_before_restore=False)
    assert unverified.exit_code == NotIntactError.exit_code
    assert (
        not os.listdir(chain.uploads.directory / "restored")
        if (chain.uploads.directory / "restored").exists()
        else True
    )


def test_another_archive_cannot_take_the_parents_place(chain: Chain) -> None:
    """It has the name, its own sidecar is right, and the digest in the manifest says that it is another."""
    other = Uploads(directory=chain.uploads.directory / "other")
    other.write("tenant-1/scan.json", b"another's")
    made = other.base()
    shutil.copy(made.destination_path, chain.path(0))
    seal(chain.path(0))
    for number in (1, 3):
        result = chain.uploads.restore(chain.ids[number])
        assert result.exit_code == NotIntactError.exit_code
        assert not Verifier().verify(chain.path(number), VerifyLevel.CHECKSUM).intact
        assert "is not the archive that" in (result.error or "") or "says that it is" in (result.error or "")


@pytest.mark.usefixtures("hands")
def test_a_parent_without_a_sidecar_is_hashed(chain: Chain) -> None:
    """What binds the chain is in the manifests."""
    sidecar_of(chain.path(1)).unlink()
    assert chain.uploads.restored(chain.ids[3]) == chain.trees[3]


def test_a_retarred_incremental_is_not_taken_for_a_whole(chain: Chain, tmp_path: Path) -> None:
    """Without its index it cannot be restored, and never as if it were everything."""
    work = tmp_path / "work"
    work.mkdir()
    subprocess.run([program("tar"), "xzf", chain.path(3), "-C", work], check=True)
    (work / chain.ids[3] / "index.jsonl").unlink()
    subprocess.run([program("tar"), "czf", chain.path(3), "-C", work, chain.ids[3]], check=True)
    seal(chain.path(3))
    assert not Verifier().verify(chain.path(3)).intact
    result = chain.uploads.restore(chain.ids[3])
    assert result.exit_code == NotIntactError.exit_code


# -- hostile --------------------------------------------------------------------------------------------------------


NAMES = [f"media_20240115_12000{number}_abc123" for number in range(3)]


def chained(directory_: Path, *deltas: list[Piece], **lies: Any) -> Path:
    """A base with one file, and incrementals of these pieces; the last archive."""
    path = write_chained(directory_, NAMES[0], [directory("media"), directory("media/a"), file("media/a/kept")])
    for number, pieces in enumerate(deltas, 1):
        path = write_chained(directory_, NAMES[number], pieces, parent=path, base=NAMES[0], **lies)
    return path


def gone(*paths: str) -> Piece:
    return file(DELETED, "".join(f'{{"path":"{path}"}}\n' for path in paths).encode())


def refusal(tmp_path: Path, path: Path) -> str:
    """What a restore says, which touches nothing."""
    uploads = Uploads(directory=tmp_path)
    target = tmp_path / "restored"
    result = uploads.restore(str(path), target)
    assert result.exit_code == NotIntactError.exit_code, result.error
    assert not target.exists() or not os.listdir(target)
    return result.error or ""


def test_our_hostile_chains_are_sound_without_lies(tmp_path: Path) -> None:
    """What the others change one thing of is a chain that restores."""
    path = chained(tmp_path, [gone("media/a/kept"), file("media/b")])
    assert Verifier().verify(path).intact
    assert set(tree_of_chain(path)) == {b"", b"a", b"b"}


@pytest.mark.parametrize("path", ["audit/log", "../x", "media/../x", "media//x", "/media/x", "database.sql", ""])
def test_only_what_is_in_the_media_can_be_gone(tmp_path: Path, path: str) -> None:
    """Nor can a deleted path lead out; the archive is not intact, and is not restored."""
    archive = chained(tmp_path, [gone(path), file("media/b")])
    assert not Verifier().verify(archive).intact
    refusal(tmp_path, archive)


@pytest.mark.parametrize(
    "line", [b"{}\n", b"[]\n", b'{"path":1}\n', b'{"path":"media/a', b"\xff\n", b"[" * 70_000 + b"\n"]
)
def test_a_list_that_makes_no_sense_is_damage(tmp_path: Path, line: bytes) -> None:
    """And no crash."""
    archive = chained(tmp_path, [file(DELETED, line), file("media/b")])
    assert not Verifier().verify(archive).intact
    refusal(tmp_path, archive)


@pytest.mark.usefixtures("hands")
def test_a_link_to_what_is_gone_is_refused(tmp_path: Path) -> None:
    """The delta says that the content's name is gone, and leaves the other name."""
    write_chained(
        tmp_path, NAMES[0], [directory("media"), file("media/first"), hardlink("media/second", "media/first")]
    )
    base = tmp_path / f"{NAMES[0]}.tar.gz"
    archive = write_chained(tmp_path, NAMES[1], [gone("media/first")], parent=base, base=NAMES[0], tree=(0, 0))
    assert "link" in refusal(tmp_path, archive)


@pytest.mark.usefixtures("hands")
def test_what_is_not_in_the_tree_need_not_be_intact(tmp_path: Path) -> None:
    """A file of the base that is gone since is passed over; one that is not is a damage, and the archive is named."""
    pieces = [directory("media"), file("media/bad", sha256="0" * 64), file("media/good")]
    base = write_chained(tmp_path, NAMES[0], pieces)
    gone_since = write_chained(tmp_path, NAMES[1], [gone("media/bad"), file("media/b")], parent=base, base=NAMES[0])
    target = tmp_path / "restored"
    with closing(open_tree(gone_since)) as opened:
        FileRestore(target, restore_id="restore_1", component=Component.MEDIA).stage_from(opened, 2)
    staged = target / RESTORE_DIRECTORY / "restore_1" / "stage"
    assert sorted(path.name for path in staged.iterdir()) == ["b", "good"]
    shutil.rmtree(target)
    still_there = write_chained(tmp_path, NAMES[2], [file("media/b")], parent=base, base=NAMES[0])
    with closing(open_tree(still_there)) as opened, pytest.raises(NotIntactError, match=f"in {NAMES[0]}: media/bad"):
        FileRestore(target, restore_id="restore_2", component=Component.MEDIA).stage_from(opened, 2)
    assert not target.exists()


def test_a_delta_that_hides_a_file_is_found_out(tmp_path: Path) -> None:
    """It says how much the whole tree holds; a file that is deleted beyond that is missed."""
    archive = chained(tmp_path, [gone("media/a"), file("media/b")], tree=(2, 30))
    assert "files" in refusal(tmp_path, archive)


def test_a_file_in_place_of_a_directory_must_say_so(tmp_path: Path) -> None:
    """A delta that puts a file where the base has a directory, and does not list that as gone."""
    archive = chained(tmp_path, [file("media/a")], tree=(2, 30))
    refusal(tmp_path, archive)


@pytest.mark.parametrize(
    ("lies", "says"),
    [
        ({"parent": NAMES[1]}, "needs itself"),
        ({"base": NAMES[2]}, "different bases"),
        ({"parent": "../../etc/passwd"}, "is invalid"),
        ({"parent": "full_20240115_120000_ffffff"}, "not there"),
        ({"parent_sha256": "0" * 64}, "its SHA-256 is another"),
        ({"parent_sha256": "short"}, "is invalid"),
        ({"base": None}, "is invalid"),
        ({"format_version": 1}, "is invalid"),
        ({"format_version": 3}, "is invalid"),
        ({"format_version": 9}, "version 9"),
        ({"details": {"media": {"files": 1}}}, "how much"),
    ],
)
def test_a_manifest_that_lies_about_its_chain(tmp_path: Path, lies: dict[str, Any], says: str) -> None:
    """Loops, other bases, names that are paths, parents that are others: an error each, and nothing is touched."""
    base = write_chained(tmp_path, NAMES[0], [directory("media"), file("media/kept")])
    archive = write_chained(tmp_path, NAMES[1], [file("media/b")], parent=base, base=NAMES[0], changes=lies)
    assert says in refusal(tmp_path, archive)


def test_a_loop_of_two_ends(tmp_path: Path) -> None:
    """No digest can bind it, so it is found while the digests are looked at, or before."""
    base = write_chained(tmp_path, NAMES[0], [directory("media")])
    one = write_chained(tmp_path, NAMES[1], [], parent=base, base=NAMES[0], changes={"parent": NAMES[2]})
    write_chained(tmp_path, NAMES[2], [], parent=one, base=NAMES[0])
    refusal(tmp_path, one)


def members(path: Path) -> list[Member]:
    with closing(ArchiveReader(path)) as archive:
        return list(archive.members())


def test_an_older_release_refuses_an_incremental(chain: Chain) -> None:
    """Its manifest has a version that only this release knows."""
    found = next(member for member in members(chain.path(1)) if member.path == index.MANIFEST)
    with closing(ArchiveReader(chain.path(1))) as archive:
        document = json.loads(b"".join(archive.extract(found)))
    assert document["format_version"] == 2
    assert Manifest.decode(json.dumps(document).encode()).parent == chain.ids[0]
