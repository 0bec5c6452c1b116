"""Encrypts parts of a file with age in a helper process, with at most two parts in memory."""

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
"""One part is being sent to the store while another is encrypted."""

_PATIENCE_SECONDS: Final = 1.0


class Sealed(NamedTuple):
    """An encrypted part.

    Arguments:
        data: the bytes, valid until the buffer is used again.
        sha256: their digest.
    """

    data: memoryview
    sha256: str


class Encryptor:
    """Encrypts for recipients; a context manager.

    Arguments:
        recipients: age public keys.
        source: the file to encrypt; without one, `load` provides the data.

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
            self._helper.process.kill()  # whatever it is still working on is no longer needed
            end_helpers([self._helper])
        for descriptor in (*self._buffers, *([self._inbox] if self._inbox is not None else [])):
            os.close(descriptor)
        self._buffers.clear()

    def load(self, data: bytes) -> int:
        """Provide the data to encrypt next, instead of a file; return its length."""
        assert self._inbox is not None
        os.ftruncate(self._inbox, 0)
        os.pwrite(self._inbox, data, 0)
        return len(data)

    def begin(self, start: int, length: int, buffer: int) -> None:
        """Request the encryption of a part; `sealed` returns it.

        Arguments:
            start: the position of the part in the source.
            buffer: the buffer to fill, from 0 to `BUFFERS` - 1; its previous part must no longer be in use.
        """
        assert self._helper is not None
        try:
            send(self._helper.requests, (start, length, buffer))
        except BrokenPipeError as error:
            raise _gone() from error

    @contextmanager
    def _sealed(self, buffer: int) -> Iterator[Sealed]:
        assert self._helper is not None
        # Unbuffered, since an answer could wait unseen in a buffer.
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
            with suppress(BufferError):  # an abandoned thread still reads it
                view.release()
                mapped.close()
                os.ftruncate(self._buffers[buffer], 0)

    def sealed(self, buffer: int) -> AbstractContextManager[Sealed]:
        """The first part requested, encrypted; its buffer is free again when the context ends.

        Raises:
            OSError: the source could not be read.
            StorageError: encryption failed.
        """
        return self._sealed(buffer)


def _gone() -> OpsError:
    return StorageError(
        "the process that encrypts has ended", hint="Look for 'out of memory' in the system's log, then try again."
    )
