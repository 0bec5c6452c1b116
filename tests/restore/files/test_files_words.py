"""What is said of a restore of files: its plan, its report, and the refusals of the operating system."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from portal.ops.errors import AccessDeniedError, DiskFullError, NotIntactError, OpsError, RestoreError
from portal.ops.filesystem.attributes import Attributes
from portal.ops.filesystem.tree import Tree
from portal.ops.restore.audit_chain import Chain, ChainReport, Continuation
from portal.ops.restore.files import free_space, refusals
from portal.ops.restore.files.free_space import Room, room
from portal.ops.restore.files.lost_attributes import LostAttributes
from portal.ops.restore.files.record import FilesState
from portal.ops.restore.files.refusals import explained
from portal.ops.restore.files.report import FilesPlan, FilesReport

MIB = 1 << 20


def plan(**changes: Any) -> FilesPlan:
    facts: dict[str, Any] = {
        "place": Path("/up"),
        "new": 0,
        "new_bytes": 0,
        "replaced": 0,
        "replaced_bytes": 0,
        "same": 0,
        "left": 0,
        "exact": False,
        "stage_bytes": 2000,
        "free_bytes": 3000,
    }
    return FilesPlan(**(facts | changes))


def report(**changes: Any) -> FilesReport:
    facts: dict[str, Any] = {"place": Path("/up"), "restore_id": "r", "state": FilesState.APPLIED}
    return FilesReport(**(facts | changes))


class TestPlan:
    """What a person reads beforehand."""

    def test_all_of_it(self) -> None:
        """What changes, what is left, the room, examples, and what is in the way."""
        found = plan(
            new=1200,
            new_bytes=5000,
            replaced=1,
            replaced_bytes=7,
            same=2,
            left=2,
            examples=("a", "b"),
            in_the_way=("c is a file", "d is a directory"),
        )
        assert found.lines() == [
            "To /up:",
            "1,200 files would be new (5.0 kB), 1 file replaced (7 B), 2 files as in the backup, by size and time.",
            "2 files that the backup does not have stay.",
            "The stage needs 2.0 kB; 3.0 kB are free.",
            "For example: a, b.",
            "In the way: c is a file.",
            "In the way: d is a directory.",
        ]

    def test_nothing(self) -> None:
        """What there is none of is not said."""
        assert plan().lines() == [
            "To /up:",
            "There is no file in the backup.",
            "The stage needs 2.0 kB; 3.0 kB are free.",
        ]
        assert (plan().content_bytes, plan().blockers) == (0, ())

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"new": 1}, "1 file would be new (0 B)."),
            ({"replaced": 2}, "2 files replaced (0 B)."),
            ({"same": 1}, "1 file as in the backup, by size and time."),
        ],
    )
    def test_one_kind_of_change(self, changes: dict[str, int], said: str) -> None:
        """It stands alone."""
        assert plan(**changes).lines()[1] == said

    @pytest.mark.parametrize(
        ("left", "exact", "said"),
        [
            (1, False, "1 file that the backup does not have stays."),
            (1, True, "1 file that the backup does not have would be moved aside, into the rollback data."),
            (2, True, "2 files that the backup does not have would be moved aside, into the rollback data."),
        ],
    )
    def test_what_the_backup_does_not_have(self, left: int, exact: bool, said: str) -> None:
        """It stays, or is moved aside."""
        assert plan(left=left, exact=exact).lines()[2] == said


class TestReport:
    """What a person reads afterwards."""

    def test_of_a_restore(self) -> None:
        """Numbers, what was moved aside, and what the chains say."""
        chain = ChainReport(
            name="log", chain=Chain.UNBROKEN, entries=1000, broken_at=None, continuation=Continuation.SAME
        )
        assert report(new=1000, replaced=2, same=3000, aside=1, chains=(chain,)).lines() == [
            "/up: 1,000 new, 2 replaced, 3,000 the same.",
            "1 file or directories that the backup does not have were moved aside.",
            "log: its hash chain is unbroken over 1,000 entries; the live log is the same.",
        ]
        assert report().lines() == ["/up: 0 new, 0 replaced, 0 the same."]

    @pytest.mark.parametrize(
        ("moved", "said"), [(0, "0 entries were"), (1, "1 entry was"), (2000, "2,000 entries were")]
    )
    def test_of_a_rollback(self, moved: int, said: str) -> None:
        """How much went back, and what others had written."""
        found = report(state=FilesState.ROLLED_BACK, taken_back=moved, kept=("a",), changed=("b", "c"))
        assert found.lines() == [
            f"/up: as before; {said} moved back.",
            "Written by others since, and kept: a.",
            "Changed by others since, and now in the stage: b.",
            "Changed by others since, and now in the stage: c.",
        ]

    @pytest.mark.parametrize(("count", "more"), [(20, []), (21, ["1 more"]), (1021, ["1,001 more"])])
    def test_many_paths(self, count: int, more: list[str]) -> None:
        """Twenty are named, and the others counted."""
        names = tuple(map(str, range(count)))
        lines = report(kept=names).lines()[1:]
        assert lines == [f"Written by others since, and kept: {one}." for one in [*names[:20], *more]]

    def test_as_json(self) -> None:
        """Under the keys that programs read."""
        found = report(new=1, kept=("a",)).to_dict()
        assert (found["path"], found["state"], found["new"], found["kept"]) == ("/up", "applied", 1, ["a"])
        assert "place" not in found
        assert FilesReport.from_dict(found) == report(new=1, kept=("a",))


class TestRefusals:
    """What the operating system refused, in our words."""

    @pytest.mark.parametrize(
        ("number", "kind", "says"),
        [
            (errno.ENOSPC, DiskFullError, "no space left in /top to do it"),
            (errno.EDQUOT, DiskFullError, "no space left in /top to do it"),
            (errno.EACCES, AccessDeniedError, "/top/a may not be changed to do it: permission denied"),
            (errno.EROFS, AccessDeniedError, "/top/a may not be changed to do it: read-only file system"),
            (errno.EINVAL, NotIntactError, "the archive has a name that the file system of /top does not take: "),
            (errno.ENAMETOOLONG, NotIntactError, "the archive has a name that the file system of /top does not take: "),
            (errno.EILSEQ, NotIntactError, "the archive has a name that the file system of /top does not take: "),
            (errno.EXDEV, RestoreError, "the operating system refused to do it in /top: "),
            (errno.EFBIG, RestoreError, "the operating system refused to do it in /top: file too large"),
            (errno.EMFILE, RestoreError, "the operating system refused to do it in /top: too many open files"),
        ],
    )
    def test_each_has_its_kind(self, number: int, kind: type[OpsError], says: str) -> None:
        """With what it is about, and what to do."""
        error = explained(OSError(number, os.strerror(number), "/top/a"), "to do it", "/top")
        assert type(error) is kind
        assert error.message.casefold().startswith(says.casefold())
        assert error.hint
        assert error.message.endswith(" (/top/a)") is (kind is RestoreError)

    @pytest.mark.parametrize("name", [None, 3])
    def test_without_a_path_it_is_about_the_top(self, name: Any) -> None:
        """A descriptor is no path."""
        error = explained(OSError(errno.EACCES, "no", name), "to do it", "/top")
        assert error.message.startswith("/top may not be changed")
        assert explained(OSError(errno.EXDEV, "no", name), "to do it", "/top").message.endswith(": no")

    def test_a_path_may_be_bytes(self) -> None:
        """It is shown as text."""
        assert explained(OSError(errno.EACCES, "no", b"/top/\xff"), "", "/top").message.startswith("/top/\udcff may")

    @pytest.mark.parametrize(("is_root", "says"), [(True, "not even by root"), (False, "to do it: ")])
    def test_root_is_refused_what_is_immutable(self, is_root: bool, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Others may have no right, and are told of rights."""
        monkeypatch.setattr(refusals, "IS_ROOT", is_root)
        error = explained(OSError(errno.EPERM, "no", "/top/a"), "to do it", "/top")
        assert isinstance(error, AccessDeniedError)
        assert error.message.startswith("/top/a may not be changed to do it")
        assert says in error.message
        assert ("lsattr" in error.hint) is is_root
        assert "not even by root" not in explained(OSError(errno.EACCES, "no"), "to do it", "/top").message


