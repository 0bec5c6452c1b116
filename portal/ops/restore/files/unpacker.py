"""A helper process of a restore: receives runs of an archive, and writes their files to the stage.

Several helpers share the work of decompressing, hashing and writing. The process that started them has created the
directories, decides where each file goes, and creates links itself at the end. The same code checks an archive's
content here and there.

It answers once, when its standard input ends or an error occurs: with an empty answer, or with the error.
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
"""The start of an answer after an operating system error; its number, text and file name follow."""

KNOWN: Final = {kind.__name__: kind for kind in (NotIntactError, DiskFullError)}
"""The start of an answer after another error; the error's name, message and hint follow."""

Use = str | Literal[True, False]
"""What to do with a member: create its file at this path in the stage, or `CHECKED` or `PASSED`."""

CHECKED: Final = True
"""Read the content and check it against the index."""

PASSED: Final = False
"""Skip the member, which need not be intact."""

_PR_SET_PDEATHSIG: Final = 1


def encode_run(run: Run, uses: Sequence[Use]) -> bytes:
    """The message that requests a run.

    Arguments:
        uses: what to do with each member.
    """
    members = [(member.path, member.type.value, *member[2:]) for member in run.members]
    return encode((run.frames.start, run.frames.stop, members, list(uses)))


def main() -> None:
    """Unpack what is requested, and answer.

    The arguments are the process id of the parent, the descriptors of archive and stage, and the stage's name.
    """
    parent, archive, stage = map(int, sys.argv[1:4])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # signals are left to the process that started this one
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # write nothing after the parent
    if os.getppid() == parent:
        files = Path("/proc/self/fd")
        send(sys.stdout.buffer, _answer(files / str(archive), files / str(stage), sys.argv[4]))


def _answer(archive: Path, stage: Path, name: str) -> tuple[Any, ...]:
    try:
        with Tree(str(stage)) as tree, Writers() as writers:
            _unpack(ArchiveReader(archive), FileMaker(tree, writers, Room(tree.fileno(), name)))
    except NotIntactError as error:
        return NotIntactError.__name__, error.message, ""  # only the parent can show a hint as a command
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
