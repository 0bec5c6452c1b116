"""Decoding a dump to its end, which shows whether pg_restore can read all of it; the result is thrown away."""

from __future__ import annotations

from typing import TYPE_CHECKING

from portal.ops.postgres.client_tools import client_environment
from portal.ops.runtime.process import DEVNULL, PIPE

if TYPE_CHECKING:
    from pathlib import Path

    from portal.ops.postgres.client_tools import ClientTool
    from portal.ops.runtime.process import ProcessRunner, RunningProcess


def start_decoding(tool: ClientTool, *, runner: ProcessRunner, dump: Path | None = None) -> RunningProcess:
    """Start a pg_restore that decodes a dump.

    Arguments:
        tool: a pg_restore that can read it.
        dump: the file; nothing means the standard input of the program.
    """
    file = [] if dump is None else [str(dump)]
    return runner.start(
        [str(tool.path), "--format=custom", "--file=/dev/null", *file],
        environment=client_environment(),
        stdin=PIPE if dump is None else DEVNULL,
        stdout=DEVNULL,
    )
