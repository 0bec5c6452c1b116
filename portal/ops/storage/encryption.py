"""Encrypts parts of a file with age, in a helper process and with a memory of two parts at the most."""

from __future__ import annotations

import mmap
import os
import select
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple, Self, cast

from portal.ops.errors import OpsError, StorageError
from portal.ops.runtime.helper_process import Helper, end_helpers, start_helper
from portal.ops.runtime.pipe_messages import receive, send
from portal.ops.storage.age_keys import check_recipients

if TYPE_CHECKING:
    import io
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

BUFFERS: Final = 2
"""One is sent to the store while the other one is filled."""

_PATIENCE_SECONDS: Final = 1.0


class Sealed(NamedTuple):
    """An encrypted part.

    Arguments:
        data: its bytes, which stay as they are until the buffer's next use.
        sha256: their digest.
    """

    data: memoryview
    sha256: str


class Encryptor:
    """Encrypts for some recipients; a context manager.

    Arguments:
        recipients: age public keys.
        source: the file that parts are taken of; without one, `load` gives what is to be encrypted.

    Raises:
        ConfigurationError: a text is no recipient.
    """

    def __init__(self, recipients: Sequence[str], source: int | None = None) -> None:
        self._recipients = check_recipients(recipients)
        self._source = source
        self._inbox: int | None = None
        self._buffers: list[int] = []
        self._helper: Helper | None = None

    def __enter__(self) -> Self:
        if self._source is None:
            self._source = self._inbox = os.memfd_create("kekkai-plain", os.MFD_CLOEXEC)
        self._buffers = [os.memfd_create("kekkai-sealed", os.MFD_CLOEXEC) for _ in range(BUFFERS)]
        descriptors = (self._source, *self._buffers)
        self._helper = start_helper("portal.ops.storage.encrypt_helper", descriptors=descriptors)
        send(self._helper.requests, (self._recipients, self._source, tuple(self._buffers)))
        return self

    def __exit__(self, *_: object) -> None:
        if self._helper is not None:
            self._helper.process.kill()  # what it still works at is of no use
            end_helpers([self._helper])
        for descriptor in (*self._buffers, *([self._inbox] if self._inbox is not None else [])):
            os.close(descriptor)
        self._buffers.clear()

    def load(self, data: bytes) -> int:
        """Take what is to be encrypted next, in place of a file; its length."""
        assert self._inbox is not None
        os.ftruncate(self._inbox, 0)
        os.pwrite(self._inbox, data, 0)
        return len(data)

    def begin(self, start: int, length: int, buffer: int) -> None:
        """Have a part encrypted; `sealed` gives it.

        Arguments:
            start: where the part starts in the source.
            buffer: which of the `BUFFERS` is filled, from 0; nobody may be using what it held.
        """
        assert self._helper is not None
        try:
            send(self._helper.requests, (start, length, buffer))
        except BrokenPipeError as error:
            raise _gone() from error

    @contextmanager
    def _sealed(self, buffer: int) -> Iterator[Sealed]:
        assert self._helper is not None
        # Without a buffer, in which an answer could wait unseen.
        answers = cast("BinaryIO", cast("io.BufferedReader", self._helper.answers).raw)
        while not select.select([answers], [], [], _PATIENCE_SECONDS)[0]:
            pass
        try:
            size, digest, fault = receive(answers)
        except EOFError as error:
            raise _gone() from error
        if size < 0:
            raise OSError(-size, os.strerror(-size))
        if fault:
            raise StorageError(f"a part could not be encrypted: {fault}", hint="Verify the archive, then try again.")
        mapped = mmap.mmap(self._buffers[buffer], size, prot=mmap.PROT_READ)
        view = memoryview(mapped)
        try:
            yield Sealed(view, digest)
        finally:
            with suppress(BufferError):  # a thread that was left behind still reads it
                view.release()
                mapped.close()
                os.ftruncate(self._buffers[buffer], 0)

    def sealed(self, buffer: int) -> AbstractContextManager[Sealed]:
        """The part that was begun first, encrypted; its memory is free again when the context ends.

        Raises:
            OSError: the source could not be read.
            StorageError: it could not be encrypted.
        """
        return self._sealed(buffer)


def _gone() -> OpsError:
    return StorageError(
        "the process that encrypts has ended", hint="Look for 'out of memory' in the system's log, then try again."
    )
