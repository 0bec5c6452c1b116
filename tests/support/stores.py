"""Off-site stores for tests: a real S3 server, a real SFTP server, directories, and stores that misbehave."""

from __future__ import annotations

import asyncio
import errno
import threading
from typing import TYPE_CHECKING, Any, Final, Self
from uuid import uuid4

import pytest

from demo.object_store import ADMINISTRATOR, Account, EmbeddedObjectStore
from portal.ops.errors import StoreDeniedError, StoreUnreachableError
from tests.support.waiting import LONG_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from portal.ops.storage.backend import Backend, Data, StoredObject

HOST: Final = Account(name="host", secret="hosts-secret", actions=("Read:backup", "List:backup", "Write:backup"))
POLICY_HOST: Final = Account(name="kekkai-host", secret="policy-hosts-secret", actions=())
POLICY_ADMINISTRATOR: Final = Account(name="kekkai-administrator", secret="policy-administrators-secret", actions=())
"""Accounts that may do what a bucket's policy says, and nothing else."""

BUCKET: Final = "backup"
PASSWORD: Final = "sftp-secret"


@pytest.fixture(scope="session")
def object_store() -> Iterator[EmbeddedObjectStore]:
    """One S3 server for all tests of a process; each test takes a prefix of its own."""
    with EmbeddedObjectStore((HOST, POLICY_HOST, POLICY_ADMINISTRATOR)) as server:
        server.create_bucket(BUCKET)
        yield server


@pytest.fixture
def bucket_url(object_store: EmbeddedObjectStore, monkeypatch: pytest.MonkeyPatch) -> str:
    """A destination of the test's own on the S3 server; its credentials are in the environment."""
    for name, value in ADMINISTRATOR.environ().items():
        monkeypatch.setenv(name, value)
    return object_store.url(BUCKET, f"test-{uuid4().hex[:8]}")


