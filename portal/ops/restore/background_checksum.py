"""The checksums of archives, made by a thread of its own while they are being staged: the disk is read once."""

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
    """Hashes archives as long as the context lasts, or until it is done.

    Arguments:
        expected: the SHA-256 that each archive should have; without any there is nothing to do.
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
        """Wait for it.

        Raises:
            NotIntactError: an archive has another checksum.
            RepositoryError: one cannot be read.
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
