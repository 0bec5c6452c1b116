"""An SFTP server as an off-site store, through `asyncssh`, whose event loop runs in a thread."""

from __future__ import annotations

import asyncio
import stat
import threading
from concurrent.futures import wait
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from hashlib import sha256 as new_digest
from typing import TYPE_CHECKING, Any, Final, TypeVar

from portal.ops.errors import (
    ObjectAbsentError,
    ObjectExistsError,
    StorageError,
    StoreDeniedError,
    StoreFullError,
    StoreUnreachableError,
)
from portal.ops.filesystem.temporary import is_temporary, is_visible, temporary_name
from portal.ops.storage.backend import READ_BYTES, StoredObject

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    from portal.ops.settings.database_url import Secret
    from portal.ops.settings.destination import Destination
    from portal.ops.storage.backend import Data

T = TypeVar("T")

_CONNECT_SECONDS: Final = 15
_SILENCE_SECONDS: Final = 30
_STEP_SECONDS: Final = 60
"""The time limit for each step in seconds: a request, or a piece of `_WRITE_BYTES` or `READ_BYTES`."""

_WRITE_BYTES: Final = 1 << 20


class SftpBackend:
    """Stores objects as files below an existing directory of a server.

    A file is written under a temporary name and renamed; SFTP's rename never replaces a file.

    Arguments:
        destination: server, user, directory; ``key`` and ``known_hosts`` as options.
        password: for a server without key authentication.
    """

    def __init__(self, destination: Destination, password: Secret | None) -> None:
        self._destination = destination
        self._password = password
        self._root = destination.prefix
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sftp", daemon=True)
        self._thread.start()
        self._connection: Any = None
        self._sftp: Any = None

    @property
    def shown(self) -> str:
        """The URL without options."""
        return self._destination.shown

    def put(self, name: str, data: Data, sha256: str) -> None:
        """Store an object; see `Backend.put`. The server's size of the file is checked; it stores no digests."""
        del sha256
        with self._explained(name):
            self._run(self._put(name, data))

    def read(self, name: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Read an object; see `Backend.read`."""
        with self._explained(name):
            file = self._run(self._open(name))
            try:
                at, end = start, None if length is None else start + length
                while end is None or at < end:
                    size = READ_BYTES if end is None else min(READ_BYTES, end - at)
                    piece = self._run(file.read(size, at))
                    if not piece:
                        return
                    at += len(piece)
                    yield piece
            finally:
                with suppress(Exception):
                    self._run(file.close())

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """The objects below a prefix; see `Backend.list`."""
        with self._explained(prefix):
            found = self._run(_gathered(self._below(prefix, deep=True)))
        yield from sorted(found, key=lambda one: one.name)

    def list_top(self) -> Iterator[StoredObject]:
        """The objects directly below the destination; see `Backend.list_top`."""
        with self._explained(""):
            found = self._run(_gathered(self._below("", deep=False)))
        yield from sorted(found, key=lambda one: one.name)

    def unfinished(self) -> Iterator[StoredObject]:
        """Temporary files below the destination; see `Backend.unfinished`."""
        with self._explained(""):
            yield from self._run(_gathered(self._below("", deep=True, wanted=is_temporary)))

    def head(self, name: str) -> StoredObject:
        """An object with the digest of its content as read; see `Backend.head`."""
        digest = new_digest()
        for piece in self.read(name):
            digest.update(piece)
        with self._explained(name):
            attributes = self._run(self._stat(name))
        return _stored(name, attributes, digest.hexdigest())

    def delete(self, name: str) -> None:
        """Remove an object and directories that become empty; see `Backend.delete`."""
        with self._explained(name):
            self._run(self._delete(name))

    def close(self) -> None:
        """Close the connection and end the thread."""
        if self._loop.is_closed():
            return
        with suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        if not self._thread.is_alive():
            self._loop.close()

    async def _end(self) -> None:
        """Drop the connection and cancel pending calls."""
        if self._connection is not None:
            self._connection.abort()
        tasks = {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=2)

    # -- on the thread of the event loop ------------------------------------------------------------------------------

    async def _client(self) -> Any:
        if self._sftp is None:
            import asyncssh

            options: dict[str, Any] = {"port": self._destination.port, "keepalive_interval": _SILENCE_SECONDS}
            if self._destination.user:
                options["username"] = self._destination.user
            if key := self._destination.options.get("key"):
                options["client_keys"] = [key]
            if known := self._destination.options.get("known_hosts"):
                options["known_hosts"] = known
            if self._password:
                options["password"] = self._password.reveal()
            connection = await asyncssh.connect(
                self._destination.place, connect_timeout=_CONNECT_SECONDS, login_timeout=_CONNECT_SECONDS, **options
            )
            try:
                self._sftp = _Limited(await asyncio.wait_for(connection.start_sftp_client(), _STEP_SECONDS))
            except BaseException:
                connection.abort()
                raise
            self._connection = connection
        return self._sftp

    async def _put(self, name: str, data: Data) -> None:
        import asyncssh

        sftp = await self._client()
        await self._check_present(sftp)
        final = f"{self._root}/{name}"
        if await sftp.exists(final):
            raise asyncssh.SFTPFileAlreadyExists(name)
        directory, _, last = final.rpartition("/")
        temporary = f"{directory}/{temporary_name(last)}"
        try:
            if directory != self._root:
                await sftp.makedirs(directory, exist_ok=True)
            await self._write(sftp, temporary, data)
            await sftp.rename(temporary, final)
        except BaseException as error:
            with suppress(Exception):
                await asyncio.wait_for(sftp.remove(temporary), _CONNECT_SECONDS)
            if isinstance(error, asyncssh.SFTPFailure):
                await self._find_reason(sftp, final, len(data))
            raise

    async def _write(self, sftp: Any, path: str, data: Data) -> None:
        """Write a file, and check that the server kept all of it."""
        import asyncssh

        file = _Limited(await sftp.open(path, "wb", attrs=asyncssh.SFTPAttrs(permissions=0o600)))
        try:
            rest = memoryview(data)
            while rest:
                await file.write(bytes(rest[:_WRITE_BYTES]))
                rest = rest[_WRITE_BYTES:]
            with suppress(asyncssh.SFTPOpUnsupported):
                await file.fsync()
        finally:
            await file.close()
        if (await sftp.stat(path)).size != len(data):
            raise asyncssh.SFTPFailure("the server did not keep all that was sent")

    async def _find_reason(self, sftp: Any, final: str, needed: int) -> None:
        """Raise an error with the reason for a failed write, if it can be found: OpenSSH only says "Failure".

        Arguments:
            needed: the bytes that were to be written.
        """
        import asyncssh

        if await sftp.exists(final):
            raise asyncssh.SFTPFileAlreadyExists(final)
        with suppress(asyncssh.SFTPOpUnsupported):
            found = await sftp.statvfs(self._root)
            if found.bavail * (found.frsize or found.bsize) < needed or (found.files and not found.favail):
                raise asyncssh.SFTPNoSpaceOnFilesystem(final)

    async def _open(self, name: str) -> Any:
        sftp = await self._client()
        return _Limited(await sftp.open(f"{self._root}/{name}", "rb"))

    async def _stat(self, name: str) -> Any:
        sftp = await self._client()
        return await sftp.stat(f"{self._root}/{name}")

    async def _check_present(self, sftp: Any) -> None:
        if not await sftp.isdir(self._root):
            raise _RootAbsentError

    async def _below(
        self, prefix: str, *, deep: bool, wanted: Callable[[str], bool] = is_visible
    ) -> AsyncIterator[StoredObject]:
        import asyncssh

        sftp = await self._client()
        await self._check_present(sftp)
        try:
            entries = await sftp.readdir(f"{self._root}/{prefix}".rstrip("/"))
        except (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath):
            return
        for entry in entries:
            name = entry.filename if isinstance(entry.filename, str) else entry.filename.decode(errors="replace")
            if stat.S_ISDIR(entry.attrs.permissions or 0):
                if deep and is_visible(name):
                    async for one in self._below(f"{prefix}{name}/", deep=True, wanted=wanted):
                        yield one
            elif wanted(name):
                yield _stored(prefix + name, entry.attrs)

    async def _delete(self, name: str) -> None:
        import asyncssh

        sftp = await self._client()
        with suppress(asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath):
            await sftp.remove(f"{self._root}/{name}")
        directory = name.rpartition("/")[0]
        with suppress(asyncssh.SFTPError):
            while directory:
                await sftp.rmdir(f"{self._root}/{directory}")
                directory = directory.rpartition("/")[0]

    # -- on the caller's thread ---------------------------------------------------------------------------------------

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the event loop, and wait in steps so that signals are noticed."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            while not wait([future], timeout=1).done:
                pass
            return future.result()
        except BaseException:
            future.cancel()
            raise

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        """Turn errors of `asyncssh` into ours."""
        import asyncssh

        try:
            yield
        except (asyncssh.Error, OSError, TimeoutError, _RootAbsentError) as error:
            ours = self._explain(error, name)
            if isinstance(ours, StoreUnreachableError):
                self._forget_connection()
            raise ours from error

    def _forget_connection(self) -> None:
        connection, self._connection, self._sftp = self._connection, None, None
        if connection is not None:
            self._loop.call_soon_threadsafe(connection.abort)

    def _explain(self, error: Exception, name: str) -> StorageError:
        import asyncssh

        what = f"{self.shown}/{name}" if name else self.shown
        if isinstance(error, _RootAbsentError):
            return StorageError(
                f"the directory {self._root} is not there on {self._destination.place}",
                hint="Create it, or correct BACKUP_OFFSITE_URLS.",
            )
        if isinstance(error, asyncssh.SFTPFileAlreadyExists):
            return ObjectExistsError(f"{what} is there already", hint="Nothing is overwritten off-site.")
        if isinstance(error, asyncssh.SFTPNoSuchFile | asyncssh.SFTPNoSuchPath):
            return ObjectAbsentError(f"there is no {what}", hint="List the copies.")
        if isinstance(error, asyncssh.SFTPNoSpaceOnFilesystem | asyncssh.SFTPQuotaExceeded):
            return StoreFullError(f"{self.shown} has no space left", hint="Make room there, or raise its quota.")
        if isinstance(error, asyncssh.HostKeyNotVerifiable):
            return StoreDeniedError(
                f"the key of {self._destination.place} is not among the known hosts",
                hint="Add it with ssh-keyscan after comparing it, or name a file with known_hosts= in the URL.",
            )
        if isinstance(error, asyncssh.PermissionDenied | asyncssh.SFTPPermissionDenied | asyncssh.SFTPWriteProtect):
            return StoreDeniedError(
                f"{what} refused the request: the credentials are wrong or do not permit it",
                hint="Look at the user, the key and the rights of the directory.",
            )
        if isinstance(error, asyncssh.SFTPFailure) and "space" in str(error).lower():
            return StoreFullError(f"{self.shown} has no space left", hint="Make room there, or raise its quota.")
        lost = isinstance(error, asyncssh.SFTPConnectionLost | asyncssh.SFTPNoConnection | asyncssh.DisconnectError)
        if lost or not isinstance(error, asyncssh.Error):
            silence = f"no answer within {_STEP_SECONDS} s"
            reason = str(error) or (silence if isinstance(error, TimeoutError) else type(error).__name__)
            return StoreUnreachableError(
                f"{self.shown} does not answer: {reason}", hint="Look at the network and at the server."
            )
        if isinstance(error, asyncssh.SFTPFailure):
            hint = "Look at the server: the user's quota may be used up, or the disk may be read-only or faulty."
            return StorageError(f"{what} cannot be used: {error}", hint=hint)
        return StorageError(f"{what} cannot be used: {error}", hint="Look at the server.")


class _RootAbsentError(Exception):
    """Raised if the destination's directory does not exist."""


class _Limited:
    """Wraps an object of `asyncssh`, so that no call takes longer than `_STEP_SECONDS`.

    Keepalives notice a lost server; this notices one that answers only keepalives.
    """

    def __init__(self, wrapped: Any) -> None:
        self._wrapped = wrapped

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        call = getattr(self._wrapped, name)

        async def limited(*arguments: Any, **options: Any) -> Any:
            async with asyncio.timeout(_STEP_SECONDS):
                return await call(*arguments, **options)

        return limited


async def _gathered(found: AsyncIterator[StoredObject]) -> list[StoredObject]:
    return [one async for one in found]


def _stored(name: str, attributes: Any, digest: str | None = None) -> StoredObject:
    return StoredObject(
        name=name,
        size=attributes.size or 0,
        modified=datetime.fromtimestamp(attributes.mtime or 0, UTC),
        sha256=digest,
    )