class TestRoom:
    """The free space that a stage may use."""

    @pytest.mark.parametrize(
        ("blocks", "free", "expected"),
        [
            (100_000, 1000, 1000 * 4096 - 1000 * 4096),
            (1_000, 500, 500 * 4096 - 10 * 4096),
            (1_000, 5, 0),
            (1 << 30, 1 << 20, (1 << 32) - 64 * MIB),
        ],
    )
    def test_a_little_is_left_for_others(
        self, blocks: int, free: int, expected: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A hundredth of the disk, or 64 MiB of a large one."""
        disk = SimpleNamespace(f_blocks=blocks, f_frsize=4096, f_bavail=free)
        monkeypatch.setattr(os, "statvfs", lambda _: disk)
        assert room("/up") == expected

    def test_it_is_asked_for_now_and_then(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Not for each file; what others have taken meanwhile is noticed, and to the byte nothing more is taken."""
        free, asked = [100 * MIB], list[int]()

        def left(descriptor: int | str) -> int:
            asked.append(int(descriptor))
            return free[0]

        monkeypatch.setattr(free_space, "room", left)
        one = Room(7, "/up")
        one.take(10)
        one.take(1)
        one.take(4 * MIB - 1)
        assert asked == [7]
        one.take(1)
        assert asked == [7, 7]
        free[0] = 10 * MIB
        one.take(10 * MIB)
        assert asked == [7, 7, 7]
        one.take(0)
        with pytest.raises(DiskFullError, match="no space left for the stage in /up"):
            one.take(10 * MIB + 1)
        assert len(asked) == 4


class TestLost:
    """Attributes that a file system has not kept."""

    def test_they_are_told(self, tmp_path: Path) -> None:
        """Five of each kind by name, and the others counted; nothing where all were kept."""
        path = tmp_path / "file"
        path.touch()
        descriptor = os.open(path, os.O_RDONLY)
        try:
            kept = Attributes(0o600, 0, 0, path.stat().st_mtime_ns)
            wanted = kept._replace(xattrs=(("user.a", "eA=="),))
            lost = LostAttributes()
            lost.file(descriptor, kept, "kept")
            lost.file(descriptor, kept._replace(xattrs=()), "kept")
            assert lost.warnings() == []
            for number in range(5):
                lost.file(descriptor, wanted, f"x{number}")
            assert lost.warnings() == [
                f"x{number} has extended attributes that this file system or user does not allow: restored without"
                for number in range(5)
            ]
            for offset in (-1, 1):
                lost.file(descriptor, kept._replace(mtime_ns=kept.mtime_ns + offset), f"t{offset}")
            for number in range(1001):
                lost.file(descriptor, wanted, f"y{number}")
        finally:
            os.close(descriptor)
        assert lost.warnings()[5:] == [
            "1,001 more have extended attributes that this file system or user does not allow",
            *(f"t{offset} has a time that this file system cannot store: restored without" for offset in (-1, 1)),
        ]

    def test_directories_are_tried(self, tmp_path: Path) -> None:
        """Whether they could have them; they keep none of it for what is made in them."""
        with Tree(str(tmp_path)) as tree:
            lost = LostAttributes()
            wanted = Attributes(0o700, 0, 0, 0, (("user.a", "eA=="), ("system.impossible", "eA==")))
            lost.directory(tree.fileno(), wanted, "")
            lost.directory(tree.fileno(), wanted._replace(xattrs=None), "d")
            assert [said.split(" has ")[0] for said in lost.warnings()] == ["the directory itself"]
            assert [name for name in os.listxattr(tmp_path) if name.startswith("user.")] == []
