"""Hashes archives in a thread while they are being staged, so that the disk is read only once."""

from __future__ import annotations

import threading
from hashlib import sha256
from typing import TYPE_CHECKING, Final, Self

from portal.ops.errors import NotIntactError, OpsError
from portal.ops.repository.faults import explain

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_READ_BYTES: Final = 1 << 20


class Checksum:
    """Hashes archives until it is done or the context ends.

    Arguments:
        expected: the expected SHA-256 of each archive; may be empty.
    """

    def __init__(self, expected: Mapping[Path, str]) -> None:
        self._expected = expected
        self._enough = threading.Event()
        self._fault: OpsError | None = None
        self._thread = threading.Thread(target=self._hash, name="checksum", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._thread.join()

    def check(self) -> None:
        """Wait for the result.

        Raises:
            NotIntactError: an archive has a different checksum.
            RepositoryError: an archive cannot be read.
        """
        self._thread.join()
        if self._fault is not None:
            raise self._fault

    def _hash(self) -> None:
        try:
            for path, expected in self._expected.items():
                self._compare(path, expected)
        except OpsError as error:
            self._fault = error

    def _compare(self, path: Path, expected: str) -> None:
        digest, buffer = sha256(), bytearray(_READ_BYTES)
        view = memoryview(buffer)
        try:
            with path.open("rb", buffering=0) as file:
                while not self._enough.is_set() and (count := file.readinto(buffer)):
                    digest.update(view[:count])
        except OSError as error:
            raise explain(error, "cannot read", path) from error
        if not self._enough.is_set() and digest.hexdigest() != expected:
            raise NotIntactError(
                f"checksum mismatch: the SHA-256 of {path.name} is {digest.hexdigest()}, and should be {expected}",
                hint="Copy the archive and its .sha256 file again from where they were made, or take another archive.",
            )