class SftpServer:
    """An SFTP server in a thread of its own; use it as a context manager.

    Arguments:
        directory: keys go here; what is stored, into `root`.
        hangs_at: a request, such as ``write``, that is never answered, while the connection stays alive.
        is_terse: whether it says no more of most errors than "Failure", like OpenSSH.
        has_sftp: whether it offers SFTP at all.
    """

    def __init__(self, directory: Path, *, hangs_at: str = "", is_terse: bool = False, has_sftp: bool = True) -> None:
        self.directory = directory
        self._hangs_at = hangs_at
        self._is_terse = is_terse
        self._has_sftp = has_sftp
        self.connections = 0
        self.root = directory / "served"
        self.root.mkdir()
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: Any = None

    def __enter__(self) -> Self:
        import asyncssh

        key = asyncssh.generate_private_key("ssh-ed25519")
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(key), self._loop).result(LONG_SECONDS)
        self.port = self._server.get_port()
        public = key.export_public_key().decode().strip()
        (self.directory / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {public}\n")
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(LONG_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        tasks = {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=5)

    @property
    def url(self) -> str:
        """The destination."""
        return f"sftp://kekkai@127.0.0.1:{self.port}{self.root}?known_hosts={self.directory / 'known_hosts'}"

    async def _listen(self, key: Any) -> Any:
        import asyncssh

        server = self

        class Doorkeeper(asyncssh.SSHServer):
            def connection_made(self, _: Any) -> None:
                server.connections += 1

            def connection_lost(self, _: Exception | None) -> None:
                server.connections -= 1

            def begin_auth(self, _: str) -> bool:
                return True

            def password_auth_supported(self) -> bool:
                return True

            def validate_password(self, _: str, password: str) -> bool:
                return password == PASSWORD

        hangs_at = self._hangs_at

        class Hanging(asyncssh.SFTPServer):
            def __getattribute__(self, name: str) -> Any:
                return _never if name == hangs_at else super().__getattribute__(name)

        class Terse(asyncssh.SFTPServer):
            """Gives the status that OpenSSH gives for errors that version 3 of the protocol has no number for."""

            def __getattribute__(self, name: str) -> Any:
                found = super().__getattribute__(name)
                return _tersely(found) if name in ("open", "write", "close", "mkdir", "rename") else found

        return await asyncssh.listen(
            "127.0.0.1",
            0,
            server_factory=Doorkeeper,
            server_host_keys=[key],
            sftp_factory=Hanging if hangs_at else Terse if self._is_terse else self._has_sftp,
        )


def _tersely(work: Callable[..., Any]) -> Callable[..., Any]:
    import asyncssh

    def call(*arguments: Any) -> Any:
        try:
            return work(*arguments)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EACCES, errno.EPERM):
                raise
            raise asyncssh.SFTPFailure("Failure") from None

    return call


async def _never(*_: object) -> None:
    await asyncio.sleep(3600)


class Unsteady:
    """A store whose connection breaks now and then: a fake in front of a real one.

    Arguments:
        fails: asked before each call, with its name; true breaks the connection before, ``"after"`` after the work.
    """

    def __init__(self, real: Backend, fails: Callable[[str], bool | str]) -> None:
        self._real = real
        self._fails = fails

    @property
    def shown(self) -> str:
        """As the real one."""
        return self._real.shown

    def put(self, name: str, data: Data, sha256: str) -> None:
        """Store, unless the connection breaks; or store, and break before the answer."""
        how = self._break("put")
        self._real.put(name, data, sha256)
        if how == "after":
            raise _broken()

    def read(self, name: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Read, and break in the midst of it."""
        how = self._break("read")
        for piece in self._real.read(name, start, length):
            yield piece
            if how == "after":
                raise _broken()

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """List, unless the connection breaks."""
        self._break("list")
        return self._real.list(prefix)

    def list_top(self) -> Iterator[StoredObject]:
        """List, unless the connection breaks."""
        self._break("list")
        return self._real.list_top()

    def unfinished(self) -> Iterator[StoredObject]:
        """List, unless the connection breaks."""
        self._break("list")
        return self._real.unfinished()

    def head(self, name: str) -> StoredObject:
        """Look, unless the connection breaks."""
        self._break("head")
        return self._real.head(name)

    def delete(self, name: str) -> None:
        """Delete, unless the connection breaks."""
        self._break("delete")
        self._real.delete(name)

    def close(self) -> None:
        """Close the real one."""
        self._real.close()

    def _break(self, what: str) -> bool | str:
        how = self._fails(what)
        if how is True:
            raise _broken()
        return how


class Lying(Unsteady):
    """A store that reports success and keeps something else.

    Arguments:
        real: the store behind it.
        keeps: what it keeps of the objects that `is_victim` picks by their names; nothing where it keeps none.
    """

    def __init__(self, real: Backend, keeps: Callable[[bytes], bytes | None], is_victim: Callable[[str], bool]) -> None:
        super().__init__(real, lambda _: False)
        self._keeps = keeps
        self._is_victim = is_victim

    def put(self, name: str, data: Data, sha256: str) -> None:
        """Store what it likes."""
        kept = self._keeps(bytes(data)) if self._is_victim(name) else data
        if kept is not None:
            super().put(name, kept, sha256)


class Refusing(Unsteady):
    """A store that refuses some requests and carries out all others.

    Arguments:
        real: the store behind it.
        refuses: asked with the request's kind and the object's name.
    """

    def __init__(self, real: Backend, refuses: Callable[[str, str], bool]) -> None:
        super().__init__(real, lambda _: False)
        self._refuses = refuses

    def put(self, name: str, data: Data, sha256: str) -> None:
        """Store, unless refused."""
        self._check("put", name)
        super().put(name, data, sha256)

    def read(self, name: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Read, unless refused."""
        self._check("read", name)
        return super().read(name, start, length)

    def delete(self, name: str) -> None:
        """Delete, unless refused."""
        self._check("delete", name)
        super().delete(name)

    def _check(self, what: str, name: str) -> None:
        if self._refuses(what, name):
            raise StoreDeniedError(f"{self.shown}/{name} refused the request", hint="Look at the store.")


def _broken() -> StoreUnreachableError:
    return StoreUnreachableError("the connection was reset", hint="Try again.")
