"""The error for a file to be backed up that cannot be read."""

from __future__ import annotations

import errno
from typing import Final

from portal.ops.errors import SourceError
from portal.ops.units import system_reason

_DENIED: Final = frozenset({errno.EACCES, errno.EPERM})
_DAMAGED: Final = frozenset({errno.EIO, errno.ENODATA, errno.EUCLEAN, errno.EBADMSG, errno.EREMOTEIO, errno.ENXIO})


def unreadable(path: str, error: OSError) -> SourceError:
    """The error for an existing file that cannot be read.

    Arguments:
        path: the file.
        error: the error of the operating system.
    """
    return SourceError(f"cannot read {path}: {system_reason(error)}", hint=_hint(error.errno))


def _hint(number: int | None) -> str:
    if number in _DENIED:
        return (
            "Run the backup as the portal's user or as root, or give this user the right to read the file; "
            "then start it again."
        )
    if number in _DAMAGED:
        return (
            "The disk that holds this file is failing, not the one of the repository: 'dmesg' names the device. "
            "Restore the file from an older archive, or move it away; then start the backup again."
        )
    return "Look at the disk or the mount that holds this file, not at the repository; then start the backup again."
