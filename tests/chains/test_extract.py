"""One file out of an archive, and what its chain says of it: names, deletions, the parents."""

from __future__ import annotations

import os
import stat
from contextlib import closing
from hashlib import sha256
from typing import TYPE_CHECKING, Any, cast

import pytest

from portal.ops.archive.index import LINE_BYTES, Member, MemberType
from portal.ops.archive.reader import ArchiveReader
from portal.ops.archive.sparse import hole
from portal.ops.chains.deletions import deletions, encode_deletions
from portal.ops.chains.extract import find_in_archive, types_holding, write_file
from portal.ops.chains.graph import Chains, Link
from portal.ops.chains.lineage import is_incremental, line_of, read_manifest
from portal.ops.chains.reader import ChainReader, open_tree
from portal.ops.errors import (
    ArchiveAbsentError,
    ConfigurationError,
    NotIntactError,
    RepositoryError,
    UnsupportedError,
)
from portal.ops.model import CHAINED_VERSION, DELETED, BackupType
from tests.support.hostile import (
    CONTENT,
    directory,
    file,
    hardlink,
    symlink,
    write_chained,
    write_indexed,
    write_plain,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from portal.ops.archive.protocol import IndexedArchive
    from tests.support.hostile import Piece

NAMES = [f"media_202401{day:02d}_120000_abc123" for day in range(1, 20)]


def gone(*paths: str) -> Piece:
    return file(DELETED, encode_deletions(paths).read())


def chain(place: Path, *links: list[Piece], **options: Any) -> list[Path]:
    """A base, and incrementals on it, of these pieces."""
    made: list[Path] = []
    for name, pieces in zip(NAMES, links, strict=False):
        base = {"base": NAMES[0], "parent": made[-1]} if made else {}
        made.append(write_chained(place, name, pieces, **cast("Any", base), **options))
    return made


class TestFinding:
    """A file in an archive."""

    @pytest.mark.parametrize(
        ("path", "types"),
        [
            ("media/a", {"full", "media"}),
            ("audit/log", {"full", "audit_logs"}),
            ("database.sql", {"full", "database"}),
            ("else", {kind.value for kind in BackupType}),
        ],
    )
    def test_which_archives_may_hold_it(self, path: str, types: set[str]) -> None:
        """By its first directory."""
        assert {kind.value for kind in types_holding(path)} == types

    def test_it_is_found(self, tmp_path: Path) -> None:
        """By its path, or by another name of it; a directory or a symlink is no file."""
        pieces = [directory("media"), file("media/a"), hardlink("media/b", "media/a"), symlink("media/c", "a")]
        archive = write_indexed(tmp_path, pieces)
        for path in ("media/a", "media/b"):
            reader, member = find_in_archive(archive, path)
            with closing(reader):
                assert (member.path, b"".join(reader.extract(member))) == ("media/a", CONTENT)
        for path in ("media/c", "media", "media/x"):
            with pytest.raises(ArchiveAbsentError, match=f"there is no file '{path}' in {archive.name}"):
                find_in_archive(archive, path)

    def test_it_cannot_be_found(self, tmp_path: Path) -> None:
        """Without an index, or without an archive."""
        archive = write_plain(tmp_path, [file("media/a")], lambda _: None)
        with pytest.raises(UnsupportedError, match="has no index at its end") as caught:
            find_in_archive(archive, "media/a")
        assert f"tar xzf {archive}" in caught.value.hint
        with pytest.raises(RepositoryError):
            find_in_archive(tmp_path / "absent.tar.gz", "media/a")


class TestWriting:
    """The file that is written."""

    member = Member("media/a", MemberType.FILE, 3, mode=0o4640, mtime_ns=1_700_000_000_000_000_001)

    def test_it_is_complete(self, tmp_path: Path) -> None:
        """With its mode and time, without special bits, in the place of another; holes are holes, at the end too."""
        (tmp_path / "out").write_text("another")
        size = 1 << 20
        content = [memoryview(b"one"), *hole(size - 3), memoryview(b"two"), *hole(size)]
        write_file(iter(content), self.member, str(tmp_path / "out"))
        assert (tmp_path / "out").read_bytes() == b"one" + bytes(size - 3) + b"two" + bytes(size)
        found = (tmp_path / "out").stat()
        assert (stat.S_IMODE(found.st_mode), found.st_mtime_ns) == (0o640, self.member.mtime_ns)
        assert found.st_blocks * 512 < size
        assert os.listdir(tmp_path) == ["out"]

    @pytest.mark.parametrize("name", ["a" * 255, "é" * 127])
    def test_the_longest_names(self, name: str, tmp_path: Path) -> None:
        """A file whose name leaves no room for more letters is written like any other."""
        write_file(iter([memoryview(b"one")]), self.member, str(tmp_path / name))
        assert os.listdir(tmp_path) == [name]

    def test_it_is_not_written_at_all(self, tmp_path: Path) -> None:
        """Where its content is damaged; what was there stays."""
        (tmp_path / "out").write_text("another")

        def damaged() -> Iterator[memoryview]:
            yield memoryview(b"one")
            raise NotIntactError("damage", hint="x")

        with pytest.raises(NotIntactError, match="damage"):
            write_file(damaged(), self.member, str(tmp_path / "out"))
        assert ((tmp_path / "out").read_text(), os.listdir(tmp_path)) == ("another", ["out"])

    def test_it_cannot_be_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The place is named; what somebody else is just writing is left."""
        monkeypatch.setattr("portal.ops.filesystem.temporary.secrets.randbelow", lambda _: 7)
        with pytest.raises(ConfigurationError, match=f"cannot write {tmp_path}/x/out: no such file") as caught:
            write_file(iter([]), self.member, str(tmp_path / "x" / "out"))
        assert "--output FILE" in caught.value.hint
        (tmp_path / ".out.7.tmp").write_text("somebody's")
        with pytest.raises(ConfigurationError, match="cannot write"):
            write_file(iter([]), self.member, str(tmp_path / "out"))
        assert (tmp_path / ".out.7.tmp").read_text() == "somebody's"
        (tmp_path / "place").mkdir()
        with pytest.raises(ConfigurationError, match="cannot write"):
            write_file(iter([]), self.member, str(tmp_path / "place"))
        assert sorted(os.listdir(tmp_path)) == [".out.7.tmp", "place"]


class TestDeletions:
    """What an incremental says is gone."""

    def test_they_come_back(self, tmp_path: Path) -> None:
        """Whatever the names are; more than one piece of them; an archive without any has none."""
        paths = [f'media/{"x" * 200}/{number}\n"' for number in range(10_000)] + ["media/\udcff"]
        with closing(ArchiveReader(write_indexed(tmp_path, [gone(*paths)]))) as reader:
            assert list(deletions(cast("IndexedArchive", reader))) == paths
        with closing(ArchiveReader(write_indexed(tmp_path, [directory("media")]))) as reader:
            assert list(deletions(cast("IndexedArchive", reader))) == []

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            (b'{"path":"media/a"}', "does not end as it should"),
            (b'{"path":"media/a"}\n' + b"x" * (LINE_BYTES + 2), "does not end as it should"),
            (b'{"path":"audit/a"}\n', 'has a line that is invalid: b\'{"path":"audit/a"}\''),
            (b'{"path":"mediax"}\n', "has a line that is invalid"),
            (b'{"path":"media/../x"}\n', "media/../x: the archive has a path that leads out of it"),
            (b'{"path":1}\n', "has a line that is invalid"),
            (b"[]\n", "has a line that is invalid"),
            (b"{}\n", "has a line that is invalid"),
            (b"x" * 300 + b"\n", f"has a line that is invalid: {b'x' * 200!r}"),
        ],
    )
    def test_a_list_that_makes_no_sense(self, tmp_path: Path, text: bytes, says: str) -> None:
        """It is damage, and what is wrong is shown in part."""
        reader = ArchiveReader(write_indexed(tmp_path, [file(DELETED, text)]))
        with closing(reader), pytest.raises(NotIntactError) as caught:
            list(deletions(cast("IndexedArchive", reader)))
        assert says in caught.value.message


class TestLine:
    """The archives that an incremental needs."""

    def test_base_first(self, tmp_path: Path) -> None:
        """Each with its digest; of a base only itself."""
        made = chain(tmp_path, [directory("media")], [file("media/a")], [file("media/b")])
        line = line_of(made[2])
        assert [(one.name, one.path) for one in line] == list(zip(NAMES, made, strict=False))
        assert [one.sha256 for one in line] == [sha256(path.read_bytes()).hexdigest() for path in made]
        assert [one.name for one in line_of(made[0])] == NAMES[:1]
        assert [is_incremental(path) for path in made] == [False, True, True]

    def test_what_cannot_be_read_is_none(self, tmp_path: Path) -> None:
        """Whether it is an incremental; its line is an error."""
        (tmp_path / "bad.tar.gz").write_bytes(b"nothing")
        (tmp_path / "place.tar.gz").mkdir()
        assert not is_incremental(tmp_path / "bad.tar.gz")
        assert not is_incremental(tmp_path / "place.tar.gz")
        with pytest.raises(NotIntactError, match=r"the manifest of bad\.tar\.gz cannot be read"):
            line_of(tmp_path / "bad.tar.gz")
        with pytest.raises(RepositoryError, match="cannot read"):
            read_manifest(tmp_path / "absent.tar.gz")

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"components": ["audit_logs"]}, f"{NAMES[0]}.tar.gz holds no media, although {NAMES[1]} was made on it"),
            ({"backup_id": NAMES[9]}, f"{NAMES[0]}.tar.gz says that it is {NAMES[9]}"),
        ],
    )
    def test_a_parent_that_is_another(self, tmp_path: Path, changes: dict[str, Any], says: str) -> None:
        """Its manifest tells."""
        parent = write_chained(tmp_path, NAMES[0], [directory("media")], changes=changes)
        tip = write_chained(tmp_path, NAMES[1], [file("media/a")], parent=parent, base=NAMES[0])
        with pytest.raises(NotIntactError) as caught:
            line_of(tip)
        assert caught.value.message == says

    def test_bases_agree(self, tmp_path: Path) -> None:
        """Along the line."""
        base = write_chained(tmp_path, NAMES[0], [directory("media")])
        one = write_chained(tmp_path, NAMES[1], [file("media/a")], parent=base, base=NAMES[0])
        tip = write_chained(tmp_path, NAMES[2], [file("media/b")], parent=one, base=NAMES[1])
        with pytest.raises(NotIntactError, match=f"{NAMES[2]} and {NAMES[1]} name different bases"):
            line_of(tip)


class TestTree:
    """A chain that is read as one tree."""

    def test_many_archives(self, tmp_path: Path) -> None:
        """More than are kept open: each file is found in its own, in any order."""
        made = chain(tmp_path, [directory("media")], *([file(f"media/{n}", f"{n}".encode())] for n in range(12)))
        before = len(os.listdir("/proc/self/fd"))
        with closing(cast("ChainReader", open_tree(made[-1]))) as tree:
            for number in [*range(12), *reversed(range(12)), 0, 11]:
                member = tree.find(f"media/{number}")
                assert member is not None
                assert b"".join(tree.extract(member)) == f"{number}".encode()
            assert len(os.listdir("/proc/self/fd")) - before == 8
        assert len(os.listdir("/proc/self/fd")) == before

    def test_what_is_gone_is_gone_until_it_comes_back(self, tmp_path: Path) -> None:
        """With all below it; what only begins alike stays."""
        made = chain(
            tmp_path,
            [
                directory("media"),
                directory("media/d"),
                file("media/d/a", b"1"),
                file("media/d/b", b"1"),
                file("media/dd"),
            ],
            [gone("media/d"), directory("media/d"), file("media/d/a", b"2")],
            [gone("media/d/a"), file("media/e")],
        )
        found = []
        for path in made:
            with closing(open_tree(path)) as tree:
                found.append({member.path: b"".join(content) for member, content in tree.contents(1, below="media")})
        assert [sorted(one) for one in found] == [
            ["media", "media/d", "media/d/a", "media/d/b", "media/dd"],
            ["media", "media/d", "media/d/a", "media/dd"],
            ["media", "media/d", "media/dd", "media/e"],
        ]
        assert found[1]["media/d/a"] == b"2"

    def test_only_the_uploads_come_from_all_archives(self, tmp_path: Path) -> None:
        """Of the rest the last archive has everything; what is asked for alone is all that comes."""
        full = {"components": ["database", "media"], "format_version": CHAINED_VERSION, "type": "full"}
        pieces = [directory("media"), file("media/a", b"1"), file("media/b", b"1"), file("database.sql", b"old")]
        base = write_chained(tmp_path, NAMES[0], pieces)
        pieces = [file("media/b", b"2"), file("database.sql", b"new")]
        tip = write_chained(tmp_path, NAMES[1], pieces, parent=base, base=NAMES[0], changes=full)
        with closing(open_tree(tip)) as tree:

            def contents(below: str | None) -> dict[str, bytes]:
                return {member.path: b"".join(content) for member, content in tree.contents(1, below=below)}

            assert contents("database.sql") == {"database.sql": b"new"}
            assert contents("media") == {"media": b"", "media/a": b"1", "media/b": b"2"}
            assert contents("media/b") == {"media/b": b"2"}
            assert contents("media/c") == contents("audit") == {}
            everything = contents(None)
        assert everything == {"media": b"", "media/a": b"1", "media/b": b"2", "database.sql": b"new"}

    def test_damage_is_told_with_its_archive(self, tmp_path: Path) -> None:
        """In whichever it is."""
        made = chain(tmp_path, [directory("media"), file("media/a", sha256="0" * 64)], [file("media/b")])
        with (
            closing(open_tree(made[1])) as tree,
            pytest.raises(NotIntactError, match=f"^in {NAMES[0]}: media/a") as caught,
        ):
            for _, content in tree.contents(1):
                list(content)
        assert caught.value.hint

    def test_an_archive_whose_manifest_is_damaged(self, tmp_path: Path) -> None:
        """It is opened, and whoever reads its manifest is told."""
        archive = write_indexed(tmp_path, [directory("media")], sha256="0" * 64)
        with closing(open_tree(archive)) as tree, pytest.raises(NotIntactError):
            tree.manifest()


class TestGraph:
    """Which archive needs which."""

    links = (
        Link(backup_id="a"),
        Link(backup_id="b", parent="a"),
        Link(backup_id="c", parent="b"),
        Link(backup_id="d", parent="a"),
    )

    def test_what_is_needed(self) -> None:
        """The base first."""
        chains = Chains(self.links)
        assert chains.needed("c") == ("a", "b", "c")
        assert chains.needed("a") == ("a",)
        assert (chains.dependents("a"), chains.dependents("b"), chains.dependents("c")) == (("b", "d", "c"), ("c",), ())
        assert (chains.head("a"), chains.head("d"), chains.head("x")) == ("c", "d", "x")

    def test_what_is_missing(self) -> None:
        """It is named with the one that needs it."""
        with pytest.raises(NotIntactError, match=r"^c needs b, which is not there"):
            Chains(self.links[2:3]).needed("c")
        with pytest.raises(NotIntactError, match=r"^x needs x, which is not there"):
            Chains(self.links).needed("x")

    def test_a_circle(self) -> None:
        """It ends."""
        chains = Chains([Link(backup_id="a", parent="c"), *self.links[1:3]])
        with pytest.raises(NotIntactError, match=r"^b has no base: b needs itself"):
            chains.needed("b")
        assert chains.dependents("a") == ("b", "c")
