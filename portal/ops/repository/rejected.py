"""The counts of rejected messages, by reason: `.rejected.json`, which workers write and the metrics read."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from typing import TYPE_CHECKING, Any, Final

from portal.ops.repository.durable import give_to_owner
from portal.ops.repository.locks import holder, lock_within

if TYPE_CHECKING:
    from io import BufferedIOBase
    from pathlib import Path

NAME: Final = ".rejected.json"

_MOST_BYTES: Final = 65_536
_LOCK_SECONDS: Final = 5.0


def rejected_counts(repository: Path) -> dict[str, int]:
    """The number of rejected messages, by reason; empty if there are none, or the file cannot be read.

    Arguments:
        repository: the repository's directory.
    """
    try:
        with (repository / NAME).open("rb") as file:
            _lock(file, fcntl.LOCK_SH)
            return _parse(file.read(_MOST_BYTES))
    except OSError:
        return {}


def count_rejected(repository: Path, reason: str, number: int = 1) -> None:
    """Count more rejected messages.

    Arguments:
        repository: the repository's directory.
        reason: why they were rejected.
        number: how many they are.

    Raises:
        OSError: the file cannot be written, or stayed locked.
    """
    path = repository / NAME
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "r+b") as file:
        _lock(file, fcntl.LOCK_EX)
        give_to_owner(file.fileno(), path.parent)
        counts = _parse(file.read(_MOST_BYTES))
        counts[reason] = counts.get(reason, 0) + number
        data = json.dumps(counts).encode() + b"\n"
        os.pwrite(file.fileno(), data, 0)  # over the old counts, which are shorter: a kill leaves one or the other
        os.ftruncate(file.fileno(), len(data))


def _lock(file: BufferedIOBase, kind: int) -> None:
    if not lock_within(file.fileno(), kind, _LOCK_SECONDS):
        raise OSError(errno.EBUSY, f"locked by {holder(file.fileno())}")


def _parse(text: bytes) -> dict[str, int]:
    try:
        found: dict[str, Any] = json.loads(text)
        return {str(reason): int(count) for reason, count in found.items()}
    except (ArithmeticError, AttributeError, RecursionError, TypeError, ValueError):
        return {}
