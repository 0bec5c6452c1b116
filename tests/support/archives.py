"""Trees and archives for tests: build a tree, archive it with the engine's own writer, read everything back."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from portal.ops.archive.compressor_pool import CompressorPool
from portal.ops.archive.index import MemberType
from portal.ops.archive.open import open_archive
from portal.ops.archive.output_file import OutputFile
from portal.ops.archive.packer import Item
from portal.ops.archive.reader import ArchiveReader
from portal.ops.archive.writer import ArchiveWriter, Tally
from portal.ops.backup.walk import FileTree, Identity
from portal.ops.manifest import Manifest
from portal.ops.model import SUFFIX, Component, Compression
from portal.ops.repository.durable import write_durably
from portal.ops.verify.verify import Verifier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import FileIO

    from portal.ops.archive.index import Member
    from portal.ops.repository.verifications import Verification

BACKUP_ID: Final = "full_20240115_120000_abc123"
NAME: Final = BACKUP_ID + SUFFIX
MTIME_NS: Final = 1_705_320_000_000_000_000
_MANIFEST_ROOM: Final = 4096

Found = tuple[Item, int]


def untouched(items: Iterator[Found]) -> Iterator[Found]:
    """Leave the tree alone while it is archived."""
    return items


@dataclass(kw_only=True)
class Recipe:
    """What to write into an archive.

    Arguments:
        media: the tree of the uploads.
        audit: the tree, or the file, of the audit log.
        dump: a file with a database's dump.
        meddle: stands between the walk of the uploads and the writer, and may change the tree as it goes.
        advance: called while content is read.
        excluded: directories to pass over.
        manifest_room: bytes reserved for the manifest.
    """

    media: Path | None = None
    audit: Path | None = None
    dump: Path | None = None
    meddle: Callable[[Iterator[Found]], Iterator[Found]] = untouched
    advance: Callable[[int], None] = lambda _: None
    excluded: frozenset[Identity] = frozenset()
    manifest_room: int = _MANIFEST_ROOM
    tally: Tally = field(default_factory=Tally)


def compressor_pool() -> CompressorPool:
    """A pool of two for archives of these tests; the caller closes it."""
    return CompressorPool(BACKUP_ID, 2, compression=Compression.FAST)


@pytest.fixture(scope="module")
def pool() -> Iterator[CompressorPool]:
    """Helper processes that all tests of a module share, as the components of one backup do."""
    with compressor_pool() as pool:
        yield pool


def write_archive(path: Path, pool: CompressorPool, recipe: Recipe) -> Path:
    """Write an archive and its sidecar as a backup does; the archive."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    out = OutputFile(descriptor)
    writer = ArchiveWriter(out, BACKUP_ID, pool, spool_directory=path.parent, advance=recipe.advance)
    try:
        writer.reserve(recipe.manifest_room)
        details = {}
        if recipe.dump is not None:
            with recipe.dump.open("rb", buffering=0) as stream:
                details[Component.DATABASE] = _add_dump(writer, stream)
        for component, root in ((Component.MEDIA, recipe.media), (Component.AUDIT_LOGS, recipe.audit)):
            if root is not None:
                details[component] = _add_tree(writer, component, root, recipe)
        digest = writer.finish(manifest_of(details).encode(), mtime_ns=MTIME_NS)
    finally:
        writer.close()
        out.close()
    write_durably(path.with_name(path.name + ".sha256"), f"{digest}  {path.name}\n".encode())
    return path


def _add_dump(writer: ArchiveWriter, stream: FileIO) -> dict[str, int]:
    member = writer.add_stream(Component.DATABASE.member, stream, mtime_ns=MTIME_NS)
    return {"bytes": member.size, "files": 1}


def _add_tree(writer: ArchiveWriter, component: Component, root: Path, recipe: Recipe) -> dict[str, int]:
    tally = writer.tally = recipe.tally = Tally()
    with FileTree(root=root, prefix=component.member, excluded=recipe.excluded, tally=tally) as files:
        items = recipe.meddle(files.items()) if component is Component.MEDIA else files.items()
        writer.add_items(files.tree, items)
    return {"bytes": tally.content_bytes, "files": tally.files}


def manifest_of(details: dict[Component, dict[str, int]]) -> Manifest:
    """A manifest that fits an archive of these components."""
    return Manifest(
        backup_id=BACKUP_ID,
        type="full",
        timestamp="2024-01-15T12:00:00Z",
        components=tuple(details),
        hostname="portal-server",
        db_name="defectdojo",
        details={component.value: detail for component, detail in details.items()},
    )


