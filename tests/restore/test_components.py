"""The parts of a restore: what they need room for, what they count, and what an archive says of its database."""

from __future__ import annotations

import os
import threading
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from portal.ops.archive.open import open_archive
from portal.ops.errors import DiskFullError, NotIntactError, RepositoryError
from portal.ops.manifest import Manifest
from portal.ops.model import RESTORE_DIRECTORY, Component
from portal.ops.postgres.toc import Contents, Entry
from portal.ops.restore import components
from portal.ops.restore.background_checksum import Checksum
from portal.ops.restore.components import FilesPart, PlannedPart, short_of_room
from portal.ops.restore.database.newcomer import Newcomer
from portal.ops.restore.dump_source import backed_up, dump_content, dump_of, identity_of, objects_of, rows_of
from portal.ops.restore.files.restore import FileRestore
from tests.support.hostile import CONTENT, directory, file, hardlink, write_indexed

if TYPE_CHECKING:
    from portal.ops.restore.components import Part
    from portal.ops.restore.plan import PartPlan

ENTRY = Entry(number=1, kind="TABLE", name="a")


def manifest(details: dict[str, Any] | None = None) -> Manifest:
    return Manifest(
        backup_id="full_1",
        type="full",
        timestamp="",
        components=(Component.DATABASE,),
        hostname="",
        db_name="",
        details=details or {},
    )


def of_database(**details: Any) -> Manifest:
    return manifest({"database": details})


class Stand:
    """A part of a component, and nothing more."""

    def __init__(self, component: Component) -> None:
        self.component = component


def planned(component: Component, place: Path, stage_bytes: int) -> PlannedPart:
    return PlannedPart(
        part=cast("Part", Stand(component)),
        plan=cast("PartPlan", None),
        manifest=manifest(),
        stage_place=place,
        stage_bytes=stage_bytes,
        content_bytes=0,
        record={},
    )


