"""Files and directories that nobody may change, not even root: immutable, or append-only (`chattr +i`, `chattr +a`)."""

from __future__ import annotations

import fcntl
import sys
from typing import Final

_GET_FLAGS: Final = 0x80086601 if sys.maxsize > 2**32 else 0x80046601
"""FS_IOC_GETFLAGS; a file system or a machine that does not know it refuses."""
_FIXED: Final = 0x10 | 0x20
"""FS_IMMUTABLE_FL and FS_APPEND_FL."""
_WORD_BYTES: Final = 4


def is_fixed(descriptor: int) -> bool:
    """True if an open file or directory may not be replaced, moved or removed, nor anything in it."""
    try:
        flags = fcntl.ioctl(descriptor, _GET_FLAGS, bytes(8))
    except OSError:
        return False
    return bool(int.from_bytes(flags[:_WORD_BYTES], sys.byteorder) & _FIXED)
