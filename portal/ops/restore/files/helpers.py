"""The helper processes that unpack an archive into a stage, as the process sees them that started them."""

from __future__ import annotations

import os
import select
import struct
from fcntl import ioctl
from termios import FIONREAD
from typing import TYPE_CHECKING, Final, NoReturn, Self

from portal.ops.errors import RestoreError
from portal.ops.hints import another_archive
from portal.ops.restore.files.unpacker import KNOWN, REFUSED, encode_run
from portal.ops.runtime.helper_process import Helper, end_helpers, start_helper
from portal.ops.runtime.pipe_messages import receive

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from portal.ops.archive.reader import ArchiveReader
    from portal.ops.archive.runs import Run
    from portal.ops.filesystem.tree import Tree
    from portal.ops.restore.files.unpacker import Use

_UNPACKER: Final = "portal.ops.restore.files.unpacker"
_MOST: Final = 4
"""More of them would wait for the disk, and each takes memory."""

_LOOK_SECONDS: Final = 1.0


class Helpers:
    """Helper processes that make files; when the context has been left, all is written that was asked for.

    What is asked for waits in the pipes to them, so no more waits than these hold. A helper that has failed reads no
    more, and is asked why.

    Arguments:
        archive: what they read.
        tree: the stage.
        jobs: how many cores there are to work on.
    """

    def __init__(self, archive: ArchiveReader, tree: Tree, jobs: int) -> None:
        self._archive = archive
        self._tree = tree
        self._count = min(jobs, _MOST)
        self._helpers: list[Helper] = []

    def __enter__(self) -> Self:
        files = self._archive.fileno(), self._tree.fileno()
        arguments = [*map(str, (os.getpid(), *files)), self._tree.top]
        try:
            for _ in range(self._count):
                helper = start_helper(_UNPACKER, *arguments, descriptors=files)
                self._helpers.append(helper)
                os.set_blocking(helper.requests.fileno(), False)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if kind is None:
                for helper in self._helpers:
                    helper.requests.close()
                for helper in self._helpers:
                    _check_answer(helper)
        finally:
            self._end()

    def unpack(self, run: Run, uses: Sequence[Use]) -> None:
        """Have the files of a run made by the helper that has the least to do.

        Arguments:
            uses: for each member what is done with it.

        Raises:
            NotIntactError: something that was asked for before is damaged or hostile.
            OSError: the operating system refused something that was asked for before.
        """
        helper = min(self._helpers, key=_waiting_bytes)
        rest = memoryview(encode_run(run, uses))
        while rest:
            # A signal that comes just before a wait does not end it, so none is long.
            select.select([], [helper.requests], [], _LOOK_SECONDS)
            try:
                rest = rest[os.write(helper.requests.fileno(), rest) :]
            except BlockingIOError:
                pass
            except BrokenPipeError:
                _check_answer(helper)
                _raise_ended()

    def _end(self) -> None:
        for helper in self._helpers:
            helper.process.kill()
        end_helpers(self._helpers)


def _waiting_bytes(helper: Helper) -> int:
    """The bytes in the pipe to it."""
    (count,) = struct.unpack("i", ioctl(helper.requests, FIONREAD, bytes(struct.calcsize("i"))))
    return int(count)


def _check_answer(helper: Helper) -> None:
    """Wait for the answer of a helper that will not be asked for more; raises what it says."""
    while not select.select([helper.answers], [], [], _LOOK_SECONDS)[0]:
        pass
    try:
        answer = receive(helper.answers)
    except EOFError:
        _raise_ended()
    if answer and answer[0] == REFUSED:
        raise OSError(*answer[1:])
    if answer:
        kind, message, hint = answer
        raise KNOWN[kind](message, hint=hint or another_archive())


def _raise_ended() -> NoReturn:
    raise RestoreError(
        "a helper process of the restore ended unexpectedly",
        hint="Look for 'out of memory' in the system's log (dmesg), then start the restore again.",
    )
