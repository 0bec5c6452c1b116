"""Commands recorded on a terminal of a given width: what a person would have seen in the end, and on the way."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")
_SECONDS: Final = 120


@dataclass(frozen=True, kw_only=True)
class Session:
    """A command that has ended.

    Arguments:
        code: its exit code.
        raw: everything the terminal received.
    """

    code: int
    raw: str

    @property
    def screen(self) -> list[str]:
        """The lines on the screen in the end, without colours: what was drawn over is gone."""
        lines = []
        for line in _COLOUR.sub("", self.raw).replace("\r\n", "\n").split("\n"):
            shown = line.rpartition("\r\x1b[K")[2] if "\r\x1b[K" in line else line
            lines.append(shown.rstrip())
        while lines and not lines[-1]:
            lines.pop()
        return lines

    @property
    def text(self) -> str:
        """The screen as one text."""
        return "\n".join(self.screen)


def record(
    command: Sequence[str | Path], environ: dict[str, str], *, columns: int = 80, keys: str = "", until: str = ""
) -> Session:
    """Run a command with all three standard streams on a terminal of its own.

    Arguments:
        columns: how wide the terminal is.
        keys: what the person types once `until` is on the screen.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    seen: list[bytes] = []
    typed = not keys

    def watch() -> None:
        nonlocal typed
        while True:
            try:
                seen.append(os.read(ours, 65536))
            except OSError:  # nobody has the other end any more
                return
            if not typed and until in b"".join(seen).decode(errors="replace"):
                typed = True
                os.write(ours, keys.encode())

    thread = threading.Thread(target=watch)
    thread.start()
    variables = {"TERM": "xterm-256color", **environ}
    with subprocess.Popen(command, env=variables, stdin=theirs, stdout=theirs, stderr=theirs, cwd="/") as process:
        os.close(theirs)
        code = process.wait(timeout=_SECONDS)
    thread.join()
    os.close(ours)
    return Session(code=code, raw=b"".join(seen).decode())
