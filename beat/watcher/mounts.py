"""Detects file systems without events: the kernel cannot report changes by other machines."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from portal.ops.filesystem.mounts import Mount, read_mounts

if TYPE_CHECKING:
    from collections.abc import Sequence

_SILENT: Final = frozenset(
    [
        "9p",
        "afs",
        "ceph",
        "cifs",
        "fakeowner",
        "gpfs",
        "lustre",
        "nfs",
        "nfs4",
        "ocfs2",
        "prl_fs",
        "smb2",
        "smb3",
        "smbfs",
        "vboxsf",
        "virtiofs",
    ]
)
"""File systems to which other machines, or a virtual machine's host, write without this kernel's knowledge."""


def silent_mounts(root: str, mounts: Sequence[Mount] | None = None) -> list[Mount]:
    """The file systems at and below a directory that may change without events.

    Arguments:
        root: the real path of the directory.
        mounts: all mounts; read by default.
    """
    mounts = read_mounts() if mounts is None else mounts
    above = [mount for mount in mounts if _is_within(root, mount.place)]
    below = [mount for mount in mounts if mount.place != root and _is_within(mount.place, root)]
    deepest = max(above, key=lambda mount: len(mount.place), default=None)  # the last one counts
    own = [mount for mount in above if deepest and mount.place == deepest.place][-1:]
    return [mount for mount in (*own, *below) if _is_silent(mount)]


def _is_silent(mount: Mount) -> bool:
    return mount.kind in _SILENT or mount.kind == "fuse" or mount.kind.startswith("fuse.")


def _is_within(path: str, place: str) -> bool:
    return os.path.commonpath([path, place]) == place
