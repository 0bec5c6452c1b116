"""Detects immutable and append-only files and directories (`chattr +i`, `+a`), which not even root can change."""

from __future__ import annotations

import fcntl
import sys
from typing import Final

_GET_FLAGS: Final = 0x80086601 if sys.maxsize > 2**32 else 0x80046601
"""FS_IOC_GETFLAGS; refused if the file system or architecture does not support it."""
_FIXED: Final = 0x10 | 0x20
"""FS_IMMUTABLE_FL and FS_APPEND_FL."""
_WORD_BYTES: Final = 4


def is_fixed(descriptor: int) -> bool:
    """True if an open file or directory, and anything in it, cannot be replaced, moved or removed."""
    try:
        flags = fcntl.ioctl(descriptor, _GET_FLAGS, bytes(8))
    except OSError:
        return False
    return bool(int.from_bytes(flags[:_WORD_BYTES], sys.byteorder) & _FIXED)
