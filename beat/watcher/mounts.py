"""Detects file systems without events: the kernel cannot report changes by other machines."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TABLE: Final = Path("/proc/self/mountinfo")
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")
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


@dataclass(frozen=True, kw_only=True)
class Mount:
    """A file system and its mount point."""

    place: str
    kind: str

    @property
    def is_silent(self) -> bool:
        """True if changes may come without events."""
        return self.kind in _SILENT or self.kind == "fuse" or self.kind.startswith("fuse.")


def silent_mounts(root: str, table: str | None = None) -> list[Mount]:
    """The file systems at and below a directory that may change without events.

    Arguments:
        root: the real path of the directory.
        table: the kernel's list of mounts; read by default.
    """
    try:
        mounts = parse_mounts(_TABLE.read_text("utf-8", "surrogateescape") if table is None else table)
    except OSError:
        return []
    above = [mount for mount in mounts if _is_within(root, mount.place)]
    below = [mount for mount in mounts if mount.place != root and _is_within(mount.place, root)]
    deepest = max(above, key=lambda mount: len(mount.place), default=None)  # the last one counts
    own = [mount for mount in above if deepest and mount.place == deepest.place][-1:]
    return [mount for mount in (*own, *below) if mount.is_silent]


def parse_mounts(table: str) -> list[Mount]:
    """The mounts in a table such as `/proc/self/mountinfo`, in order, without invalid lines."""
    found = []
    for line in table.splitlines():
        before, dash, after = line.partition(" - ")
        fields, kinds = before.split(" "), after.split(" ")
        if dash and len(fields) >= 5:
            found.append(Mount(place=_ESCAPE.sub(lambda code: chr(int(code[1], 8)), fields[4]), kind=kinds[0]))
    return found


def _is_within(path: str, place: str) -> bool:
    return os.path.commonpath([path, place]) == place
