"""A helper process that reads small files and returns each list of them as one finished frame.

Many small files cost more Python than compression, and one process runs Python on one core only. So the archive's
process sends lists of paths to several helpers over pipes and gets frames back: read, hashed, framed, compressed. The
directory to which the paths are relative is passed as a descriptor over a socket, since its path may lead to another
directory by then.
"""

from __future__ import annotations

import _socket
import errno
import mmap
import os
import signal
import stat
import sys
from hashlib import sha256
from struct import Struct
from typing import TYPE_CHECKING, BinaryIO, Final

from portal.ops.archive import frame, tar
from portal.ops.archive.index import Member, MemberType, encode_member, tar_header
from portal.ops.archive.links import leads_out
from portal.ops.filesystem.tree import GONE, Tree
from portal.ops.filesystem.xattrs import TooManyXattrsError, read_xattrs
from portal.ops.runtime.pipe_messages import receive, send

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from portal.ops.filesystem.xattrs import Xattrs

LARGE_BYTES: Final = frame.INPUT_BYTES
"""Files of this size or more are not packed together, but streamed into frames of their own."""

HEADER_ROOM: Final = 1 << 18
"""More than any tar header takes: the longest path, link target and extended attributes come to 200 KiB."""

ITEM_BYTES: Final = 2 * tar.BLOCK
"""The least that an item counts for when the size of a frame is estimated, in bytes."""

ATTEMPTS: Final = 3
"""How many times to read a file that changes while it is read."""

_FILES_BYTES: Final = 4 * frame.INPUT_BYTES
_FULL_BYTES: Final = _FILES_BYTES - LARGE_BYTES - HEADER_ROOM - tar.BLOCK
_DESCRIPTOR: Final = Struct("i")
_TREE: Final = Struct("<Q")

_FORMS: Final = {"directory": stat.S_ISDIR, "symlink": stat.S_ISLNK, "hardlink": stat.S_ISREG}

Item = tuple[str, str, str]
"""An item to pack: path, type and, for a file with several names, the member with the content (possibly itself)."""

Foreign = dict[str, tuple[int, str]]
"""For each extended attribute that is not kept: how many members have it, and the first of them by path."""


class Pack:
    """A finished frame, and facts about its members.

    `lines` are the members' index lines, still without frame numbers. `vanished` and `special` are members that were
    left out; `changed` are members kept although they changed while being read. `outside` are symlinks that lead out of
    the component, with their targets; `stripped` are files with more extended attributes than can be kept; `foreign`
    counts attributes that are not kept; `large` are files that have grown too large to be packed; `rest` are items that
    did not fit into the frame. `failure` is the path and error number of a file that could not be read.

    This is no dataclass: importing `dataclasses` takes a helper as long as its first frames.
    """

    def __init__(self) -> None:
        self.frame = b""
        self.tar_length = 0
        self.content_bytes = 0
        self.files = 0
        self.lines: list[str] = []
        self.vanished: list[str] = []
        self.changed: list[str] = []
        self.special: list[str] = []
        self.outside: list[tuple[str, str]] = []
        self.stripped: list[str] = []
        self.foreign: Foreign = {}
        self.rest: list[Item] = []
        self.large: list[Item] = []
        self.failure: tuple[str, int] | None = None


