"""Archives that lie are refused with exit code 4; nothing outside of the stage is written, and nothing is left."""

from __future__ import annotations

import os
import resource
import subprocess
import tarfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from portal.ops.archive.links import leads_out
from portal.ops.archive.open import open_archive
from portal.ops.errors import DiskFullError, NotIntactError, RestoreError
from portal.ops.model import RESTORE_DIRECTORY, Component
from portal.ops.restore.files.name_set import Kind, Names
from portal.ops.restore.files.restore import FileRestore
from portal.ops.restore.job import RestoreConfig, RestoreJob
from tests.support.archives import MTIME_NS, program, seal, tree_on_disk
from tests.support.hostile import CONTENT, Piece, directory, file, hardlink, symlink, write_indexed, write_plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIB = 1 << 20


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Uploads with one file, beside something that must not be reached."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("untouched")
    root = tmp_path / "uploads"
    root.mkdir()
    (root / "old.json").write_text("live")
    os.utime(root, ns=(MTIME_NS, MTIME_NS))
    return root


def restore(target: Path, *, allow_outside_links: bool = False) -> FileRestore:
    return FileRestore(
        target, restore_id="restore_1", component=Component.MEDIA, allow_outside_links=allow_outside_links
    )


def assert_refused(archive: Path, target: Path) -> NotIntactError:
    """Staging ends with exit code 4, and everything beside the archive is as it was."""
    before = tree_on_disk(target.parent)
    with pytest.raises(NotIntactError) as caught:
        restore(target).stage_from(open_archive(archive), 2)
    assert tree_on_disk(target.parent) == before, caught.value
    assert caught.value.exit_code == 4
    return caught.value


MEDIA = directory("media")
LONG = "a" * 300
INDEXED: dict[str, list[Piece]] = {
    "an absolute name": [file("/etc/cron.d/evil")],
    "a name that climbs": [MEDIA, file("media/../../outside/evil")],
    "a name that climbs at once": [file("../evil")],
    "an empty name": [MEDIA, file("media//evil")],
    "a name with a zero byte": [MEDIA, file("media/a\0b")],
    "a name too long for a file system": [MEDIA, file(f"media/{LONG}")],
    "a symlink to an absolute place": [MEDIA, symlink("media/a", "/etc/passwd")],
    "a symlink that climbs out": [MEDIA, directory("media/d"), symlink("media/d/a", "../../outside")],
    "symlinks that climb out together": [
        MEDIA,
        directory("media/d"),
        symlink("media/d/up", ".."),
        symlink("media/a", "d/up/../outside"),
    ],
    "a symlink that is written through": [MEDIA, symlink("media/a", "../outside"), file("media/a/evil")],
    "a symlink inside that is written through": [MEDIA, symlink("media/a", "b"), file("media/a/evil")],
    "a file in the place of a symlink": [MEDIA, symlink("media/a", "b"), file("media/a")],
    "a hard link that climbs": [MEDIA, hardlink("media/a", "../../etc/passwd")],
    "a hard link to another component": [file("audit/log"), MEDIA, hardlink("media/a", "audit/log")],
    "a hard link to nothing": [MEDIA, hardlink("media/a", "media/b")],
    "a hard link to a symlink": [MEDIA, symlink("media/b", "c"), hardlink("media/a", "media/b")],
    "a hard link to a directory": [MEDIA, directory("media/d"), hardlink("media/a", "media/d")],
    "a file that comes twice": [MEDIA, file("media/a"), file("media/a", b"other")],
    "a directory that comes twice": [MEDIA, directory("media/d"), directory("media/d")],
    "a file in a file": [MEDIA, file("media/a"), file("media/a/b")],
    "a file that is a directory too": [MEDIA, directory("media/a"), file("media/a")],
    "a directory that is a file too": [MEDIA, file("media/a"), directory("media/a")],
    "a symlink that is a file too": [MEDIA, file("media/a"), symlink("media/a", "b")],
    "uploads that are a symlink": [symlink("media", "/etc")],
    "uploads that are a file": [file("media")],
    "what belongs to restores": [MEDIA, directory(f"media/{RESTORE_DIRECTORY}")],
    "a digest that is wrong": [MEDIA, file("media/a", sha256="0" * 64)],
    "a wrong digest of a file that is hashed ahead": [MEDIA, file("media/a", b"a" * MIB, sha256="0" * 64)],
    "a wrong digest of a file with a thread of its own": [
        MEDIA,
        file("media/a", b"a" * (5 * MIB), size=5 * MIB, sha256="0" * 64),
    ],
    "more content than it says": [MEDIA, file("media/a", size=4)],
    "less content than it says": [MEDIA, file("media/a", size=4 * MIB)],
    "content that reaches past where the next begins": [
        MEDIA,
        file("media/a", b"a" * 1024, size=4 * MIB),
        file("media/b", b"b" * 1536),
    ],
    "a directory behind the end of its frame": [Piece(member=MEDIA.member._replace(at=MIB)), file("media/a")],
    "a file behind the end of its frame": [MEDIA, file("media/a", at=MIB), file("media/b")],
    "a size beyond all disks": [MEDIA, file("media/a", size=1 << 62)],
    "a time beyond all clocks": [MEDIA, file("media/a", mtime_ns=(1 << 63) * 1_000_000_000)],
    "an owner that cannot be": [MEDIA, file("media/a", uid=(1 << 32) - 1)],
    "a frame that holds more than it says": [
        MEDIA,
        Piece(member=file("media/a").member, content=CONTENT, tar_length=9),
    ],
    "a frame that is a bomb": [MEDIA, Piece(member=file("media/a").member, content=bytes(64 * MIB), tar_length=1024)],
    "a frame larger than memory": [MEDIA, Piece(member=file("media/a").member, content=CONTENT, tar_length=1 << 40)],
}


