"""The checksum of an archive, made by a thread of its own while the archive is being staged: it is read once."""

from __future__ import annotations

import threading
from hashlib import sha256
from typing import TYPE_CHECKING, Final, Self

from portal.ops.errors import NotIntactError, OpsError, RepositoryError

if TYPE_CHECKING:
    from pathlib import Path

_READ_BYTES: Final = 1 << 20


class Checksum:
    """Hashes an archive as long as the context lasts, or until it is done.

    Arguments:
        path: the archive.
        expected: its SHA-256 as the sidecar says it; without one there is nothing to do.
    """

    def __init__(self, path: Path, expected: str | None) -> None:
        self._path = path
        self._expected = expected
        self._enough = threading.Event()
        self._found: str | OpsError = ""
        self._thread = threading.Thread(target=self._hash, name="checksum", daemon=True)

    def __enter__(self) -> Self:
        if self._expected is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        if self._expected is not None:
            self._thread.join()

    def check(self) -> None:
        """Wait for it.

        Raises:
            NotIntactError: the archive has another checksum.
            RepositoryError: it cannot be read.
        """
        if self._expected is None:
            return
        self._thread.join()
        if isinstance(self._found, OpsError):
            raise self._found
        if self._found != self._expected:
            raise NotIntactError(
                f"the SHA-256 of {self._path.name} is {self._found}, and should be {self._expected}",
                hint="Copy the archive and its .sha256 file again from where they were made, or take another archive.",
            )

    def _hash(self) -> None:
        digest, buffer = sha256(), bytearray(_READ_BYTES)
        view = memoryview(buffer)
        try:
            with self._path.open("rb", buffering=0) as file:
                while not self._enough.is_set() and (count := file.readinto(buffer)):
                    digest.update(view[:count])
        except OSError as error:
            self._found = RepositoryError(
                f"cannot read {self._path}: {error.strerror}", hint="Look at the disk that it is on."
            )
        else:
            self._found = digest.hexdigest()
