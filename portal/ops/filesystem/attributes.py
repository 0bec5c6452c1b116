"""What a file or directory has beside its content."""

from __future__ import annotations

import os
import stat
from typing import Final, NamedTuple

IS_ROOT: Final = os.geteuid() == 0
SPECIAL_BITS: Final = stat.S_ISUID | stat.S_ISGID


class Attributes(NamedTuple):
    """What a file or directory has beside its content: permission bits, owner, and time in nanoseconds since 1970."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> Attributes:
        """The attributes that a `stat` tells."""
        return cls(stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, found.st_mtime_ns)

    def give_to(self, descriptor: int, born: Attributes | None = None) -> None:
        """Set them on an open file or directory; the owner where that is allowed.

        Arguments:
            born: what it was made with: of that nothing has to be set that is right already.
        """
        if IS_ROOT and not (born and (born.uid, born.gid) == (self.uid, self.gid)):
            os.fchown(descriptor, self.uid, self.gid)
        if not (born and born.mode == self.mode):
            os.fchmod(descriptor, self.mode)
        os.utime(descriptor, ns=(self.mtime_ns, self.mtime_ns))
