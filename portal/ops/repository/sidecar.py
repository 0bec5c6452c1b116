"""Sidecars: the digest next to an archive, in the format of `sha256sum`."""

from __future__ import annotations

import os
import re
from hashlib import sha256
from pathlib import Path
from typing import Final

from portal.ops.errors import NotIntactError
from portal.ops.model import SIDECAR_SUFFIX
from portal.ops.repository.faults import explain

_SIDECAR: Final = re.compile(r"([0-9a-f]{64})[ \t]+\*?([^\n]+)\n?")

_READ_BYTES: Final = 1 << 20
_MOST_BYTES: Final = 1 << 16
"""More than a digest and the longest name take."""


def sidecar_of(archive: Path) -> Path:
    """The sidecar of an archive."""
    return archive.with_name(archive.name + SIDECAR_SUFFIX)


def read_sidecar(archive: Path) -> str | None:
    """The SHA-256 in an archive's sidecar, in hexadecimal; None without a sidecar.

    Raises:
        NotIntactError: the sidecar is invalid, or names another file.
    """
    try:
        with open(sidecar_of(archive), "rb", opener=_without_waiting) as file:
            text = (file.read(_MOST_BYTES) or b"").decode("utf-8", "replace").replace("\r\n", "\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise explain(error, "cannot read", sidecar_of(archive)) from error
    found = _SIDECAR.fullmatch(text)
    if not found:
        raise NotIntactError(
            f"the checksum file {sidecar_of(archive).name} is damaged",
            hint="Transfer the archive and its .sha256 file again from where they were made.",
        )
    if (named := Path(found[2]).name) != archive.name:
        raise NotIntactError(
            f"the checksum file {sidecar_of(archive).name} is for another name: {named}",
            hint=f"If the archive was renamed, give both files that name again: {named} and {named}{SIDECAR_SUFFIX}. "
            "Otherwise transfer them again from where they were made.",
        )
    return found[1]


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; a FIFO of that name is empty instead of being waited for."""
    return os.open(path, flags | os.O_NONBLOCK)


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal.

    Raises:
        RepositoryError: it cannot be read.
    """
    digest, buffer = sha256(), bytearray(_READ_BYTES)
    view = memoryview(buffer)
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(view[:count])
    except OSError as error:
        raise explain(error, "cannot read", path) from error
    return digest.hexdigest()
