"""Starts and feeds the helper processes that unpack an archive into a stage."""

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
"""The most helper processes: more would only wait for the disk, and each takes memory."""

_LOOK_SECONDS: Final = 1.0


class Helpers:
    """Helper processes that create files; when the context ends, everything requested has been written.

    Requests wait in the pipes to the helpers, so the pipes' size limits them. A helper that fails stops reading, and is
    then asked for its error.

    Arguments:
        archive: the archive to read.
        tree: the stage.
        jobs: the number of cores to use.
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
        """Send a run to the helper with the least pending work.

        Arguments:
            uses: what to do with each member.

        Raises:
            NotIntactError: something requested earlier is damaged or hostile.
            OSError: the operating system refused something requested earlier.
        """
        helper = min(self._helpers, key=_waiting_bytes)
        rest = memoryview(encode_run(run, uses))
        while rest:
            # A signal just before a wait does not end the wait, so each wait is short.
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
    """The number of bytes waiting in a helper's pipe."""
    (count,) = struct.unpack("i", ioctl(helper.requests, FIONREAD, bytes(struct.calcsize("i"))))
    return int(count)


def _check_answer(helper: Helper) -> None:
    """Wait for the answer of a helper that gets no more requests; raise the error in it."""
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
