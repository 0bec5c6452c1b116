"""Extended attributes that belong to a file's owner: `user.*`, and POSIX access control lists.

Others belong to the machine (security labels, `trusted.*`) and are left alone; a backup counts them. Values are kept in
base64, as the index of an archive and the journal of a restore write them.
"""

from __future__ import annotations

import os
from base64 import b64decode, b64encode
from contextlib import suppress
from hashlib import sha256
from struct import Struct
from typing import Final

Xattrs = tuple[tuple[str, str], ...]
"""Names, and values in base64, sorted by name."""

MOST_BYTES: Final = 1 << 16
MOST_NAMES: Final = 1000
"""A file with more than that has them left out of an archive, with a warning."""

LABELS: Final = frozenset(
    {
        "security.SMACK64",
        "security.evm",
        "security.ima",
        "security.selinux",
        "system.nfs4_acl",
        "system.nfs4_dacl",
        "system.nfs4_sacl",
    }
)
"""Attributes that a machine or file server gives to every file, by rules of its own; an access list of NFSv4 repeats
the mode where nobody has set another."""

ACCESS_LIST: Final = "system.posix_acl_access"
_DEFAULT_LIST: Final = "system.posix_acl_default"
_USER: Final = "user."
_ENTRY: Final = Struct("<HHI")
_LIST_HEAD: Final = 4
_GROUP_OWNER: Final = 0x04
_MASK: Final = 0x10
_EVERYTHING: Final = 0o7


class TooManyXattrsError(Exception):
    """A file has more of them than an archive takes."""


def is_kept(name: str) -> bool:
    """True if an attribute belongs to the file's owner."""
    return name.startswith(_USER) or name in (ACCESS_LIST, _DEFAULT_LIST)


def read_xattrs(descriptor: int, others: list[str] | None = None) -> Xattrs:
    """The extended attributes of an open file or directory; none if the file system does not support them.

    Arguments:
        others: receives the names of attributes that are left alone.

    Raises:
        TooManyXattrsError: there are more than an archive takes.
    """
    try:
        names = os.listxattr(descriptor)
    except OSError:
        return ()
    if not names:
        return ()
    if others is not None:
        others += (_portable(name) for name in names if not is_kept(name))
    found, size = [], 0
    for name in sorted(filter(is_kept, names)):
        with suppress(OSError):  # removed meanwhile
            value = os.getxattr(descriptor, name)
            size += len(name) + len(value)
            found.append((_portable(name), b64encode(value).decode("ascii")))
    if size > MOST_BYTES or len(found) > MOST_NAMES:
        raise TooManyXattrsError
    return tuple(found)


def write_xattrs(descriptor: int, xattrs: Xattrs, *, exactly: bool) -> bool:
    """Set extended attributes, as far as file system and user allow; whether the access list is not among these.

    Arguments:
        exactly: remove those that are not listed.
    """
    if exactly:
        wanted = {name for name, _ in xattrs}
        with suppress(OSError):
            for name in os.listxattr(descriptor):
                if is_kept(name) and _portable(name) not in wanted:
                    os.removexattr(descriptor, name)
    lost_list = False
    for name, value in xattrs:
        try:
            os.setxattr(descriptor, _native(name), b64decode(value))
        except OSError:
            lost_list = lost_list or name == ACCESS_LIST
    return lost_list


def drop_default_list(path: str) -> None:
    """Let what is made in a directory inherit no access list from it."""
    with suppress(OSError):
        os.removexattr(path, _DEFAULT_LIST)


def mode_without_list(mode: int, xattrs: Xattrs) -> int:
    """The mode of a file whose access list could not be set: the group's bits are the group's, not the list's mask."""
    data = next((b64decode(value) for name, value in xattrs if name == ACCESS_LIST), b"")
    entries = data[_LIST_HEAD:]
    group = mask = _EVERYTHING
    for at in range(0, len(entries) - len(entries) % _ENTRY.size, _ENTRY.size):
        tag, permissions, _ = _ENTRY.unpack_from(entries, at)
        if tag == _GROUP_OWNER:
            group = permissions & _EVERYTHING
        elif tag == _MASK:
            mask = permissions & _EVERYTHING
    return mode & ~0o070 | (group & mask) << 3 & mode


def digest_of(xattrs: Xattrs) -> bytes:
    """A digest by which attributes are compared; empty where there are none."""
    return sha256(repr(xattrs).encode("ascii", "backslashreplace")).digest()[:16] if xattrs else b""


def _portable(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "surrogateescape")


def _native(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")
