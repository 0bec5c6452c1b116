"""Takes one file out of an archive, by its index."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

from portal.ops.archive.index import MemberType
from portal.ops.archive.open import check_readable
from portal.ops.archive.reader import is_indexed
from portal.ops.chains.reader import open_tree
from portal.ops.errors import (
    ArchiveAbsentError,
    ConfigurationError,
    NotIntactError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from portal.ops.archive.index import Member
    from portal.ops.archive.protocol import IndexedArchive


def extract(archive: Path, path: str, output: str | None) -> dict[str, Any]:
    """Write one file of an archive to `output`, whole or not at all; what a program wants to know of it.

    Raises:
        NotIntactError: the file is damaged in the archive; nothing was written.
        OpsError: the archive or the file is not there, or cannot be written.
    """
    check_readable(archive)
    if not is_indexed(archive):
        raise UnsupportedError(
            f"{archive.name} has no index at its end, so one file cannot be taken out of it alone",
            hint=f"If tar and gzip made it, use tar: tar xzf {archive} <backup_id>/{path}. If not, it is cut short.",
        )
    reader = cast("IndexedArchive", open_tree(archive))
    member = reader.find(path)
    if member is not None and member.type is MemberType.HARDLINK:
        member = reader.find(member.link)
    if member is None or member.type is not MemberType.FILE:
        raise ArchiveAbsentError(
            f"there is no file {path!r} in {archive.name}",
            hint=f"'tar tzf {archive}' lists what there is; leave the first directory out.",
        )
    target = output or os.path.basename(path)
    _write(reader.extract(member), member, target)
    return {
        "success": True,
        "path": os.path.abspath(target),
        "member": path,
        "size_bytes": member.size,
        "checksum": member.sha256,
    }


def _write(content: Iterator[memoryview], member: Member, target: str) -> None:
    temporary = f"{target}.{os.getpid()}.tmp"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.writelines(content)
                os.fchmod(descriptor, member.mode & 0o777)
            os.utime(temporary, ns=(member.mtime_ns, member.mtime_ns))
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise
    except NotIntactError:
        raise
    except OSError as error:
        raise ConfigurationError(
            f"cannot write {target}: {error.strerror}", hint="Give another place with --output FILE."
        ) from error