@pytest.mark.usefixtures("hands")
@pytest.mark.parametrize("lie", INDEXED)
def test_archive_with_an_index_is_refused(lie: str, target: Path, tmp_path: Path) -> None:
    """What a hostile archive with an index holds does not get out of the stage, whoever makes its files."""
    place = tmp_path / "repository"
    place.mkdir()
    assert_refused(write_indexed(place, INDEXED[lie]), target)


@pytest.mark.usefixtures("hands")
def test_what_lies_about_where_it_ends_is_refused_by_pattern_too(target: Path, tmp_path: Path) -> None:
    """The error is one of the archive, whichever way its content is read."""
    archive = write_indexed(tmp_path, INDEXED["content that reaches past where the next begins"])
    some = FileRestore(target, restore_id="restore_1", component=Component.MEDIA, patterns=("a",))
    with closing(open_archive(archive)) as opened, pytest.raises(NotIntactError, match="media/a, frame 2: it does not"):
        some.stage_from(opened, 2)


def test_manifest_behind_the_end_of_its_frame_is_damage(tmp_path: Path) -> None:
    """Whoever opens such an archive is told, and does not wait."""
    archive = write_indexed(tmp_path, [MEDIA], at=MIB)
    with closing(open_archive(archive)) as opened, pytest.raises(NotIntactError, match="behind the end of its frame"):
        opened.manifest()


@pytest.mark.usefixtures("hands")
def test_uploads_that_lie_apart_are_restored_wholly_or_not_at_all(target: Path, tmp_path: Path) -> None:
    """A part of them behind another component is not left out in silence."""
    pieces = [MEDIA, file("media/x"), directory("audit"), file("audit/log"), file("media/y")]
    one = restore(target)
    with closing(open_archive(write_indexed(tmp_path, pieces))) as opened:
        try:
            one.stage_from(opened, 2)
        except NotIntactError as error:
            assert "media/y: it lies apart from the rest of media" in str(error)
            return
    one.apply()
    assert sorted(path.name for path in target.iterdir() if path.name in "xy") == ["x", "y"]


def device(info: tarfile.TarInfo) -> None:
    info.type, info.devmajor, info.devminor = tarfile.CHRTYPE, 1, 3


def pipe(info: tarfile.TarInfo) -> None:
    info.type = tarfile.FIFOTYPE


def absolute(info: tarfile.TarInfo) -> None:
    info.name = "/etc/cron.d/evil"


def climbing(info: tarfile.TarInfo) -> None:
    info.name = info.name.replace("media/a", "media/../../evil")


def padded(info: tarfile.TarInfo) -> None:
    info.pax_headers = {"comment": "x" * (32 * MIB), "path": "../evil"}


