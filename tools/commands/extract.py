"""`backup.sh extract`: extracts one file from an archive by its index."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portal.ops.chains.extract import find_in_archive, types_holding, write_file
from tools.jobs import backup_job, known
from tools.terminal.output import print_result, say
from tools.terminal.run import watched_settings

if TYPE_CHECKING:
    import argparse

    from portal.ops.archive.index import Member
    from portal.ops.archive.protocol import IndexedArchive


def add_arguments(parser: argparse.ArgumentParser, _name: str) -> None:
    """Define the command's arguments."""
    parser.add_argument(
        "archive", help="a path, an id or the start of one, 'latest' (of those with such files), or 'offsite:ID'"
    )
    parser.add_argument("member", help="the file's path in the archive, such as media/tenant-a/scan.sarif")
    parser.add_argument("--output", metavar="FILE", help="where to put it (default: its name, in this directory)")


def run(arguments: argparse.Namespace) -> int:
    """Extract one file."""
    if arguments.archive.startswith("offsite:"):
        found = _extract_offsite(arguments.archive, arguments.member, arguments.output)
        say(f"extracted: {found['path']}")
        print_result(found)
        return 0
    reader, member = find_in_archive(_archive_path(arguments.archive, arguments.member), arguments.member)
    found = _extracted(reader, member, arguments.member, arguments.output)
    say(f"extracted: {found['path']}")
    print_result(found)
    return 0


def _archive_path(archive: str, member: str) -> Path:
    """The archive's file; settings are only loaded if it is not given as a path, which keeps the command fast."""
    if archive != "latest" and os.path.isfile(archive):
        return Path(archive)
    kinds = types_holding(member)
    return backup_job(*watched_settings()).repository.find(archive, latest_of=kinds).path


def _extract_offsite(name: str, path: str, output: str | None) -> dict[str, Any]:
    """Extract a file from an off-site copy, reading only the index and the file's frames."""
    from portal.ops.offsite.config import OffsiteConfig
    from portal.ops.offsite.fetch import FetchJob

    settings, show = watched_settings()
    job = FetchJob(OffsiteConfig.from_settings(settings), progress=show, **known(settings))
    with job.file(name, path) as (reader, member, received):
        found = _extracted(reader, member, path, output)
        return {**found, "received_bytes": received()}


def _extracted(reader: IndexedArchive, member: Member, path: str, output: str | None) -> dict[str, Any]:
    target = output or os.path.basename(path)
    write_file(reader.extract(member), member, target)
    return {
        "success": True,
        "path": os.path.abspath(target),
        "member": path,
        "size_bytes": member.size,
        "checksum": member.sha256,
    }
