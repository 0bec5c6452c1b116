"""`backup.sh extract`: take one file out of an archive, by its index."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from portal.ops.archive.index import MemberType
from portal.ops.archive.open import check_readable
from portal.ops.archive.reader import is_indexed
from portal.ops.archive.sparse import is_hole
from portal.ops.chains.reader import open_tree
from portal.ops.errors import (
    ArchiveAbsentError,
    ConfigurationError,
    NotIntactError,
    UnsupportedError,
)
from tools.jobs import backup_job, person
from tools.terminal.output import print_result, say
from tools.terminal.run import watched_settings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from portal.ops.archive.index import Member
    from portal.ops.archive.protocol import IndexedArchive


def add_arguments(parser: argparse.ArgumentParser, _name: str) -> None:
    """Add what the command takes."""
    parser.add_argument(
        "archive", help="a path, an id or the start of one, 'latest' (of those with such files), or 'offsite:ID'"
    )
    parser.add_argument("member", help="the file's path in the archive, such as media/tenant-a/scan.sarif")
    parser.add_argument("--output", metavar="FILE", help="where to put it (default: its name, in this directory)")


def run(arguments: argparse.Namespace) -> int:
    """Take one file out of an archive."""
    if arguments.archive.startswith("offsite:"):
        found = _extract_offsite(arguments.archive, arguments.member, arguments.output)
        say(f"extracted: {found['path']}")
        print_result(found)
        return 0
    found = extract(_archive_path(arguments.archive, arguments.member), arguments.member, arguments.output)
    say(f"extracted: {found['path']}")
    print_result(found)
    return 0


def _archive_path(archive: str, member: str) -> Path:
    """The archive's file; settings are read only if it is not given by its path, which keeps the command quick."""
    if archive != "latest" and os.path.isfile(archive):
        return Path(archive)
    from portal.ops.model import BackupType, Component

    top = member.partition("/")[0]
    own = [BackupType(component.value) for component in Component if component.member == top]
    kinds = [BackupType.FULL, *own] if own else list(BackupType)
    return backup_job(*watched_settings()).repository.find(archive, latest_of=kinds).path


def extract(archive: Path, path: str, output: str | None) -> dict[str, Any]:
    """Write one file of an archive to `output`, completely or not at all; the facts for a program.

    Raises:
        NotIntactError: the file is damaged in the archive; nothing was written.
        OpsError: the archive or the file is not there, or cannot be written.
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
    return _extracted(reader, member, path, output)


def _extract_offsite(name: str, path: str, output: str | None) -> dict[str, Any]:
    """The same from an off-site copy, of which only the index and what holds the file is read."""
    from portal.ops.monitoring.observer import Observers
    from portal.ops.offsite.config import OffsiteConfig
    from portal.ops.offsite.fetch import FetchJob

    settings, show = watched_settings()
    job = FetchJob(OffsiteConfig.from_settings(settings), progress=show, actor=person(), observer=Observers(settings))
    with job.file(name, path) as (reader, member, received):
        found = _extracted(reader, member, path, output)
        return {**found, "received_bytes": received()}


def _extracted(reader: IndexedArchive, member: Member, path: str, output: str | None) -> dict[str, Any]:
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
            f"cannot write {target}: {error.strerror}", hint="Choose another place with --output FILE."
        ) from error
