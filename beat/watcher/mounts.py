"""Detection of file systems without events: the kernel cannot report changes that other machines make."""

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
"""File systems that other machines, or the host of a virtual one, write to without this kernel's knowledge."""


@dataclass(frozen=True, kw_only=True)
class Mount:
    """A file system, and where it is mounted."""

    place: str
    kind: str

    @property
    def is_silent(self) -> bool:
        """True if changes may come without an event."""
        return self.kind in _SILENT or self.kind == "fuse" or self.kind.startswith("fuse.")


def silent_mounts(root: str, table: str | None = None) -> list[Mount]:
    """The file systems at and below a directory whose changes may come without an event.

    Arguments:
        root: its real path.
        table: what the kernel says of mounts; read from it by default.
    """
    try:
        mounts = parse_mounts(_TABLE.read_text("utf-8", "surrogateescape") if table is None else table)
    except OSError:
        return []
    above = [mount for mount in mounts if _is_within(root, mount.place)]
    below = [mount for mount in mounts if mount.place != root and _is_within(mount.place, root)]
    deepest = max(above, key=lambda mount: len(mount.place), default=None)  # of several at one place the last counts
    own = [mount for mount in above if deepest and mount.place == deepest.place][-1:]
    return [mount for mount in (*own, *below) if mount.is_silent]


def parse_mounts(table: str) -> list[Mount]:
    """The mounts of a table such as `/proc/self/mountinfo`, in its order; lines that are invalid are left out."""
    found = []
    for line in table.splitlines():
        before, dash, after = line.partition(" - ")
        fields, kinds = before.split(" "), after.split(" ")
        if dash and len(fields) >= 5:
            found.append(Mount(place=_ESCAPE.sub(lambda code: chr(int(code[1], 8)), fields[4]), kind=kinds[0]))
    return found


def _is_within(path: str, place: str) -> bool:
    return os.path.commonpath([path, place]) == place
