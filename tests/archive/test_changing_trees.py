"""Trees that change while they are read: what is gone is noted, and what is kept fits together."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from hashlib import sha256
from itertools import groupby
from typing import TYPE_CHECKING

import pytest

from tests.support import archives
from tests.support.archives import (
    NAME,
    Found,
    Recipe,
    read_member,
    tree_in_archive,
    tree_on_disk,
    write_archive,
)
from tests.support.trees import MIB
from tests.support.waiting import LONG_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from portal.ops.archive.compressor_pool import CompressorPool


def remove_after(path: Path) -> Callable[[Iterator[Found]], Iterator[Found]]:
    """Remove a file or directory right after it was listed, before it is read."""

    def meddle(items: Iterator[Found]) -> Iterator[Found]:
        for found in items:
            yield found
            if found[0][0] == f"media/{path.name}":
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    return meddle


@pytest.mark.parametrize("size", [10, 3 * MIB])
def test_file_that_vanished_is_a_note(pool: CompressorPool, tmp_path: Path, media: Path, size: int) -> None:
    """A file that goes away between the walk and the reading is named; all others are there."""
    for name in "abc":
        (media / name).write_bytes(os.urandom(size))
    recipe = Recipe(media=media, meddle=remove_after(media / "b"))
    archive = write_archive(tmp_path / NAME, pool, recipe)
    # A large file is read as soon as it was listed, so it is there or is not; a small one waits for its frame.
    assert recipe.tally.vanished == (["media/b"] if size < MIB else [])
    assert set(tree_in_archive(archive)) == {b"", b"a", b"c"} | ({b"b"} if size >= MIB else set())
    assert archives.verify(archive).intact


def test_large_file_that_vanished_is_a_note(pool: CompressorPool, tmp_path: Path, media: Path) -> None:
    """A large file that is gone when it is opened is named; all others are there."""
    for name in "abc":
        (media / name).write_bytes(os.urandom(2 * MIB))

    def meddle(items: Iterator[Found]) -> Iterator[Found]:
        for found in items:
            if found[0][0] == "media/b":
                (media / "b").unlink()
            yield found

    recipe = Recipe(media=media, meddle=meddle)
    archive = write_archive(tmp_path / NAME, pool, recipe)
    assert recipe.tally.vanished == ["media/b"]
    assert set(tree_in_archive(archive)) == {b"", b"a", b"c"}
    assert archives.verify(archive).intact


def test_directory_that_vanished_is_a_note(pool: CompressorPool, tmp_path: Path, media: Path) -> None:
    """A directory that goes away takes nothing else with it."""
    (media / "a").mkdir()
    (media / "a" / "scan.json").write_bytes(b"{}")
    (media / "b").mkdir()
    recipe = Recipe(media=media, meddle=remove_after(media / "a"))
    archive = write_archive(tmp_path / NAME, pool, recipe)
    assert recipe.tally.vanished == ["media/a"]
    assert set(tree_in_archive(archive)) == {b"", b"b"}


@pytest.mark.parametrize("size", [10, 3 * MIB])
def test_content_survives_when_its_first_name_vanished(
    pool: CompressorPool, tmp_path: Path, media: Path, size: int
) -> None:
    """A file whose first name goes away is in the archive under its other names."""
    content = os.urandom(size)
    (media / "a").write_bytes(content)
    os.link(media / "a", media / "b")
    os.link(media / "a", media / "c")
    archive = write_archive(tmp_path / NAME, pool, Recipe(media=media, meddle=remove_after(media / "a")))
    found = tree_in_archive(archive)
    assert {found[name].content for name in (b"b", b"c")} == {sha256(content).hexdigest()}
    assert archives.verify(archive).intact


@pytest.mark.parametrize("replacement", ["file", "directory"])
def test_other_names_keep_their_content_when_the_first_was_replaced(
    pool: CompressorPool, tmp_path: Path, media: Path, replacement: str
) -> None:
    """What takes the place of the first name, before that was read, does not become the content of the others."""
    (media / "a").write_bytes(b"old")
    os.link(media / "a", media / "b")

    def meddle(items: Iterator[Found]) -> Iterator[Found]:
        for found in items:
            if found[0][0] == "media/b":
                (media / "a").unlink()
                (media / "a").write_bytes(b"new") if replacement == "file" else (media / "a").mkdir()
            yield found

    archive = write_archive(tmp_path / NAME, pool, Recipe(media=media, meddle=meddle))
    assert tree_in_archive(archive)[b"b"].content == sha256(b"old").hexdigest()
    assert archives.verify(archive).intact


def test_small_files_that_grew_large_do_not_disturb_the_others(
    pool: CompressorPool, tmp_path: Path, media: Path
) -> None:
    """Files that outgrow a shared frame after they were listed come whole, and so does a large file behind them."""
    for name in "abcd":
        (media / name).write_bytes(b"small")
    (media / "e").write_bytes(os.urandom(12 * MIB))
    os.link(media / "a", media / "f")

    def meddle(items: Iterator[Found]) -> Iterator[Found]:
        for found in items:
            if found[0][0] == "media/e":
                for name in "abcd":
                    (media / name).write_bytes(name.encode() * (2 * MIB))
            yield found

    archive = write_archive(tmp_path / NAME, pool, Recipe(media=media, meddle=meddle))
    found = archives.verify(archive)
    assert found.message.startswith(f"{archives.BACKUP_ID} is intact"), found.message
    assert tree_in_archive(archive) == tree_on_disk(media)
    subprocess.run(["tar", "--warning=no-timestamp", "-xpzf", archive, "-C", tmp_path], check=True)


def test_links_behind_files_that_grew_are_kept(pool: CompressorPool, tmp_path: Path, media: Path) -> None:
    """Files that grow until a shared frame is full push no directory and no symlink out of the archive."""
    for name in "abcde":
        (media / name).write_bytes(b"small")
    (media / "link").symlink_to("a")
    (media / "sub").mkdir()

    def meddle(items: Iterator[Found]) -> Iterator[Found]:
        yield from items
        for name in "abcde":
            (media / name).write_bytes(bytes(MIB - 1))

    recipe = Recipe(media=media, meddle=meddle)
    archive = write_archive(tmp_path / NAME, pool, recipe)
    assert not recipe.tally.vanished
    assert not recipe.tally.special
    assert tree_in_archive(archive) == tree_on_disk(media)


def test_large_file_that_changes_each_time_is_kept_with_a_note(
    pool: CompressorPool, tmp_path: Path, media: Path
) -> None:
    """A large file that changes whenever it is read is in the archive as it was read last."""
    log = media / "audit.jsonl"
    log.write_bytes(b"line\n" * MIB)

    def append(_: int) -> None:
        with log.open("ab") as file:
            file.write(b"line\n")

    recipe = Recipe(media=media, advance=append)
    archive = write_archive(tmp_path / NAME, pool, recipe)
    assert recipe.tally.changed == ["media/audit.jsonl"]
    assert set(read_member(archive, "media/audit.jsonl").split(b"\n")) == {b"line", b""}
    assert archives.verify(archive).intact


def test_large_file_that_changed_once_is_read_again(pool: CompressorPool, tmp_path: Path, media: Path) -> None:
    """A large file that changed during the first reading only is whole, and needs no note."""
    (media / "a").write_bytes(b"first")
    log = media / "audit.jsonl"
    log.write_bytes(b"line\n" * MIB)
    left = [b"last\n"]

    def append(count: int) -> None:
        if count == MIB and left:
            with log.open("ab") as file:
                file.write(left.pop())

    recipe = Recipe(media=media, advance=append)
    archive = write_archive(tmp_path / NAME, pool, recipe)
    assert not recipe.tally.changed
    assert tree_in_archive(archive) == tree_on_disk(media)
    assert archives.verify(archive).intact


def test_large_file_that_shrinks_is_kept_with_a_note(pool: CompressorPool, tmp_path: Path, media: Path) -> None:
    """A large file that loses its end each time it is read leaves a whole archive."""
    log = media / "audit.jsonl"
    log.write_bytes(b"x" * (8 * MIB))
    recipe = Recipe(media=media, advance=lambda _: os.truncate(log, max(log.stat().st_size - MIB // 2, MIB)))
    archive = write_archive(tmp_path / NAME, pool, recipe)
    assert recipe.tally.changed == ["media/audit.jsonl"]
    assert archives.verify(archive).intact


_APPENDING = """
import os, sys
descriptor = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
print("started", flush=True)
while os.fstat(descriptor).st_size < int(sys.argv[2]):
    os.write(descriptor, b"+")
