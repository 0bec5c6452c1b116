"""The attributes of a file or directory."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from portal.ops.filesystem.tree import Tree
from portal.ops.filesystem.xattrs import TooManyXattrsError, Xattrs, mode_without_list, read_xattrs, write_xattrs

if TYPE_CHECKING:
    from collections.abc import Sequence

IS_ROOT: Final = os.geteuid() == 0
SPECIAL_BITS: Final = stat.S_ISUID | stat.S_ISGID


class Attributes(NamedTuple):
    """Permission bits, owner, time in nanoseconds since 1970, and extended attributes.

    If extended attributes are None, those of the file are not changed.
    """

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: Xattrs | None = None

    @classmethod
    def of(cls, found: os.stat_result, xattrs: Xattrs | None = None) -> Attributes:
        """The attributes in a `stat` result."""
        return cls(stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, found.st_mtime_ns, xattrs)

    @classmethod
    def at(cls, path: str) -> Attributes:
        """The attributes of a directory."""
        with Tree(path) as tree:
            try:
                return cls.of(os.fstat(tree.fileno()), read_xattrs(tree.fileno()))
            except TooManyXattrsError:
                return cls.of(os.fstat(tree.fileno()))

    @classmethod
    def decode(cls, values: Sequence[Any]) -> Attributes:
        """The attributes from a JSON list; earlier releases wrote no extended ones."""
        mode, uid, gid, mtime_ns, *rest = values
        xattrs = tuple((name, value) for name, value in rest[0]) if rest and rest[0] is not None else None
        return cls(mode, uid, gid, mtime_ns, xattrs)

    def give_to(self, descriptor: int, born: Attributes | None = None) -> None:
        """Set them on an open file or directory; owner and extended attributes if permitted.

        Arguments:
            born: the attributes that it was created with, which need not be set again.
        """
        if IS_ROOT and not (born and (born.uid, born.gid) == (self.uid, self.gid)):
            os.fchown(descriptor, self.uid, self.gid)
        if not (born and born.mode == self.mode):
            os.fchmod(descriptor, self.mode)
        if self.xattrs is not None and (self.xattrs or born is None):
            lost_list = write_xattrs(descriptor, self.xattrs, exactly=born is None)
            if lost_list:
                os.fchmod(descriptor, mode_without_list(self.mode, self.xattrs))
        os.utime(descriptor, ns=(self.mtime_ns, self.mtime_ns))
