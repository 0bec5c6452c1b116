"""Reads the first bytes of a dump in PostgreSQL's custom format, to find out which pg_restore can read it.

Source: PostgreSQL, src/bin/pg_dump/pg_backup_archiver.c, `WriteHead` and `WriteInt` (formats 1.12 to 1.16).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from portal.ops.postgres.environment import client_environment
from portal.ops.runtime.process import DEVNULL, PIPE

if TYPE_CHECKING:
    from pathlib import Path

    from portal.ops.postgres.client_tools import ClientTool
    from portal.ops.runtime.process import ProcessRunner, RunningProcess

HEAD_BYTES: Final = 4096
"""The number of bytes that `dump_major` needs."""

_MAGIC: Final = b"PGDMP"
_COMPRESSION_IS_A_BYTE: Final = (1, 15)
_TIME_FIELDS: Final = 7


def dump_major(head: bytes) -> int | None:
    """The major version of the pg_dump that wrote a dump, or None if it is no dump in the custom format."""
    try:
        return int(_dump_version(head).split(b".")[0])
    except (IndexError, ValueError):
        return None


def _dump_version(head: bytes) -> bytes:
    if not head.startswith(_MAGIC):
        raise ValueError("not a custom-format dump")
    version = head[5], head[6]
    integer = head[8]
    at = len(_MAGIC) + 6  # three bytes of version, sizes of integers and offsets, format
    at += 1 if version >= _COMPRESSION_IS_A_BYTE else 1 + integer
    at += _TIME_FIELDS * (1 + integer)
    for _ in ("the database", "the server's version"):
        at += 1 + integer + _integer(head, at, integer)
    length = _integer(head, at, integer)
    return head[at + 1 + integer : at + 1 + integer + length].split(b" ")[0]


def _integer(head: bytes, at: int, size: int) -> int:
    value = int.from_bytes(head[at + 1 : at + 1 + size], "little")
    if len(head) < at + 1 + size or value > HEAD_BYTES:
        raise ValueError("cut short")
    return -value if head[at] else value


def start_decoding(tool: ClientTool, *, runner: ProcessRunner, dump: Path | None = None) -> RunningProcess:
    """Start a pg_restore that decodes a dump.

    Arguments:
        tool: a pg_restore that can read it.
        dump: the file; None for the standard input of the program.
    """
    file = [] if dump is None else [str(dump)]
    return runner.start(
        [str(tool.path), "--format=custom", "--file=/dev/null", *file],
        environment=client_environment(),
        stdin=PIPE if dump is None else DEVNULL,
        stdout=DEVNULL,
    )