def program(name: str) -> str:
    """Where a program of the system is."""
    found = shutil.which(name)
    assert found is not None, f"{name} is not installed"
    return found


def verify(path: Path) -> Verification:
    """Look at everything in an archive except the inside of the dump."""
    return Verifier(jobs=2).verify(path)


def seal(path: Path) -> Path:
    """Make the sidecar anew, so that only the contents can tell what was done to the archive."""
    digest = sha256(path.read_bytes()).hexdigest()
    path.with_name(path.name + ".sha256").write_text(f"{digest}  {path.name}\n")
    return path


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What a file, directory or link is, on a disk or in an archive.

    `first` is, for a regular file, the first of the names that its content has.
    """

    kind: MemberType
    mode: int = 0
    mtime_ns: int = 0
    owner: tuple[int, int] = (0, 0)
    content: str = ""
    size: int = 0
    target: bytes = b""
    first: bytes = b""


Tree = dict[bytes, Entry]


def tree_on_disk(root: Path) -> Tree:
    """Everything below a directory, and the directory itself under the empty name."""
    tree: Tree = {}
    first: dict[Identity, bytes] = {}
    top = os.fsencode(root)
    todo = [b""]
    while todo:
        name = todo.pop()
        path = os.path.join(top, name) if name else top
        found = os.lstat(path)
        tree[name] = _entry_on_disk(path, name, found, first)
        if stat.S_ISDIR(found.st_mode):
            below = sorted(os.listdir(path), reverse=True)
            directories = [one for one in below if _is_directory(os.path.join(path, one))]
            others = [one for one in below if one not in directories]
            todo += [os.path.join(name, one) for one in directories + others]
    return tree


def _is_directory(path: bytes) -> bool:
    return stat.S_ISDIR(os.lstat(path).st_mode)


def _entry_on_disk(path: bytes, name: bytes, found: os.stat_result, first: dict[Identity, bytes]) -> Entry:
    entry = Entry(
        kind=MemberType.DIRECTORY,
        mode=stat.S_IMODE(found.st_mode),
        mtime_ns=found.st_mtime_ns,
        owner=(found.st_uid, found.st_gid),
    )
    if stat.S_ISDIR(found.st_mode):
        return entry
    if stat.S_ISLNK(found.st_mode):
        return replace(entry, kind=MemberType.SYMLINK, target=os.readlink(path))
    return replace(
        entry,
        kind=MemberType.FILE,
        content=_file_digest(path),
        size=found.st_size,
        first=first.setdefault((found.st_dev, found.st_ino), name),
    )


def _file_digest(path: bytes) -> str:
    digest = sha256()
    with open(path, "rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()


def tree_in_archive(path: Path, prefix: str = Component.MEDIA.member) -> Tree:
    """Everything that an archive holds below a component, from reading all of it."""
    tree: Tree = {}
    archive = open_archive(path)
    try:
        for member, content in archive.contents(2):
            entry = entry_in_archive(member, content, tree, prefix)
            if member.path == prefix or member.path.startswith(f"{prefix}/"):
                tree[_below(member.path, prefix)] = entry
    finally:
        archive.close()
    return tree


def entry_in_archive(member: Member, content: Iterator[memoryview], tree: Tree, prefix: str) -> Entry:
    digest, size = sha256(), 0
    for piece in content:
        digest.update(piece)
        size += len(piece)
    if member.type is MemberType.HARDLINK:
        return tree[_below(member.link, prefix)]
    is_file = member.type is MemberType.FILE
    return Entry(
        kind=member.type,
        mode=member.mode,
        mtime_ns=member.mtime_ns,
        owner=(member.uid, member.gid),
        content=digest.hexdigest() if is_file else "",
        size=size,
        target=os.fsencode(member.link),
        first=_below(member.path, prefix) if is_file else b"",
    )


def _below(path: str, prefix: str) -> bytes:
    return os.fsencode(path.removeprefix(prefix).removeprefix("/"))


def read_member(path: Path, name: str) -> bytes:
    """The content of one file of an archive, found by the index."""
    archive = ArchiveReader(path)
    try:
        member = archive.find(name)
        assert member is not None
        return b"".join(archive.extract(member))
    finally:
        archive.close()


def main() -> None:
    """Archive a tree of uploads in a process of its own: the tree, the archive."""
    tree, archive = map(Path, sys.argv[1:])
    with compressor_pool() as own:
        write_archive(archive, own, Recipe(media=tree))


if __name__ == "__main__":
    main()