class TestRoom:
    """Stages that lie on one disk."""

    @pytest.fixture(autouse=True)
    def disk(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A thousand bytes are free on every disk."""
        monkeypatch.setattr(components, "room", lambda _: 1000)

    def test_all_of_them_need_it_together(self, tmp_path: Path) -> None:
        """The dump and the files; to the byte."""
        places = tmp_path / "archives" / "r", tmp_path / "uploads"
        dump, files = planned(Component.DATABASE, places[0], 600), planned(Component.MEDIA, places[1], 400)
        assert short_of_room([dump, files]) == []
        (error,) = short_of_room([dump, planned(Component.MEDIA, places[1], 401)])
        assert isinstance(error, DiskFullError)
        assert error.message == (
            f"the restore needs about 1.0 kB for a while in {tmp_path} and {tmp_path}, and 1.0 kB are free there"
        )

    def test_files_alone_say_it_themselves(self, tmp_path: Path) -> None:
        """The plan of each has an error of its own; a swap has no dump on the disk."""
        assert short_of_room([planned(Component.MEDIA, tmp_path, 9999)]) == []
        swap = planned(Component.DATABASE, tmp_path, 0)
        assert short_of_room([swap, planned(Component.MEDIA, tmp_path, 9999)]) == []
        assert len(short_of_room([planned(Component.DATABASE, tmp_path, 1001)])) == 1

    def test_disks_count_by_themselves(self, tmp_path: Path) -> None:
        """What is needed elsewhere needs no room here."""
        elsewhere = Path("/dev/shm/not/there")
        if os.stat("/dev/shm").st_dev == os.stat(tmp_path).st_dev:
            pytest.skip("one file system holds both")
        dump = planned(Component.DATABASE, tmp_path, 600)
        assert short_of_room([dump, planned(Component.MEDIA, elsewhere, 600)]) == []
        (error,) = short_of_room([dump, planned(Component.DATABASE, elsewhere, 1001)])
        assert "in /dev/shm, and" in error.message


class TestFiles:
    """A tree of files as a part of a restore."""

    def part(self, place: Path, component: Component = Component.MEDIA, **options: Any) -> FilesPart:
        """One."""
        return FilesPart(FileRestore(place, restore_id="restore_1", component=component, **options), 1)

    @pytest.mark.parametrize("count", [None, 1, 2, 3])
    def test_the_manifest_says_how_many(self, tmp_path: Path, count: int | None) -> None:
        """Files, and no links; one that says another number is found out, one that says none is not held to it."""
        pieces = [directory("media"), file("media/a"), file("media/b"), hardlink("media/c", "media/a"), file("audit/l")]
        archive = write_indexed(tmp_path, pieces)
        said = manifest({"media": {} if count is None else {"files": count}})
        with closing(open_archive(archive)) as opened:
            if count in (None, 2):
                found = self.part(tmp_path / "live").plan(opened, said)
                assert (found.component, found.content_bytes) == (Component.MEDIA, 2 * len(CONTENT))
                assert found.stage_place == tmp_path / "live"
                assert found.stage_bytes > found.content_bytes
                assert found.record == {"path": str(tmp_path / "live"), "exact": False, "patterns": []}
            else:
                with pytest.raises(NotIntactError, match=f"media has 2 files, and the manifest says {count}"):
                    self.part(tmp_path / "live").plan(opened, said)

    def test_a_component_that_is_not_there(self, tmp_path: Path) -> None:
        """A manifest that lists it is found out."""
        with closing(open_archive(write_indexed(tmp_path, [directory("media")]))) as opened:
            self.part(tmp_path / "live").plan(opened, manifest())
            with pytest.raises(NotIntactError, match="the manifest lists audit_logs, but the archive holds none"):
                self.part(tmp_path / "log", Component.AUDIT_LOGS).plan(opened, manifest())

    def test_it_counts_each_time(self, tmp_path: Path) -> None:
        """With patterns the members are read twice, and count once."""
        archive = write_indexed(tmp_path, [directory("media"), file("media/a"), file("media/b")])
        with closing(open_archive(archive)) as opened:
            part = self.part(tmp_path / "live", patterns=("a",))
            assert part.plan(opened, manifest({"media": {"files": 2}})).content_bytes == len(CONTENT)
            assert part.record()["patterns"] == ["a"]

    def test_what_is_kept(self, tmp_path: Path) -> None:
        """In the tree itself, of a log beside it."""
        place = tmp_path.resolve() / "place"
        media, audit = self.part(place), self.part(place, Component.AUDIT_LOGS)
        assert media.kept(rolled_back=False) == f"what was replaced of {place}, in {place / RESTORE_DIRECTORY}"
        assert (media.kept(rolled_back=True), audit.kept(rolled_back=True)) == ("", "")
        (place.parent / RESTORE_DIRECTORY / "restore_1").mkdir(parents=True)
        assert audit.kept(rolled_back=True) == f"what was restored of {place}, in {place.parent / RESTORE_DIRECTORY}"
        assert media.discard() == ()  # nothing is kept of a restore that was never begun

    def test_discarded_is_only_its_own(self, tmp_path: Path) -> None:
        """Another restore of the same tree keeps what it has."""
        archive = write_indexed(tmp_path, [directory("media"), file("media/a")])
        for name in ("restore_1", "restore_2"):
            with closing(open_archive(archive)) as opened:
                restore = FileRestore(tmp_path / "live", restore_id=name, component=Component.MEDIA)
                restore.stage_from(opened, 1)
            restore.apply()
        assert self.part(tmp_path / "live").discard() == ()
        assert os.listdir(tmp_path / "live" / RESTORE_DIRECTORY) == ["restore_2"]


class TestDump:
    """What an archive says of its database."""

    def test_numbers(self) -> None:
        """Tables by their names as we write them; none where the manifest has none."""
        assert rows_of(manifest()) == rows_of(of_database()) == {}
        assert rows_of(of_database(rows={'"public".a': "3", "x.B": 4})) == {"public.a": 3, 'x."B"': 4}

    @pytest.mark.parametrize("rows", [["many"], {"a": "many"}, {"a": None}, "rows"])
    def test_numbers_that_make_no_sense(self, rows: Any) -> None:
        """They are an error of the archive."""
        with pytest.raises(NotIntactError, match="numbers of rows are invalid"):
            rows_of(of_database(rows=rows))

    def test_facts(self) -> None:
        """Of an older release they are unknown."""
        contents = Contents(major=17, server_major=17, entries=(ENTRY,))
        found = backed_up(of_database(database_bytes="12", large_objects=3), contents)
        assert (found.entries, found.identity, found.database_bytes, found.large_objects) == ((ENTRY,), None, 12, 3)
        found = backed_up(manifest(), contents)
        assert (found.database_bytes, found.large_objects) == (0, 0)
        assert identity_of(manifest()) is None
        assert objects_of(of_database(invalid_indexes=["a"])) is None

    @pytest.mark.parametrize("details", [{"database_bytes": "x"}, {"large_objects": []}, {"database_bytes": None}])
    def test_facts_that_make_no_sense(self, details: dict[str, Any]) -> None:
        """They are an error of the archive."""
        with pytest.raises(NotIntactError, match="size of the database is invalid"):
            backed_up(of_database(**details), Contents(major=17, server_major=17, entries=()))

    def test_objects(self) -> None:
        """Lists that are missing are empty."""
        found = objects_of(of_database(counts={"indexes": "3"}, invalid_indexes=["i"], server_version=17))
        assert found is not None
        assert (found.counts, found.server_version) == ({"indexes": 3}, "17")
        assert (set(found.invalid_indexes), set(found.unvalidated)) == ({"i"}, set())
        found = objects_of(of_database(counts={}, unvalidated_constraints=["c"]))
        assert found is not None
        assert (set(found.invalid_indexes), set(found.unvalidated), found.server_version) == (set(), {"c"}, "")

    @pytest.mark.parametrize("details", [{"counts": 1}, {"counts": {"a": "b"}}, {"counts": {}, "invalid_indexes": 1}])
    def test_objects_that_make_no_sense(self, details: dict[str, Any]) -> None:
        """They are an error of the archive."""
        with pytest.raises(NotIntactError, match="record of indexes and constraints is invalid"):
            objects_of(of_database(**details))

    def test_the_dump_itself(self, tmp_path: Path) -> None:
        """Its bytes, its size, and how heavy each table is."""
        archive = write_indexed(tmp_path, [file("database.sql", b"a dump"), directory("media"), file("media/a")])
        told: list[int] = []
        with closing(open_archive(archive)) as opened:
            said = of_database(bytes=6, rows={"a.b": 1}, table_bytes={"a.b": 2})
            dump = dump_of(opened, said, tmp_path / "dump", jobs=1, advance=told.append)
            assert (dump.size, dump.weights) == (6, {"a.b": 2})
            with dump.open() as content:
                assert b"".join(content) == b"a dump"
            dump = dump_of(opened, of_database(bytes="6", rows={"a.b": 1}), tmp_path / "dump", jobs=1)
            assert (dump.size, dump.weights) == (0, {"a.b": 1})
            assert dump_of(opened, manifest(), tmp_path / "dump", jobs=1).size == 0
            with dump_content(opened, 1) as (member, _):
                assert member.path == "database.sql"

    def test_an_archive_without_one(self, tmp_path: Path) -> None:
        """It is damaged, if its manifest says otherwise."""
        opened = open_archive(write_indexed(tmp_path, [directory("media")]))
        with closing(opened), pytest.raises(NotIntactError, match=r"holds no database\.sql"), dump_content(opened, 1):
            pass


class TestNewcomer:
    """A database that a restore has made where there was none."""

    def test_its_number_is_kept(self, tmp_path: Path) -> None:
        """For its own restore, until it is forgotten; the directory is made."""
        one = Newcomer(path=tmp_path / "a" / "b.json", restore_id="restore_1")
        assert one.number() is None
        one.forget()
        one.note(42)
        assert one.number() == 42
        other = Newcomer(path=one.path, restore_id="restore_2")
        assert other.number() is None
        other.forget()
        assert one.number() == 42
        one.forget()
        assert (one.number(), list((tmp_path / "a").iterdir())) == (None, [])

    def test_nothing_can_be_kept(self) -> None:
        """Without a place there is nothing to remember."""
        one = Newcomer(path=None, restore_id="restore_1")
        one.note(42)
        one.forget()
        assert one.number() is None

    @pytest.mark.parametrize(
        "text", ["", "[]", "{}", '{"restore_id": "restore_1"}', '{"restore_id": "restore_1", "oid": {}}']
    )
    def test_a_record_that_makes_no_sense(self, tmp_path: Path, text: str) -> None:
        """It is an error, and no database is taken for ours."""
        (tmp_path / "n.json").write_text(text)
        with pytest.raises(RepositoryError, match=f"cannot read {tmp_path}/n.json"):
            Newcomer(path=tmp_path / "n.json", restore_id="restore_1").number()

    def test_a_place_that_cannot_be_written(self, tmp_path: Path) -> None:
        """It is an error before anything gets the live name; so is one that cannot be read."""
        (tmp_path / "file").touch()
        with pytest.raises(RepositoryError, match="cannot write"):
            Newcomer(path=tmp_path / "file" / "n.json", restore_id="restore_1").note(1)
        (tmp_path / "n.json").mkdir()
        with pytest.raises(RepositoryError, match="cannot read"):
            Newcomer(path=tmp_path / "n.json", restore_id="restore_1").number()


class TestChecksum:
    """Archives that are hashed while they are staged."""

    @pytest.fixture
    def archives(self, tmp_path: Path) -> dict[Path, str]:
        """Two files, and their digests; one is longer than what is read at once."""
        found = {}
        for name, size in (("one", 10), ("two", (2 << 20) + 3)):
            (tmp_path / name).write_bytes(data := os.urandom(size))
            found[tmp_path / name] = sha256(data).hexdigest()
        return found

    def test_all_of_them_are(self, archives: dict[Path, str]) -> None:
        """Nothing is raised where they are what they should be, or where nothing is expected."""
        for expected in (archives, {}):
            with Checksum(expected) as checksum:
                checksum.check()

    @pytest.mark.parametrize("number", [0, 1])
    def test_one_that_differs(self, archives: dict[Path, str], number: int) -> None:
        """It is named, with both digests; whoever does not ask is not told."""
        path = list(archives)[number]
        expected = archives | {path: "0" * 64}
        with pytest.raises(NotIntactError) as caught, Checksum(expected) as checksum:
            checksum.check()
        assert caught.value.message == (
            f"checksum mismatch: the SHA-256 of {path.name} is {archives[path]}, and should be {'0' * 64}"
        )
        with Checksum(expected):
            pass

    def test_whoever_leaves_does_not_wait(self) -> None:
        """Not even for the end of what has none."""
        with Checksum({Path("/dev/zero"): "0" * 64}):
            assert "checksum" in {thread.name for thread in threading.enumerate()}
        assert "checksum" not in {thread.name for thread in threading.enumerate()}

    def test_one_that_is_not_there(self, tmp_path: Path) -> None:
        """That is an error of the repository."""
        with pytest.raises(RepositoryError, match="cannot read"), Checksum({tmp_path / "x": ""}) as checksum:
            checksum.check()
