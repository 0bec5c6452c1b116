"""Small files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import resource
import stat
import time
from typing import TYPE_CHECKING

import pytest

from portal.ops.repository.durable import (
    append_line,
    make_directories,
    make_hidden,
    open_own,
    sync_directory,
    unfinished,
    write_durably,
)
from tests.support.repositories import NOBODY, as_nobody, python
from tests.support.waiting import LONG_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


OVERWRITER = """
import sys
from pathlib import Path
from portal.ops.repository.durable import write_durably

while True:
    for letter in b"ab":
        write_durably(Path(sys.argv[1]), bytes([letter]) * 500_000)
"""


class TestAppendLine:
    def test_a_disk_that_becomes_full(self, tmp_path: Path) -> None:
        """A line of which only a part fits is an error, and leaves the file as it was."""
        path = tmp_path / "lines"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            assert append_line(descriptor, b"one\n") == 0
            resource.setrlimit(resource.RLIMIT_FSIZE, (6, limits[1]))
            with pytest.raises(OSError, match="No space left"):
                append_line(descriptor, b"two\n")
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            assert path.read_bytes() == b"one\n"
            assert append_line(descriptor, b"two\n") == 4
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            os.close(descriptor)
        assert path.read_bytes() == b"one\ntwo\n"

    def test_after_a_crash(self, tmp_path: Path) -> None:
        """A line that was cut short is ended first."""
        path = tmp_path / "lines"
        path.write_bytes(b"one\ntw")
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
        try:
            append_line(descriptor, b"three\n")
        finally:
            os.close(descriptor)
        assert path.read_bytes() == b"one\ntw\nthree\n"


class TestWriteDurably:
    """A small file, whole or not at all."""

    def test_a_kill_leaves_the_old_or_the_new(self, tmp_path: Path) -> None:
        """Killed at any instant, a writer leaves one of the two contents, whole."""
        path = tmp_path / "file"
        for pause in (0.0, 0.003, 0.007, 0.011, 0.017):
            path.unlink(missing_ok=True)
            with python(OVERWRITER, path) as process:
                while not path.exists():
                    time.sleep(0.001)
                time.sleep(pause)
                process.kill()
            assert path.read_bytes() in (b"a" * 500_000, b"b" * 500_000)

    def test_two_at_once_do_not_mix(self, tmp_path: Path) -> None:
        """Two threads, or processes with one number in two containers: each content is whole, the last one stays."""
        path = tmp_path / "file"

        def pieces() -> Iterator[bytes]:
            yield b"slow, "
            write_durably(path, b"quick")
            assert path.read_bytes() == b"quick"
            yield b"and last"

        write_durably(path, pieces())
        assert path.read_bytes() == b"slow, and last"
        assert [one.name for one in tmp_path.iterdir()] == ["file"]

    def test_a_failure_leaves_the_old(self, tmp_path: Path) -> None:
        """Where the new content does not fit, the old one stays, and nothing else."""
        path = tmp_path / "file"
        write_durably(path, b"old")
        program = (
            "import resource, sys\nfrom pathlib import Path\nfrom portal.ops.repository.durable import write_durably\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\nwrite_durably(Path(sys.argv[1]), b'new' * 1000)"
        )
        with python(program, path) as process:
            assert process.wait(LONG_SECONDS) == 1
        assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("file", b"old")]

    def test_the_directory_can_be_synced(self, tmp_path: Path) -> None:
        """Names are put on the disk through the directory, and no descriptor stays open."""
        before = len(os.listdir("/proc/self/fd"))
        sync_directory(tmp_path)
        assert len(os.listdir("/proc/self/fd")) == before
        (tmp_path / "file").touch()
        with pytest.raises(NotADirectoryError):
            sync_directory(tmp_path / "file")

    def test_what_is_written_in_pieces_is_for_its_owner_alone(self, tmp_path: Path) -> None:
        """The file is the pieces one after the other; nothing else is left."""
        before = os.umask(0)
        try:
            write_durably(tmp_path / "file", (piece for piece in (b"one", b"", b"two")))
        finally:
            os.umask(before)
        assert (tmp_path / "file").read_bytes() == b"onetwo"
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600
        assert os.listdir(tmp_path) == ["file"]

    def test_a_failure_half_way_names_the_file_and_leaves_nothing(self, tmp_path: Path) -> None:
        """An error of the system has the name of the file; one that has a name keeps it."""

        def pieces(error: BaseException) -> Iterator[bytes]:
            yield b"one"
            raise error

        for error, name in ((OSError(5, "x"), str(tmp_path / "file")), (OSError(5, "x", "other"), "other")):
            with pytest.raises(OSError, match="x") as caught:
                write_durably(tmp_path / "file", pieces(error))
            assert caught.value.filename == name
        with pytest.raises(KeyboardInterrupt):
            write_durably(tmp_path / "file", pieces(KeyboardInterrupt()))
        assert os.listdir(tmp_path) == []

    def test_what_another_write_has_left_is_in_nobodys_way(self, tmp_path: Path) -> None:
        """A killed process may have left any name; a prune removes it a day later."""
        left = tmp_path / f".file.{os.getpid()}.tmp"
        left.write_bytes(b"something longer")
        write_durably(tmp_path / "file", b"new")
        assert (tmp_path / "file").read_bytes() == b"new"
        assert sorted(os.listdir(tmp_path)) == sorted([left.name, "file"])

    def test_a_file_that_cannot_be_given_away_is_closed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever could not open it has no descriptor either."""

        def refuse(*_: object) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr("portal.ops.repository.durable.give_to_owner", refuse)
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(PermissionError):
            open_own(tmp_path / "file")
        assert len(os.listdir("/proc/self/fd")) == before

    def test_a_link_in_its_place_is_not_followed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Neither where the temporary file would be, nor where a file of the repository is opened."""
        (tmp_path / "target").write_bytes(b"kept")
        monkeypatch.setattr("portal.ops.filesystem.temporary.secrets.randbelow", lambda _: 7)
        (tmp_path / ".file.7.tmp").symlink_to("target")
        (tmp_path / "link").symlink_to("target")
        with pytest.raises(FileExistsError):
            write_durably(tmp_path / "file", b"new")
        with pytest.raises(OSError, match="symbolic link"):
            open_own(tmp_path / "link")
        assert (tmp_path / "target").read_bytes() == b"kept"


class TestDirectories:
    """Hidden directories of a repository, and the ones above it."""

    def test_a_hidden_directory_is_made_once(self, tmp_path: Path) -> None:
        """It is for its owner alone; it may be there already, unless it should be new, and must be a directory."""
        for _ in range(2):
            make_hidden(tmp_path / "made")
            assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0o700
        (tmp_path / "file").touch()
        for path, is_new in (("made", True), ("file", False), ("file", True)):
            with pytest.raises(FileExistsError):
                make_hidden(tmp_path / path, is_new=is_new)
        make_hidden(tmp_path / "new", is_new=True)
        with pytest.raises(FileNotFoundError):
            make_hidden(tmp_path / "absent" / "below")

    def test_all_that_are_missing_are_made(self, tmp_path: Path) -> None:
        """Each for its owner alone; one that is there keeps its mode."""
        (tmp_path / "a").mkdir(mode=0o755)
        make_directories(tmp_path / "a" / "b" / "c")
        make_directories(tmp_path / "a" / "b" / "c")
        assert [stat.S_IMODE((tmp_path / path).stat().st_mode) for path in ("a", "a/b", "a/b/c")] == [
            0o755,
            0o700,
            0o700,
        ]

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
    def test_what_root_makes_is_the_owners(self, tmp_path: Path) -> None:
        """A directory also where it has others in it; not what is somebody's already, nor what a link leads to."""
        place = tmp_path / "repository"
        for path in (place / "made" / "below", place / "root", tmp_path / "elsewhere"):
            path.mkdir(parents=True)
        os.chown(place, NOBODY, NOBODY)
        os.chown(place / "root", 1234, 1234)
        (place / "link").symlink_to(tmp_path / "elsewhere")
        before = len(os.listdir("/proc/self/fd"))
        for name in ("made", "new", "root", "link"):
            make_hidden(place / name)
        found = [(path.stat().st_uid, path.stat().st_gid) for path in (place / "made", place / "new", place / "root")]
        assert found == [(NOBODY, NOBODY), (NOBODY, NOBODY), (1234, 1234)]
        assert (tmp_path / "elsewhere").stat().st_uid == 0
        write_durably(place / "file", b"")
        assert (place / "file").stat().st_uid == NOBODY
        assert len(os.listdir("/proc/self/fd")) == before

    def test_where_nothing_may_be_looked_at_nothing_is_unfinished(self, public_directory: Path) -> None:
        """Another user's directory is passed over; what is no directory is an error."""
        (public_directory / "closed").mkdir(mode=0o700)
        (public_directory / "closed" / ".a.17.tmp").touch()
        with as_nobody():
            assert unfinished(public_directory / "closed") == []
        with pytest.raises(NotADirectoryError):
            unfinished(public_directory / "closed" / ".a.17.tmp")

    def test_unfinished_writes_are_known_by_their_names(self, tmp_path: Path) -> None:
        """Nothing else is; where nothing can be seen, there are none."""
        for name in (".b.2.tmp", ".a.json.17.tmp", "a.17.tmp", ".a.tmp", ".a.x.tmp", ".17.tmp", ".a.17.tmp~"):
            (tmp_path / name).touch()
        assert [path.name for path in unfinished(tmp_path)] == [".a.json.17.tmp", ".b.2.tmp"]
        assert unfinished(tmp_path / "absent") == []