PLAIN: dict[str, tuple[list[Piece], Callable[[tarfile.TarInfo], None]]] = {
    "a device": ([Piece(member=file("media/a").member)], device),
    "a pipe": ([Piece(member=file("media/a").member)], pipe),
    "an absolute name": ([file("media/a")], absolute),
    "a name that climbs": ([file("media/a")], climbing),
    "a huge header that climbs": ([file("media/a")], padded),
    "a symlink that leads out": ([symlink("media/a", "/etc/passwd")], lambda _: None),
    "a symlink that is written through": ([symlink("media/a", "b"), file("media/a/evil")], lambda _: None),
    "a hard link that leads out": ([hardlink("media/a", "../../etc/passwd")], lambda _: None),
    "a file that comes twice": ([file("media/a"), file("media/a")], lambda _: None),
}


@pytest.mark.parametrize("lie", PLAIN)
def test_archive_of_tar_and_gzip_is_refused(lie: str, target: Path, tmp_path: Path) -> None:
    """What a hostile archive that tar wrote holds does not get out of the stage."""
    assert_refused(write_plain(tmp_path, *PLAIN[lie]), target)


def test_archive_of_tar_that_is_cut_short_is_refused(target: Path, tmp_path: Path) -> None:
    """Half an archive leaves nothing behind."""
    archive = write_plain(tmp_path, [file("media/a", os.urandom(4 * MIB))], lambda _: None)
    os.truncate(archive, archive.stat().st_size // 2)
    assert_refused(archive, target)


def test_link_that_leads_out_is_restored_where_it_is_allowed(target: Path, tmp_path: Path) -> None:
    """A backup of ours with such a link can be restored by who knows it, and the refusal says how."""
    archive = write_indexed(tmp_path, [MEDIA, symlink("media/a", "/var/lib/reports")])
    assert "--allow-outside-links" in assert_refused(archive, target).hint
    allowed = restore(target, allow_outside_links=True)
    allowed.stage_from(open_archive(archive), 2)
    allowed.apply()
    assert (target / "a").readlink() == Path("/var/lib/reports")


@pytest.mark.parametrize(
    ("path", "link", "out"),
    [
        ("a", "b", False),
        ("a", "d/b", False),
        ("d/a", "../b", False),
        ("d/e/a", "../../b/c", False),
        ("a", "./d//b", False),
        ("a", "..", True),
        ("d/a", "../..", True),
        ("a", "/b", True),
        ("d/a", "e/../../b", True),
    ],
)
def test_links_are_told_apart_by_where_they_lead(path: str, link: str, out: bool) -> None:
    """A link stays inside as long as no `..` can be taken from anywhere but the link's own directory."""
    assert leads_out(path, link) is out


def test_setuid_bit_is_dropped_with_a_warning(target: Path, tmp_path: Path) -> None:
    """A file that would run as somebody else loses that bit."""
    archive = write_indexed(tmp_path, [MEDIA, file("media/a", mode=0o4755)])
    report = restore(target).stage_from(open_archive(archive), 2)
    restore(target).apply()
    assert (target / "a").stat().st_mode & 0o7777 == 0o755
    assert "setuid" in report.warnings[0]


@pytest.mark.parametrize(("one", "other"), [("Report", "report"), ("caf\u00e9", "cafe\u0301")])
def test_names_that_differ_in_case_or_form_are_a_warning(target: Path, tmp_path: Path, one: str, other: str) -> None:
    """Where the file system tells two names apart both are restored, and the report says so."""
    archive = write_indexed(tmp_path, [MEDIA, file(f"media/{one}", b"1"), file(f"media/{other}", b"2")])
    report = restore(target).stage_from(open_archive(archive), 2)
    restore(target).apply()
    assert ((target / one).read_bytes(), (target / other).read_bytes()) == (b"1", b"2")
    assert "differs" in report.warnings[0]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    command = [program("mount"), "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield place
    subprocess.run([program("umount"), str(place)], check=True)


def test_full_disk_is_refused_before_it_is_full(small_disk: Path, tmp_path: Path) -> None:
    """What does not fit is an error of its own, and what was written of it is gone; the target is a mount point."""
    archive = write_indexed(tmp_path, [MEDIA, file("media/a", os.urandom(4 * MIB))])
    free = os.statvfs(small_disk).f_bavail
    with pytest.raises(DiskFullError):
        restore(small_disk).stage_from(open_archive(archive), 2)
    assert list(small_disk.iterdir()) == []
    assert os.statvfs(small_disk).f_bavail == free


def test_mount_point_can_be_restored_to(small_disk: Path, tmp_path: Path) -> None:
    """Stage and rollback lie inside of a volume, so its root need not be renamed."""
    (small_disk / "a").write_text("old")
    archive = write_indexed(tmp_path, [MEDIA, file("media/a")])
    restore(small_disk).stage_from(open_archive(archive), 2)
    restore(small_disk).apply()
    assert (small_disk / "a").read_bytes() == CONTENT
    restore(small_disk).rollback()
    assert (small_disk / "a").read_text() == "old"


def test_limit_on_file_sizes_leaves_nothing_behind(target: Path, tmp_path: Path) -> None:
    """A write that the operating system refuses in the middle of a file is an error of this engine, without remains."""
    archive = write_indexed(tmp_path, [MEDIA, file("media/a", os.urandom(4 * MIB))])
    before = tree_on_disk(target)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, limits[1]))
    try:
        with pytest.raises(RestoreError, match="file too large") as caught:
            restore(target).stage_from(open_archive(archive), 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "ulimit -f" in caught.value.hint
    assert tree_on_disk(target) == before


def test_sparse_file_takes_no_room_for_its_holes(small_disk: Path, tmp_path: Path) -> None:
    """A file of zeros is restored to a disk that could not hold it in full."""
    archive = write_indexed(tmp_path, [MEDIA, file("media/a", bytes(8 * MIB) + b"end")])
    restore(small_disk).stage_from(open_archive(archive), 2)
    restore(small_disk).apply()
    assert (small_disk / "a").read_bytes() == bytes(8 * MIB) + b"end"


# -- through a whole restore ------------------------------------------------------------------------------------------


def sealed_lie(lie: str, directory: Path) -> Path:
    """An archive of the corpus with a sidecar that is right."""
    directory.mkdir()
    kind, _, name = lie.partition(": ")
    return seal(
        write_indexed(directory, INDEXED[name]) if kind == "index" else write_plain(directory, *PLAIN[name]),
    )


EVERY_LIE = [*(f"index: {lie}" for lie in INDEXED), *(f"tar: {lie}" for lie in PLAIN)]
ONLY_VERIFIED = ("index: a size beyond all disks",)
"""What nobody who does not read the archive can tell from one that needs more room than there is."""


@pytest.mark.parametrize(
    ("lie", "verified"),
    [*((lie, True) for lie in EVERY_LIE), *((lie, False) for lie in EVERY_LIE if lie not in ONLY_VERIFIED)],
)
def test_dry_run_and_restore_refuse_alike(lie: str, verified: bool, target: Path, tmp_path: Path) -> None:
    """A dry run ends with the code of the restore that it stands for, and neither of them changes anything."""
    archive = sealed_lie(lie, tmp_path / "archives")
    (tmp_path / "repository").mkdir()
    before = tree_on_disk(target), tree_on_disk(tmp_path / "outside")
    for dry_run in (True, False):
        config = RestoreConfig(
            local_path=tmp_path / "repository",
            media_path=target,
            dry_run=dry_run,
            verify_before_restore=verified,
        )
        result = RestoreJob(config).restore_media(archive)
        assert (result.exit_code, result.success) == (4, False), result.error
        assert (tree_on_disk(target), tree_on_disk(tmp_path / "outside")) == before
        assert not list((tmp_path / "repository").glob(".restores/restore_*"))


UNSHAPED = [
    lie
    for lie in INDEXED
    if ("link" in lie or "twice" in lie or " too" in lie or "in a file" in lie) and lie != "a hard link that climbs"
]


@pytest.mark.parametrize("lie", UNSHAPED)
def test_plan_says_what_the_stage_would_say(lie: str, target: Path, tmp_path: Path) -> None:
    """What the members say of each other is a blocker of the plan, with the words and the hint of the stage."""
    (tmp_path / "archives").mkdir()
    archive = write_indexed(tmp_path / "archives", INDEXED[lie])
    found = restore(target).plan(open_archive(archive).members())
    refused = assert_refused(archive, target)
    assert (str(found.blockers[0]), found.blockers[0].hint) == (str(refused), refused.hint)


def test_many_faults_are_a_few_blockers(target: Path, tmp_path: Path) -> None:
    """A plan stays short, whatever an archive holds."""
    pieces = [symlink(f"media/{number}", "/etc") for number in range(100)]
    found = restore(target).plan(open_archive(write_indexed(tmp_path, [MEDIA, *pieces])).members())
    assert len(found.blockers) == 5


def test_links_that_are_restored_are_warned_of(target: Path, tmp_path: Path) -> None:
    """Where links may lead out, plan and stage name them all the same."""
    archive = write_indexed(tmp_path, [MEDIA, symlink("media/a", "/var/lib/reports")])
    allowed = restore(target, allow_outside_links=True)
    warnings = allowed.plan(open_archive(archive).members()).warnings
    assert warnings == (
        "the link media/a leads out of the tree, to /var/lib/reports: it is restored with --allow-outside-links only",
    )
    assert allowed.stage_from(open_archive(archive), 2).warnings == warnings


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Report", "report"),
        ("report", "Report"),
        ("REPORT", "rePORT"),
        ("caf\u00e9", "cafe\u0301"),
        ("e\u0301", "\u00c9"),
    ],
)
def test_plan_warns_of_names_that_differ_in_case_or_form(target: Path, tmp_path: Path, one: str, other: str) -> None:
    """What the report would say of such names is said beforehand too, of files and of directories."""
    pieces = [file(f"media/{one}"), file(f"media/{other}"), directory(f"media/d/{one}"), directory(f"media/d/{other}")]
    found = restore(target).plan(open_archive(write_indexed(tmp_path, [MEDIA, *pieces])).members())
    assert not found.blockers
    assert [warning.split()[0] for warning in found.warnings] == [other, f"d/{other}"]
    assert "differs from another name" in found.warnings[0]