class Packer:
    """Packs items into one buffer, which is reused for every frame.

    Growing files and extended attributes may fill it before the last item; the remaining items go into another frame.
    """

    def __init__(self) -> None:
        self._view = memoryview(mmap.mmap(-1, _FILES_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        self._end = 0

    def pack(self, backup_id: str, tree: Tree, items: Sequence[Item], effort: frame.Effort = frame.Effort.FAST) -> Pack:
        """Read items of a tree into one frame, compressed with the given effort."""
        done = Pack()
        self._end = 0
        tree.forget()  # the name may belong to another directory than the open one by now
        for place, item in enumerate(items):
            if self._end > _FULL_BYTES:
                done.rest = list(items[place:])
                break
            try:
                self._add(done, backup_id, tree, item)
            except OSError as error:
                if error.errno == errno.ENXIO:  # a socket now has the file's name
                    done.special.append(item[0])
                elif error.errno in GONE:
                    done.vanished.append(item[0])
                else:
                    done = Pack()
                    done.failure = item[0], error.errno or 0
                    return done
        if done.lines:
            done.frame = frame.compress(self._view[: self._end], effort)
            done.tar_length = self._end
        return done

    def _add(self, done: Pack, backup_id: str, tree: Tree, item: Item) -> None:
        path, kind, link = item
        if kind == "file":
            self._add_file(done, backup_id, tree, item)
        else:
            found = tree.look(source_of(path))
            if found is None or not _FORMS[kind](found.st_mode):  # something else now has its name
                done.vanished.append(path)
                return
            if kind == "symlink":
                link = tree.link(source_of(path))
                if leads_out(path, link, path.partition("/")[0]):
                    done.outside.append((path, link))
            member = member_of(path, MemberType(kind), found, link=link, at=self._end)
            if kind == "directory":
                foreign: list[str] = []
                xattrs = xattrs_of(path, tree.directory(source_of(path)), done.stripped, foreign)
                count_foreign(done.foreign, ((name, (1, path)) for name in foreign))
                member = member._replace(xattrs=xattrs)
            self._put_header(tar_header(member, backup_id))
            done.lines.append(encode_member(member))

    def _add_file(self, done: Pack, backup_id: str, tree: Tree, item: Item) -> None:
        path = item[0]
        stripped: list[str] = []
        for attempt in range(1, ATTEMPTS + 1):
            foreign: list[str] = []
            descriptor = tree.open_file(source_of(path))
            try:
                before = os.fstat(descriptor)
                if not stat.S_ISREG(before.st_mode):
                    done.special.append(path)
                    return
                if before.st_size >= LARGE_BYTES:
                    done.large.append(item)
                    return
                member = member_of(path, MemberType.FILE, before, at=self._end)
                if xattrs := xattrs_of(path, descriptor, stripped, foreign):
                    member = member._replace(xattrs=xattrs)
                header = tar_header(member, backup_id)
                start = self._end + len(header)
                size = self._read(descriptor, start, before.st_size)
                if size == before.st_size and same_content(before, os.fstat(descriptor)):
                    break
            finally:
                os.close(descriptor)
            if attempt == ATTEMPTS:
                done.changed.append(path)
                member = member._replace(size=size)
                header = tar_header(member, backup_id)
        done.stripped += stripped[:1]
        if foreign:
            count_foreign(done.foreign, ((name, (1, path)) for name in foreign))
        self._put_header(header)
        self._end = start + member.size
        self._put_zeros(tar.padding(member.size))
        done.files += 1
        done.content_bytes += member.size
        digest = sha256(self._view[start : start + member.size]).hexdigest()
        done.lines.append(encode_member(member, digest))

    def _read(self, descriptor: int, start: int, size: int) -> int:
        """Read up to `size` bytes into the buffer at `start`; return how many there were."""
        count = 0
        while count < size and (more := os.readv(descriptor, [self._view[start + count : start + size]])):
            count += more
        return count

    def _put_header(self, header: bytes) -> None:
        self._view[self._end : self._end + len(header)] = header
        self._end += len(header)

    def _put_zeros(self, count: int) -> None:
        self._view[self._end : self._end + count] = bytes(count)
        self._end += count


def same_content(before: os.stat_result, after: os.stat_result) -> bool:
    """True if two `stat` results show that a file has not changed between them."""
    return (
        before.st_mtime_ns == after.st_mtime_ns
        and before.st_ctime_ns == after.st_ctime_ns
        and before.st_size == after.st_size
    )


def xattrs_of(path: str, descriptor: int, stripped: list[str], foreign: list[str]) -> Xattrs:
    """The extended attributes of an open file or directory; if they are too many, none, and its path is noted.

    Arguments:
        foreign: receives the names of attributes that an archive leaves out.
    """
    try:
        return read_xattrs(descriptor, foreign)
    except TooManyXattrsError:
        stripped.append(path)
        return ()


def count_foreign(counted: Foreign, more: Iterable[tuple[str, tuple[int, str]]]) -> None:
    """Add up how many members have attributes that are left out."""
    for name, (count, path) in more:
        before, first = counted.get(name, (0, path))
        counted[name] = before + count, min(first, path)


def source_of(path: str) -> str:
    """The path of a member in the source tree: without the component's name."""
    return path.partition("/")[2]


def member_of(path: str, kind: MemberType, found: os.stat_result, *, link: str = "", at: int = 0) -> Member:
    """A member made from a `stat` result; the digest of a file is still missing."""
    return Member(
        path,
        kind,
        found.st_size if kind is MemberType.FILE else 0,
        stat.S_IMODE(found.st_mode),
        found.st_uid,
        found.st_gid,
        found.st_mtime_ns,
        found.st_ctime_ns,
        found.st_ino,
        link,
        at=at,
    )


def send_pack(stream: BinaryIO, done: Pack) -> None:
    """Send a pack: a message with everything but the frame, then the frame."""
    data, done.frame = done.frame, b""
    send(stream, (len(data), vars(done)))
    stream.write(data)
    stream.flush()


def receive_pack(stream: BinaryIO) -> Pack:
    """Receive what `send_pack` sent; raises EOFError if the stream ends early."""
    length, facts = receive(stream)
    done = Pack()
    vars(done).update(facts)
    done.frame = stream.read(length)
    if len(done.frame) < length:
        raise EOFError
    return done


def hand_over(control: _socket.socket, number: int, descriptor: int) -> None:
    """Send a helper the descriptor of a tree's directory, and the number by which requests name it."""
    rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, _DESCRIPTOR.pack(descriptor))]
    control.sendmsg([_TREE.pack(number)], rights)


def _take_over(control: _socket.socket) -> tuple[int, Tree]:
    """Receive the next tree and its number."""
    data, rights, _, _ = control.recvmsg(_TREE.size, _socket.CMSG_SPACE(_DESCRIPTOR.size), _socket.MSG_CMSG_CLOEXEC)
    (number,), (descriptor,) = _TREE.unpack(data), _DESCRIPTOR.unpack(rights[0][2])
    return number, Tree("", descriptor)


def main() -> None:
    """Answer requests until standard input ends. The argument is the descriptor of the socket for trees."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # signals are left to the process that started this one
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    control = _socket.socket(fileno=int(sys.argv[1]))
    packer = Packer()
    trees: dict[int, Tree] = {}
    while True:
        try:
            backup_id, number, items, effort = receive(requests)
        except EOFError:
            return
        while number not in trees:
            trees.update([_take_over(control)])
        send_pack(answers, packer.pack(backup_id, trees[number], items, frame.Effort(effort)))
