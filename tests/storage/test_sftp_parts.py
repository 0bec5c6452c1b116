"""An SFTP server: how it is connected to, and what becomes of its errors."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import asyncssh
import pytest

from portal.ops.errors import (
    ObjectAbsentError,
    ObjectExistsError,
    StorageError,
    StoreDeniedError,
    StoreFullError,
    StoreUnreachableError,
)
from portal.ops.settings.database_url import Secret
from portal.ops.settings.destination import parse_destination
from portal.ops.storage.sftp import SftpBackend, _RootAbsentError

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def server() -> Iterator[SftpBackend]:
    """An SFTP server that nobody asks."""
    backend = SftpBackend(parse_destination("sftp://me@host:2222/disk?key=/k&known_hosts=/h"), Secret("p"))
    yield backend
    backend.close()


class TestSftp:
    @pytest.mark.parametrize(
        ("error", "kind", "message"),
        [
            (_RootAbsentError(), StorageError, "the directory /disk is not there on host"),
            (asyncssh.SFTPFileAlreadyExists("x"), ObjectExistsError, "sftp://me@host:2222/disk/a is there already"),
            (asyncssh.SFTPNoSuchFile("x"), ObjectAbsentError, "there is no sftp://me@host:2222/disk/a"),
            (asyncssh.SFTPNoSuchPath("x"), ObjectAbsentError, "there is no sftp://me@host:2222/disk/a"),
            (asyncssh.SFTPNoSpaceOnFilesystem("x"), StoreFullError, "sftp://me@host:2222/disk has no space left"),
            (asyncssh.SFTPQuotaExceeded("x"), StoreFullError, "sftp://me@host:2222/disk has no space left"),
            (asyncssh.SFTPFailure("No Space"), StoreFullError, "sftp://me@host:2222/disk has no space left"),
            (asyncssh.HostKeyNotVerifiable("x"), StoreDeniedError, "the key of host is not among the known hosts"),
            *(
                (
                    error,
                    StoreDeniedError,
                    "sftp://me@host:2222/disk/a refused the request: the credentials are wrong or do not permit it",
                )
                for error in (
                    asyncssh.PermissionDenied("x"),
                    asyncssh.SFTPPermissionDenied("x"),
                    asyncssh.SFTPWriteProtect("x"),
                )
            ),
            *(
                (error, StoreUnreachableError, f"sftp://me@host:2222/disk does not answer: {why}")
                for error, why in (
                    (asyncssh.SFTPConnectionLost("lost"), "lost"),
                    (asyncssh.SFTPNoConnection("none"), "none"),
                    (asyncssh.ConnectionLost("gone"), "gone"),
                    (OSError("away"), "away"),
                    (OSError(), "OSError"),
                    (TimeoutError(), "no answer within 60 s"),
                    (TimeoutError("late"), "late"),
                )
            ),
            (asyncssh.SFTPFailure("odd"), StorageError, "sftp://me@host:2222/disk/a cannot be used: odd"),
            (asyncssh.SFTPBadMessage("odd"), StorageError, "sftp://me@host:2222/disk/a cannot be used: odd"),
        ],
    )
    def test_errors(self, server: SftpBackend, error: Exception, kind: type[StorageError], message: str) -> None:
        """Each has its class, says what is wrong, and what to do."""
        with pytest.raises(StorageError) as caught, server._explained("a"):
            raise error
        assert (type(caught.value), caught.value.message) == (kind, message)
        assert caught.value.hint

    def test_hints(self, server: SftpBackend) -> None:
        """A failure without a reason may be the quota's."""
        assert "quota" in server._explain(asyncssh.SFTPFailure("odd"), "").hint
        assert server._explain(asyncssh.SFTPBadMessage("odd"), "").hint == "Look at the server."

    def test_how_it_connects(self, server: SftpBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        """With what URL and settings say, and not longer than it may take; the connection stays."""
        asked: list[tuple[str, dict[str, Any]]] = []

        class Connection:
            async def start_sftp_client(self) -> object:
                return self

            def abort(self) -> None:
                asked.append(("aborted", {}))

        async def connect(host: str, **options: Any) -> Connection:
            asked.append((host, options))
            return Connection()

        monkeypatch.setattr(asyncssh, "connect", connect)
        first = server._run(server._client())
        assert server._run(server._client()) is first
        assert asked == [
            (
                "host",
                {
                    "port": 2222,
                    "keepalive_interval": 30,
                    "username": "me",
                    "client_keys": ["/k"],
                    "known_hosts": "/h",
                    "password": "p",
                    "connect_timeout": 15,
                    "login_timeout": 15,
                },
            )
        ]
        with pytest.raises(StoreUnreachableError), server._explained(""):
            raise OSError("away")
        assert server._run(server._client()) is not first
        assert [name for name, _ in asked] == ["host", "aborted", "host"]

    def test_it_connects_with_no_more_than_it_has(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without options the libraries' own apply."""
        asked: list[dict[str, Any]] = []

        async def connect(_host: str, **options: Any) -> object:
            asked.append(options)
            raise OSError("away")

        monkeypatch.setattr(asyncssh, "connect", connect)
        backend = SftpBackend(parse_destination("sftp://host/disk"), None)
        with pytest.raises(StoreUnreachableError):
            list(backend.list_top())
        backend.close()
        backend.close()
        assert [sorted(options) for options in asked] == [
            ["connect_timeout", "keepalive_interval", "login_timeout", "port"]
        ]
        assert asked[0]["port"] == 22
        assert not backend._thread.is_alive()

    @pytest.mark.parametrize(
        ("found", "kind"),
        [
            ({"bavail": 9, "frsize": 1, "bsize": 100, "files": 0, "favail": 0}, asyncssh.SFTPNoSpaceOnFilesystem),
            ({"bavail": 10, "frsize": 1, "bsize": 1, "files": 0, "favail": 0}, None),
            ({"bavail": 1, "frsize": 0, "bsize": 10, "files": 5, "favail": 1}, None),
            ({"bavail": 1, "frsize": 0, "bsize": 9, "files": 5, "favail": 1}, asyncssh.SFTPNoSpaceOnFilesystem),
            ({"bavail": 10, "frsize": 1, "bsize": 1, "files": 5, "favail": 0}, asyncssh.SFTPNoSpaceOnFilesystem),
        ],
    )
    def test_reason_of_a_failure(
        self, server: SftpBackend, found: dict[str, int], kind: type[Exception] | None
    ) -> None:
        """Too little room for what was to be written, in bytes or in names."""

        class Client:
            async def exists(self, _path: str) -> bool:
                return False

            async def statvfs(self, _path: str) -> object:
                return SimpleNamespace(**found)

        async def reason() -> type[BaseException] | None:
            try:
                await server._find_reason(Client(), "/disk/a", 10)
            except asyncssh.SFTPError as error:
                return type(error)
            return None

        assert asyncio.run(reason()) == kind
