"""Translates errors of the operating system in a restored tree into errors of this engine."""

from __future__ import annotations

import errno
import os
from typing import Final

from portal.ops.errors import AccessDeniedError, DiskFullError, NotIntactError, OpsError, RestoreError
from portal.ops.filesystem.attributes import IS_ROOT
from portal.ops.hints import Advice
from portal.ops.limits import limit_hint
from portal.ops.units import system_reason


def explained(error: OSError, doing: str, top: str) -> OpsError:
    """The engine's error for an operating system error."""
    reason = system_reason(error)
    path = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    if error.errno in _FULL:
        return DiskFullError(
            f"no space left in {top} {doing}",
            hint="Make room there, then start the restore again; the unfinished one is removed.",
        )
    if error.errno == errno.EPERM and IS_ROOT:
        return AccessDeniedError(
            f"{path or top} may not be changed {doing}, not even by root",
            hint="It, or the directory that it is in, is immutable or append-only: 'lsattr -d' shows that. Remove the "
            "attribute with 'chattr -i' or 'chattr -a', or restore to another directory with --media-dir.",
        )
    if error.errno in _DENIED:
        return AccessDeniedError(
            f"{path or top} may not be changed {doing}: {reason}",
            hint="Run the restore as the portal's user or as root, or give this user the right to write there.",
        )
    if error.errno in _NAMES:
        return NotIntactError(
            f"the archive has a name that the file system of {top} does not take: {reason}",
            hint=f"Restore to another file system, or take another archive: {Advice.LIST_ARCHIVES} shows them.",
        )
    name = f" ({path})" if path else ""
    return RestoreError(
        f"the operating system refused {doing} in {top}: {reason}{name}",
        hint=limit_hint(error)
        or "Look at the disk and its mounts: everything below the directory must be on one file system.",
    )


_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_DENIED: Final = frozenset({errno.EPERM, errno.EACCES, errno.EROFS})
_NAMES: Final = frozenset({errno.EINVAL, errno.ENAMETOOLONG, errno.EILSEQ})