def test_plan_knows_how_long_a_name_may_be(target: Path, tmp_path: Path) -> None:
    """The limit is in bytes, and is that of the place where the files would go; a name as long as that is well."""
    for name, blockers in ((("ä" * 127) + "a", 0), ("ä" * 128, 1), (f"{'d' * 256}/a", 1)):
        archive = write_indexed(tmp_path, [MEDIA, file(f"media/{name}")])
        for place in (target, tmp_path / "not" / "there"):
            found = restore(place).plan(open_archive(archive).members())
            assert [error.exit_code for error in found.blockers] == [4] * blockers


@pytest.mark.usefixtures("hands")
def test_hard_link_to_another_component_is_refused_by_pattern_too(target: Path, tmp_path: Path) -> None:
    """It does not become a copy of what belongs to another component."""
    archive = write_indexed(tmp_path, INDEXED["a hard link to another component"])
    some = FileRestore(target, restore_id="restore_1", component=Component.MEDIA, patterns=("a",))
    with closing(open_archive(archive)) as opened, pytest.raises(NotIntactError):
        some.stage_from(opened, 2)


@pytest.mark.usefixtures("hands")
def test_hard_link_that_is_taken_alone_is_no_fault(target: Path, tmp_path: Path) -> None:
    """With patterns a plan takes what the stage takes: a link without its file becomes that file."""
    pieces = [directory("media/x"), file("media/x/a"), directory("media/y"), hardlink("media/y/b", "media/x/a")]
    archive = write_indexed(tmp_path, [MEDIA, *pieces])
    some = FileRestore(target, restore_id="restore_1", component=Component.MEDIA, patterns=("y",))
    opened = open_archive(archive)
    found = some.plan(list(opened.members()))
    assert (found.blockers, found.new, found.examples) == ((), 1, ("y/b",))
    some.stage_from(opened, 2)
    some.apply()
    assert (target / "y" / "b").read_bytes() == CONTENT


def test_names_are_told_apart() -> None:
    """The table of names says of each what it was told, however many there are."""
    names, kinds = Names(), [Kind.IMPLIED, Kind.DIRECTORY, Kind.FILE, Kind.SYMLINK]
    for number in range(50_000):
        assert names.add(f"tenant-{number % 7}/{number}", kinds[number % 4]) is Kind.NOTHING
    assert names.add("tenant-0/0", Kind.FILE) is Kind.IMPLIED
    names.change("tenant-0/0", Kind.FILE)
    assert len(names) == 50_000
    assert names.kind("tenant-0/0") is Kind.FILE
    assert all(names.kind(f"tenant-{number % 7}/{number}") is kinds[number % 4] for number in range(1, 50_000))
    assert all(names.kind(f"tenant-7/{number}") is Kind.NOTHING for number in range(50_000))