"""


@pytest.mark.parametrize(("size", "limit"), [(MIB // 2, MIB - 1), (16 * MIB, 64 * MIB)], ids=["small", "large"])
def test_file_that_is_written_all_the_time_is_consistent(
    pool: CompressorPool, tmp_path: Path, media: Path, size: int, limit: int
) -> None:
    """While another process appends to a file, the archive has a state that the file had, and in the end a note."""
    log = media / "audit.jsonl"
    noted: list[str] = []
    until = time.monotonic() + LONG_SECONDS
    while not noted:  # the other process may have no turn while the file is read
        assert time.monotonic() < until
        log.write_bytes(b"." * size)
        command = [sys.executable, "-c", _APPENDING, str(log), str(limit)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writing:
            assert writing.stdout is not None
            writing.stdout.readline()
            try:
                recipe = Recipe(media=media)
                archive = write_archive(tmp_path / NAME, pool, recipe)
            finally:
                writing.kill()
        assert archives.verify(archive).intact
        found = [(byte, len(list(run))) for byte, run in groupby(read_member(archive, "media/audit.jsonl")[size - 1 :])]
        assert [byte for byte, _ in found] in ([ord(".")], [ord("."), ord("+")])
        noted += recipe.tally.changed
    assert noted == ["media/audit.jsonl"]
