"""Extracts one file from an archive by its index: checked, and written completely or not at all."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, cast

from portal.ops.archive.index import MemberType
from portal.ops.archive.open import check_readable
from portal.ops.archive.reader import is_indexed
from portal.ops.archive.sparse import is_hole
from portal.ops.chains.reader import open_tree
from portal.ops.errors import ArchiveAbsentError, ConfigurationError, NotIntactError, UnsupportedError
from portal.ops.filesystem.temporary import temporary_name
from portal.ops.model import BackupType, Component
from portal.ops.units import system_reason

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from portal.ops.archive.index import Member
    from portal.ops.archive.protocol import IndexedArchive


def types_holding(path: str) -> list[BackupType]:
    """The types of archives that may contain a path, such as ``media/tenant-a/scan.sarif``."""
    top = path.partition("/")[0]
    own = [BackupType(component.value) for component in Component if component.member == top]
    return [BackupType.FULL, *own] if own else list(BackupType)


def find_in_archive(archive: Path, path: str) -> tuple[IndexedArchive, Member]:
    """Find a file in an archive and its chain; return the reader and the member.

    Arguments:
        path: the file's path in the archive; for a hard link, its target is returned.

    Raises:
        ArchiveAbsentError: there is no such file.
        UnsupportedError: the archive has no index.
        OpsError: the archive cannot be read.
    """
    check_readable(archive)
    if not is_indexed(archive):
        raise UnsupportedError(
            f"{archive.name} has no index at its end, so a single file cannot be extracted",
            hint=f"If tar and gzip made it, use tar: tar xzf {archive} <backup_id>/{path}. Otherwise it is truncated.",
        )
    reader = cast("IndexedArchive", open_tree(archive))
    member = reader.find(path)
    if member is not None and member.type is MemberType.HARDLINK:
        member = reader.find(member.link)
    if member is None or member.type is not MemberType.FILE:
        raise ArchiveAbsentError(
            f"there is no file {path!r} in {archive.name}",
            hint=f"'tar tzf {archive}' lists the files; omit the first directory.",
        )
    return reader, member


def write_file(content: Iterator[memoryview], member: Member, target: str) -> None:
    """Write the content of a member to a file completely or not at all.

    Raises:
        NotIntactError: the content is damaged; nothing was written.
        ConfigurationError: the file cannot be written.
    """
    temporary = os.path.join(os.path.dirname(target), temporary_name(os.path.basename(target)))
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                for piece in content:
                    file.seek(len(piece), os.SEEK_CUR) if is_hole(piece) else file.write(piece)
                file.truncate()
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
            f"cannot write {target}: {system_reason(error)}", hint="Choose another place with --output FILE."
        ) from error
