"""A helper process of a restore: is given runs of an archive, and makes their files in the stage.

Decompressing, hashing and writing are shared among a few of these. The process that started them has made the
directories, and decides which members become files and where; links come last, and are its own as well. Every check of
an archive's content is made here as it is made there, by the same code.

It answers once, when its standard input has ended or something went wrong: with nothing, or with what it was.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from portal.ops.archive.index import Member, MemberType
from portal.ops.archive.reader import ArchiveReader
from portal.ops.archive.runs import Run
from portal.ops.errors import DiskFullError, NotIntactError
from portal.ops.filesystem.tree import Tree
from portal.ops.restore.files.file_writer import FileMaker, drain
from portal.ops.restore.files.free_space import Room
from portal.ops.restore.files.writers import Writers
from portal.ops.runtime.pipe_messages import encode, receive, send

if TYPE_CHECKING:
    from collections.abc import Sequence

REFUSED: Final = "refused"
"""What an answer starts with where the operating system refused: error number, its text and the file's name follow."""

KNOWN: Final = {kind.__name__: kind for kind in (NotIntactError, DiskFullError)}
"""What it may start with otherwise: the name of an error; message and hint follow."""

Use = str | Literal[True, False]
"""What is done with a member: its file is made at this path in the stage, or it is `CHECKED` or `PASSED`."""

CHECKED: Final = True
"""Its content is read, and held against the index."""

PASSED: Final = False
"""It is not restored, so it need not be intact."""

_PR_SET_PDEATHSIG: Final = 1


def encode_run(run: Run, uses: Sequence[Use]) -> bytes:
    """The message that has a run unpacked.

    Arguments:
        uses: for each member what is done with it.
    """
    members = [(member.path, member.type.value, *member[2:]) for member in run.members]
    return encode((run.frames.start, run.frames.stop, members, list(uses)))


def main() -> None:
    """Unpack what is asked for, and answer.

    Its arguments are the number of the process that started it, the descriptors of archive and stage, and the name of
    the stage.
    """
    parent, archive, stage = map(int, sys.argv[1:4])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one decides
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # nothing may be written once it has gone
    if os.getppid() == parent:
        files = Path("/proc/self/fd")
        send(sys.stdout.buffer, _answer(files / str(archive), files / str(stage), sys.argv[4]))


def _answer(archive: Path, stage: Path, name: str) -> tuple[Any, ...]:
    try:
        with Tree(str(stage)) as tree, Writers() as writers:
            _unpack(ArchiveReader(archive), FileMaker(tree, writers, Room(tree.fileno(), name)))
    except NotIntactError as error:
        return NotIntactError.__name__, error.message, ""  # only the other side knows the commands of a hint
    except DiskFullError as error:
        return DiskFullError.__name__, error.message, error.hint
    except OSError as error:
        return REFUSED, error.errno, error.strerror, error.filename
    return ()


def _unpack(archive: ArchiveReader, maker: FileMaker) -> None:
    while True:
        try:
            start, stop, members, uses = receive(sys.stdin.buffer)
        except EOFError:
            return
        run = Run(range(start, stop), [Member(path, MemberType(kind), *rest) for path, kind, *rest in members])
        for (member, content), use in zip(archive.contents_of(run), uses, strict=True):
            if use is CHECKED:
                drain(content)
            elif use is not PASSED:
                maker.make(use, member, content)
