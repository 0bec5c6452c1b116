"""The journal of a restore of files: its lines, and each step forward and back, from wherever the last one stopped."""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from portal.ops.errors import RestoreError
from portal.ops.filesystem.attributes import Attributes
from portal.ops.filesystem.tree import Tree
from portal.ops.restore.files import journal
from portal.ops.restore.files.journal import (
    Do,
    Places,
    Step,
    Tally,
    read_attributes,
    read_backward,
    read_forward,
    write_journal,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BEFORE = Attributes(0o700, os.getuid(), os.getgid(), 1_000_000_001, ())
AFTER = Attributes(0o750, os.getuid(), os.getgid(), 2_000_000_002, (("user.a", "eA=="),))
STEPS = [
    Step(Do.ASIDE, "a\n\udcff", 1, 2, 3),
    Step(Do.MAKE, 'ä"'),
    Step(Do.PLACE, "b", 4, 5, -6),
    Step(Do.ATTRIBUTES, "", before=BEFORE, after=AFTER),
    Step(Do.ATTRIBUTES, "c", before=BEFORE._replace(xattrs=None)),
    Step(Do.ATTRIBUTES, "d", after=AFTER),
]


class TestLines:
    """What is written before anything is changed."""

    def test_they_come_back(self, tmp_path: Path) -> None:
        """Forward, backward, and those of attributes alone."""
        write_journal(tmp_path / "journal", iter(STEPS))
        assert list(read_forward(tmp_path / "journal")) == STEPS
        assert list(read_backward(tmp_path / "journal")) == STEPS[::-1]
        assert list(read_attributes(tmp_path / "journal")) == STEPS[3:]
        assert os.listdir(tmp_path) == ["journal"]

    @pytest.mark.parametrize("block", [1, 2, 7, 50, 100, 1000, 1 << 18])
    def test_backward_in_blocks(self, tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of any size: a line may begin in one and end in another, or be one exactly."""
        monkeypatch.setattr(journal, "_BLOCK", block)
        steps = [Step(Do.PLACE, "x" * (number % 5), number) for number in range(30)]
        write_journal(tmp_path / "journal", steps)
        assert list(read_backward(tmp_path / "journal")) == steps[::-1]
        (tmp_path / "journal").write_bytes(b"")
        assert list(read_backward(tmp_path / "journal")) == []

    def test_it_appears_complete_or_not_at_all(self, tmp_path: Path) -> None:
        """What was begun and not finished is not taken for one, and is written over."""

        def fails() -> Iterator[Step]:
            yield STEPS[0]
            raise KeyError

        with pytest.raises(KeyError):
            write_journal(tmp_path / "journal", fails())
        assert not (tmp_path / "journal").exists()
        write_journal(tmp_path / "journal", STEPS[1:2])
        assert list(read_forward(tmp_path / "journal")) == STEPS[1:2]

    def test_it_is_on_the_disk_before_it_is_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """All of it."""
        synced: list[tuple[int, bool]] = []

        def noted(descriptor: int) -> None:
            synced.append((os.fstat(descriptor).st_size, (tmp_path / "journal").exists()))

        monkeypatch.setattr(os, "fsync", noted)
        write_journal(tmp_path / "journal", STEPS)
        assert synced == [((tmp_path / "journal").stat().st_size, False)]

    @pytest.mark.parametrize("line", [b"\xff\n", b"[]\n", b"x\n", b"null\n", b'["dance","a",0,0,0,null,null]\n'])
    @pytest.mark.parametrize("read", [read_forward, read_backward])
    def test_a_damaged_one_is_told(self, tmp_path: Path, line: bytes, read: object) -> None:
        """With the place of the old data."""
        (tmp_path / "journal").write_bytes(STEPS[1].encode().encode() + line)
        with pytest.raises(RestoreError, match=f"the journal {tmp_path}/journal is damaged") as caught:
            list(read(tmp_path / "journal"))  # type: ignore[operator]
        assert "rollback/ beside it" in caught.value.hint

    def test_only_lines_of_attributes_are_decoded_for_them(self, tmp_path: Path) -> None:
        """Others may be many."""
        (tmp_path / "journal").write_bytes(b"nonsense\n" + STEPS[3].encode().encode())
        assert list(read_attributes(tmp_path / "journal")) == [STEPS[3]]


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Places]:
    """Four empty trees."""
    with ExitStack() as stack:
        for name in ("live", "stage", "rollback", "kept"):
            (tmp_path / name).mkdir()
        trees = {name: stack.enter_context(Tree(str(tmp_path / name))) for name in os.listdir(tmp_path)}
        yield Places(**trees)


def files(root: Path) -> dict[str, str]:
    """Every file of the four trees, and every empty directory."""
    return {
        str(path.relative_to(root)): path.read_text() if path.is_file() else "/"
        for path in sorted(root.rglob("*"))
        if path.is_file() or not list(path.iterdir())
    }


def put(root: Path, **contents: str) -> None:
    for name, text in contents.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def step(do: Do, path: str, of: Path | None = None) -> Step:
    found = of.stat() if of else None
    return Step(do, path, *((found.st_ino, found.st_size, found.st_mtime_ns) if found else ()))


EMPTY = {"kept": "/", "live": "/", "rollback": "/", "stage": "/"}


class TestForward:
    """Each step looks at what is there, and does what is left."""

    def test_something_is_moved_aside_once(self, places: Places, tmp_path: Path) -> None:
        """What others have put in its place since stays."""
        put(tmp_path, live__d__a="old")
        places.take([Step(Do.ASIDE, "d/a")])
        put(tmp_path, live__d__a="newer")
        places.take([Step(Do.ASIDE, "d/a"), Step(Do.ASIDE, "x")])
        assert files(tmp_path) == {"kept": "/", "live/d/a": "newer", "rollback/d/a": "old", "stage": "/"}

    def test_a_staged_directory_is_moved_with_all_in_it(self, places: Places, tmp_path: Path) -> None:
        """The steps for what is in it have nothing to do, and those for what is beside it do."""
        put(tmp_path, stage__d__e__a="new", stage__dd="beside")
        steps = [Step(Do.MAKE, "d"), Step(Do.MAKE, "d/e"), Step(Do.PLACE, "d/e/a"), Step(Do.PLACE, "dd")]
        for _ in range(2):
            places.take(steps)
            assert files(tmp_path) == {
                "kept": "/",
                "live/d/e/a": "new",
                "live/dd": "beside",
                "rollback": "/",
                "stage": "/",
            }

    def test_a_directory_is_made(self, places: Places, tmp_path: Path) -> None:
        """For its owner alone; one that is there is left, and what is staged for it put into it."""
        places.take([Step(Do.MAKE, "d")])
        assert stat.S_IMODE((tmp_path / "live" / "d").stat().st_mode) == 0o700
        (tmp_path / "live" / "d").chmod(0o755)
        put(tmp_path, stage__d__a="new")
        places.take([Step(Do.MAKE, "d"), Step(Do.PLACE, "d/a")])
        assert files(tmp_path)["live/d/a"] == "new"
        assert stat.S_IMODE((tmp_path / "live" / "d").stat().st_mode) == 0o755

    def test_a_staged_file_is_no_directory(self, places: Places, tmp_path: Path) -> None:
        """Where a directory is to be made, one is."""
        put(tmp_path, stage__d="a file")
        places.take([Step(Do.MAKE, "d")])
        assert (tmp_path / "live" / "d").is_dir()
        assert files(tmp_path)["stage/d"] == "a file"

    def test_a_file_is_placed_once(self, places: Places, tmp_path: Path) -> None:
        """Of somebody who was faster, what was written is kept; whoever removes it afterwards has removed it."""
        put(tmp_path, stage__d__a="new", live__d__a="somebody's", kept__d__a="kept before")
        steps = [Step(Do.PLACE, "d/a")]
        places.take(steps)
        expected = {"kept/d/a": "kept before", "kept/d/a~": "somebody's", "live/d/a": "new", "rollback": "/"}
        assert files(tmp_path) == expected | {"stage/d": "/"}
        places.take(steps)
        assert files(tmp_path) == expected | {"stage/d": "/"}
        (tmp_path / "live" / "d" / "a").unlink()
        places.take(steps)
        assert "live/d/a" not in files(tmp_path)

    def test_attributes_are_set(self, places: Places, tmp_path: Path) -> None:
        """Of a directory that is one still, where there are any to set."""
        (tmp_path / "live" / "d").mkdir()
        put(tmp_path, live__f="a file")
        before = (tmp_path / "live" / "f").stat()
        attributes = AFTER._replace(xattrs=())
        places.take([Step(Do.ATTRIBUTES, path, after=attributes) for path in ("d", "f", "x")])
        places.take([Step(Do.ATTRIBUTES, "d", before=BEFORE)])
        found = (tmp_path / "live" / "d").stat()
        assert (stat.S_IMODE(found.st_mode), found.st_mtime_ns) == (0o750, AFTER.mtime_ns)
        assert (tmp_path / "live" / "f").stat() == before

    def test_a_directory_is_the_one_of_that_name_now(self, places: Places, tmp_path: Path) -> None:
        """Not the one that was moved aside, nor one that somebody has removed, although it was open."""
        put(tmp_path, live__d__a="old", stage__e__a="new")
        places.live.directory("d")
        places.take([Step(Do.ASIDE, "d"), Step(Do.MAKE, "d")])
        put(tmp_path, stage__d__b="new")
        places.take([Step(Do.PLACE, "d/b")])
        assert files(tmp_path)["live/d/b"] == "new"
        (tmp_path / "live" / "e").mkdir()
        places.live.directory("e")
        (tmp_path / "live" / "e").rmdir()
        places.take([Step(Do.MAKE, "e"), Step(Do.ATTRIBUTES, "e", after=AFTER._replace(xattrs=()))])
        assert stat.S_IMODE((tmp_path / "live" / "e").stat().st_mode) == AFTER.mode

    def test_a_refusal_names_the_whole_path(self, places: Places, tmp_path: Path) -> None:
        """The operating system names the last part alone."""
        put(tmp_path, stage__d__a="new", live__d="a file")
        with pytest.raises(NotADirectoryError) as caught:
            places.take([Step(Do.PLACE, "d/a")])
        assert caught.value.filename == f"{tmp_path}/live/d/a"
        put(tmp_path, rollback__d__b="old")
        with pytest.raises(OSError, match="d/b") as refused:
            places.take_back(Step(Do.ASIDE, "d/b"), Tally())
        assert refused.value.filename == f"{tmp_path}/live/d/b"


class TestBack:
    """The same steps, reversed."""

    def test_what_was_moved_aside_is_put_back_once(self, places: Places, tmp_path: Path) -> None:
        """And counted; nothing more happens where there is nothing left."""
        put(tmp_path, rollback__d__a="old")
        tally = Tally()
        for _ in range(2):
            places.take_back(Step(Do.ASIDE, "d/a"), tally)
        assert files(tmp_path) == {"kept": "/", "live/d/a": "old", "rollback/d": "/", "stage": "/"}
        assert (tally.moved, tally.kept, tally.changed) == (1, [], [])

    def test_what_others_put_in_its_place_is_kept(self, places: Places, tmp_path: Path) -> None:
        """Under its path."""
        put(tmp_path, rollback__a="old", live__a="somebody's")
        tally = Tally()
        places.take_back(Step(Do.ASIDE, "a"), tally)
        assert files(tmp_path) == {"kept/a": "somebody's", "live/a": "old", "rollback": "/", "stage": "/"}
        assert (tally.moved, tally.kept) == (1, ["a"])

    def test_a_placed_file_goes_back_to_the_stage(self, places: Places, tmp_path: Path) -> None:
        """One that was changed is told; one that is gone is not."""
        put(tmp_path, live__d__a="new", live__b="new", live__c="new")
        steps = [step(Do.PLACE, path, tmp_path / "live" / path) for path in ("d/a", "b", "c")]
        put(tmp_path, live__b="changed since")
        os.utime(tmp_path / "live" / "c", ns=(5, 5))
        tally = Tally()
        for one in (*steps, *steps):
            places.take_back(one, tally)
        assert files(tmp_path) == {
            "kept": "/",
            "live/d": "/",
            "rollback": "/",
            "stage/b": "changed since",
            "stage/c": "new",
            "stage/d/a": "new",
        }
        assert (tally.moved, tally.changed, tally.kept) == (3, ["b", "c"], [])

    def test_another_file_in_its_place(self, places: Places, tmp_path: Path) -> None:
        """It stays where nothing was before, and is kept where the old one has to go; either is told."""
        put(tmp_path, live__a="another", live__b="another", rollback__b="old")
        tally = Tally()
        for path in ("a", "b"):
            places.take_back(Step(Do.PLACE, path, 1), tally)
        assert files(tmp_path) == {"kept/b": "another", "live/a": "another", "rollback/b": "old", "stage": "/"}
        assert (tally.moved, tally.kept) == (0, ["a", "b"])

    def test_the_old_file_is_not_somebodys(self, places: Places, tmp_path: Path) -> None:
        """Where the new one is in the stage, what is live was put back already."""
        put(tmp_path, live__a="old", stage__a="new")
        tally = Tally()
        places.take_back(Step(Do.PLACE, "a", 1), tally)
        assert (files(tmp_path)["live/a"], tally.kept) == ("old", [])

    def test_a_directory_that_was_made_is_removed(self, places: Places, tmp_path: Path) -> None:
        """If nothing is in it; what others have put there is told, each."""
        (tmp_path / "live" / "d").mkdir()
        put(tmp_path, live__e__b="b", live__e__a="a", live__f="a file")
        tally = Tally()
        for path in ("d", "e", "f", "x"):
            places.take_back(Step(Do.MAKE, path), tally)
        assert sorted(os.listdir(tmp_path / "live")) == ["e", "f"]
        assert (tally.kept, tally.moved) == (["e/a", "e/b"], 0)

    def test_attributes_are_those_of_before(self, places: Places, tmp_path: Path) -> None:
        """Where it was there before, and is a directory."""
        (tmp_path / "live" / "d").mkdir(mode=0o755)
        put(tmp_path, live__f="a file")
        before = (tmp_path / "live" / "f").stat()
        for path in ("d", "f"):
            places.take_back(Step(Do.ATTRIBUTES, path, before=BEFORE, after=AFTER), Tally())
        places.take_back(Step(Do.ATTRIBUTES, "d", after=AFTER), Tally())
        found = (tmp_path / "live" / "d").stat()
        assert (stat.S_IMODE(found.st_mode), found.st_mtime_ns) == (0o700, BEFORE.mtime_ns)
        assert (tmp_path / "live" / "f").stat() == before


@pytest.mark.parametrize("mode", [0o000, 0o555, 0o755, 0o1770])
def test_directories_are_opened_up(places: Places, tmp_path: Path, mode: int) -> None:
    """For their owner, whatever else they allow; the top too, and nothing but directories."""
    put(tmp_path, live__f="a file")
    (tmp_path / "live" / "d").mkdir()
    for path in ("f", "d", ""):
        (tmp_path / "live" / path).chmod(mode)
    for path in ("", "f", "d", "x"):
        places.open_up(Step(Do.ATTRIBUTES, path))
    found = [stat.S_IMODE((tmp_path / "live" / path).stat().st_mode) for path in ("d", "", "f")]
    (tmp_path / "live").chmod(0o755)
    assert found == [mode | 0o700, mode | 0o700, mode]
