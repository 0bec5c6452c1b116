"""A process runner that starts nothing: each program does what its script says."""

from __future__ import annotations

import errno
import io
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from portal.ops.runtime.process import DEVNULL, PIPE, RunningProcess

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from portal.ops.runtime.process import Stream


@dataclass(frozen=True, kw_only=True)
class Script:
    """What a program says and how it ends; one that hangs ends only by being killed."""

    stdout: bytes = b""
    stderr: str = ""
    returncode: int = 0
    hangs: bool = False


class FakeRunner:
    """Plays scripts by the name of the program, and remembers what was asked for."""

    def __init__(self, scripts: Mapping[str, Script | Sequence[Script]]) -> None:
        self._scripts = {
            name: [script] if isinstance(script, Script) else list(script) for name, script in scripts.items()
        }
        self.commands: list[list[str]] = []
        self.environments: list[dict[str, str]] = []
        self.processes: list[RunningProcess] = []

    def start(
        self,
        argv: Sequence[str | Path],
        *,
        environment: Mapping[str, str],
        stdin: Stream = DEVNULL,
        stdout: Stream = PIPE,
    ) -> RunningProcess:
        """Play the next script of the program; the last one again and again."""
        self.commands.append([str(word) for word in argv])
        self.environments.append(dict(environment))
        scripts = self._scripts.get(Path(argv[0]).name)
        if scripts is None:
            raise FileNotFoundError(errno.ENOENT, "no such program", str(argv[0]))
        self.processes.append(FakeProcess(scripts.pop(0) if len(scripts) > 1 else scripts[0]))
        return self.processes[-1]


class FakeProcess:
    """A process that plays a script."""

    pid = 0

    def __init__(self, script: Script) -> None:
        self._script = script
        self._ended = threading.Event()
        self._killed = False
        self.stdin: IO[bytes] = io.BytesIO()
        self.stdout: IO[bytes] = _Output(script, self._ended)
        if not script.hangs:
            self._ended.set()

    @property
    def returncode(self) -> int | None:
        """As the script says, or SIGTERM."""
        if not self._ended.is_set():
            return None
        return -signal.SIGTERM if self._killed else self._script.returncode

    def wait(self, timeout_seconds: float | None = None) -> int:
        """Wait for the script's end, or the kill."""
        if not self._ended.wait(timeout_seconds):
            raise TimeoutError("the script hangs")
        returncode = self.returncode
        assert returncode is not None
        return returncode

    def kill(self, grace_seconds: float = 5.0) -> None:
        """End a script that hangs."""
        if not self._ended.is_set():
            self._killed = True
            self._ended.set()

    def stderr_tail(self) -> str:
        """Return what the script says."""
        return self._script.stderr


class _Output(io.BytesIO):
    """Output whose end comes when the process ends, as that of a real pipe does."""

    def __init__(self, script: Script, ended: threading.Event) -> None:
        super().__init__(script.stdout)
        self._ended = ended

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0 or self.tell() == len(self.getbuffer()):
            self._ended.wait()
        return super().read(size)
