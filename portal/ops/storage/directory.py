"""A directory as an off-site store: a separate disk, or a mounted share."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager, suppress
from hashlib import sha256 as new_digest
from pathlib import Path
from typing import TYPE_CHECKING, Final

from portal.ops.errors import (
    ObjectAbsentError,
    ObjectExistsError,
    StorageError,
    StoreDeniedError,
    StoreFullError,
    StoreUnreachableError,
)
from portal.ops.filesystem.temporary import is_temporary, is_visible, temporary_name
from portal.ops.limits import limit_hint
from portal.ops.model import file_time
from portal.ops.storage.backend import READ_BYTES, StoredObject
from portal.ops.units import system_reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from portal.ops.storage.backend import Data

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_AWAY: Final = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOTCONN, errno.ENODEV})
_REFUSED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


class DirectoryBackend:
    """Stores objects as files below a directory that must exist, since a share might not be mounted.

    Arguments:
        path: the directory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def shown(self) -> str:
        """The URL."""
        return f"file://{self._path}"

    def put(self, name: str, data: Data, sha256: str) -> None:
        """Store an object durably; see `Backend.put`."""
        del sha256  # a file system stores no digests; `head` reads the file
        final = self._path / name
        with self._explained(name):
            self._make_room_for(final)
            if final.exists():
                raise _exists(self.shown, name)
            temporary = final.with_name(temporary_name(final.name))
            try:
                _write(temporary, data)
                _publish(temporary, final)
            except FileExistsError:
                raise _exists(self.shown, name) from None
            finally:
                temporary.unlink(missing_ok=True)
            sync_directory(final.parent)
            if (size := final.stat().st_size) != len(data):
                raise StorageError(
                    f"{self.shown}/{name} has {size} bytes, although {len(data)} were written",
                    hint="Look at the disk or share; its answers cannot be relied on.",
                )

    def read(self, name: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Read an object; see `Backend.read`."""
        with self._explained(name), (self._path / name).open("rb", buffering=0) as file:
            file.seek(start)
            left = length
            while left is None or left > 0:
                piece = file.read(READ_BYTES if left is None else min(READ_BYTES, left))
                if not piece:
                    return
                left = None if left is None else left - len(piece)
                yield piece

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """The objects below a prefix; see `Backend.list`."""
        with self._explained(prefix):
            self._check_present()
            yield from self._below(self._path / prefix if prefix else self._path, prefix, deep=True)

    def list_top(self) -> Iterator[StoredObject]:
        """The objects directly below the destination; see `Backend.list_top`."""
        with self._explained(""):
            self._check_present()
            yield from self._below(self._path, "", deep=False)

    def unfinished(self) -> Iterator[StoredObject]:
        """Temporary files below the destination; see `Backend.unfinished`."""
        with self._explained(""):
            self._check_present()
            yield from self._below(self._path, "", deep=True, wanted=is_temporary)

    def head(self, name: str) -> StoredObject:
        """An object with the digest of its file; see `Backend.head`."""
        digest = new_digest()
        for piece in self.read(name):
            digest.update(piece)
        with self._explained(name):
            return _stored(name, (self._path / name).stat(), digest.hexdigest())

    def delete(self, name: str) -> None:
        """Remove an object and directories that become empty; see `Backend.delete`."""
        path = self._path / name
        with self._explained(name):
            path.unlink(missing_ok=True)
            with suppress(OSError):
                while path.parent != self._path:
                    path = path.parent
                    path.rmdir()

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def _below(
        self, directory: Path, prefix: str, *, deep: bool, wanted: Callable[[str], bool] = is_visible
    ) -> Iterator[StoredObject]:
        try:
            entries = sorted(os.scandir(directory), key=lambda one: one.name + ("/" if one.is_dir() else ""))
        except FileNotFoundError:
            return
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if deep and is_visible(entry.name):
                    yield from self._below(Path(entry.path), f"{prefix}{entry.name}/", deep=True, wanted=wanted)
            elif wanted(entry.name):
                with suppress(FileNotFoundError):  # removed meanwhile
                    yield _stored(f"{prefix}{entry.name}", entry.stat())

    def _check_present(self) -> None:
        if not self._path.is_dir():
            raise FileNotFoundError(errno.ENOENT, "no such directory", str(self._path))

    def _make_room_for(self, final: Path) -> None:
        self._check_present()
        made = [one for one in final.parents if one.is_relative_to(self._path) and not one.exists()]
        for directory in reversed(made):
            directory.mkdir(mode=0o700, exist_ok=True)
            sync_directory(directory.parent)

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        """Turn errors of the operating system into ours."""
        try:
            yield
        except OSError as error:
            raise self._explain(error, name) from error

    def _explain(self, error: OSError, name: str) -> StorageError:
        what = f"{self.shown}/{name}" if name else self.shown
        reason = system_reason(error)
        if error.errno in _FULL:
            return StoreFullError(f"{self.shown} is full", hint="Make room there, or remove old copies.")
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            if self._path.is_dir() and name:
                return ObjectAbsentError(f"there is no {what}", hint="List the copies.")
            return StoreUnreachableError(
                f"the directory {self._path} is not there", hint="Mount the disk or share, or create the directory."
            )
        if error.errno in _REFUSED:
            return StoreDeniedError(
                f"{what} may not be used: {reason}", hint="Give the directory to the user of the backups."
            )
        if error.errno in _AWAY:
            return StoreUnreachableError(f"{what} does not answer: {reason}", hint="Look at the disk or share.")
        return StorageError(f"{what} cannot be used: {reason}", hint=limit_hint(error) or "Look at the disk or share.")


def _write(path: Path, data: Data) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _publish(temporary: Path, final: Path) -> None:
    """Give a file its name unless that exists; a hard link does both in one step."""
    try:
        os.link(temporary, final)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if final.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(final)) from None
        temporary.rename(final)


def sync_directory(path: Path) -> None:
    """Sync a directory, if its file system can."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # some network file systems cannot
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _stored(name: str, found: os.stat_result, digest: str | None = None) -> StoredObject:
    return StoredObject(name=name, size=found.st_size, modified=file_time(found.st_mtime), sha256=digest)


def _exists(shown: str, name: str) -> ObjectExistsError:
    return ObjectExistsError(f"{shown}/{name} is there already", hint="Nothing is overwritten off-site.")
