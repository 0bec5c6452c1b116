"""`backup.sh versions`: shows the versions of a file, and which archives have them."""

from __future__ import annotations

import os
import shlex
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from portal.ops.errors import ArchiveAbsentError
from portal.ops.hints import Advice
from portal.ops.model import SUFFIX, BackupId, BackupType, Component
from portal.ops.units import counted, human_bytes
from tools.jobs import repository
from tools.terminal import output
from tools.terminal.output import print_result, say, warn
from tools.terminal.run import watched_settings
from tools.terminal.table import Column, Table

if TYPE_CHECKING:
    import argparse

    from portal.ops.chains.versions import FileVersions, Version, Wanted
    from portal.ops.repository.repository import Repository
    from portal.ops.settings.load import Settings

_COLUMNS: Final = (
    Column(title="MODIFIED (UTC)", width=16),
    Column(title="SIZE", width=8, is_number=True),
    Column(title="SHA-256", width=8, least=4),
    Column(title="NEWEST ARCHIVE", width=33),
    Column(title="COUNT", width=5),
)
_DIGITS: Final = 8
_TYPES: Final = {
    Component.MEDIA.member: frozenset({BackupType.FULL, BackupType.MEDIA}),
    Component.AUDIT_LOGS.member: frozenset({BackupType.FULL, BackupType.AUDIT_LOGS}),
}


def add_arguments(parser: argparse.ArgumentParser, _name: str) -> None:
    """Define the command's arguments."""
    parser.add_argument(
        "path",
        help="the file: its path in archives (media/tenant-a/scan.sarif), below the uploads or in the file system; "
        "a directory, a name alone, or a pattern such as 'tenant-a/*.sarif'",
    )


def run(arguments: argparse.Namespace) -> int:
    """Search all archives of the repository for a file."""
    from portal.ops.chains.versions import find_versions
    from portal.ops.repository.catalogue import Catalogue

    settings, _ = watched_settings()
    place = repository(settings)
    wanted = wanted_path(arguments.path, settings)
    found = find_versions(Catalogue(place).entries(), place.path, wanted)
    for name, reason in found.unread.items():
        warn(f"{name} was not searched: {reason}")
    elsewhere = only_offsite(settings, place, wanted)
    if not found.files:
        raise ArchiveAbsentError(
            f"none of {counted(found.searched, 'archive')} in {place.path} has a file {wanted.path}",
            hint=f"Try a pattern, such as '*.sarif', or the name alone. {_told(elsewhere)}"
            f"{Advice.LIST_ARCHIVES} shows the archives.",
        )
    for file in found.files:
        _show(file)
    if elsewhere:
        say(f"\n{_told(elsewhere).rstrip()}")
    first = found.files[0]
    say(f"\nto take one out: ./tools/backup.sh extract {first.versions[0].archives[0]} {shlex.quote(first.path)}")
    print_result({"success": True, "repository": str(place.path), **found.to_dict(), "only_offsite": list(elsewhere)})
    return 0


def only_offsite(settings: Settings, place: Repository, wanted: Wanted) -> tuple[str, ...]:
    """The archives that may have the file and of which only copies are left, newest first.

    The repository's own record of its copies is read, and no store is asked.
    """
    from portal.ops.offsite.ledger import Ledger

    types = _TYPES.get(wanted.component, frozenset())
    found: dict[str, BackupId] = {}
    for destination in settings.offsite.destinations():
        for stem in Ledger(place, destination).copies():
            archive = BackupId.parse(stem.backup_id)
            if archive and archive.type in types and not (place.path / f"{stem.backup_id}{SUFFIX}").exists():
                found[stem.backup_id] = archive
    return tuple(sorted(found, key=lambda name: (found[name].moment, name), reverse=True))


def _told(elsewhere: tuple[str, ...]) -> str:
    """What to do about copies that were not searched, as a sentence with a blank at its end."""
    if not elsewhere:
        return ""
    many = counted(len(elsewhere), "archive")
    one = f"./tools/backup.sh offsite fetch {elsewhere[0]}"
    return f"Not searched: {many} of which only off-site copies are left; '{one}' brings one back. "


def wanted_path(text: str, settings: Settings) -> Wanted:
    """The files that a person means, by their paths in archives.

    Arguments:
        text: a path in archives, a path or pattern below the uploads, or an absolute path in the file system.
    """
    from portal.ops.chains.versions import Wanted

    media, audit = Component.MEDIA.member, Component.AUDIT_LOGS.member
    for top, directory in ((media, settings.upload_dir), (audit, settings.audit_dir)):
        if directory and text.startswith("/"):
            below = os.path.relpath(text, directory)
            if below == ".." or below.startswith("../"):
                continue
            return Wanted(path=top if below == "." else f"{top}/{below}")
    plain = os.path.normpath(text.lstrip("/"))
    if plain.partition("/")[0] in {component.member for component in Component}:
        return Wanted(path=plain)
    return Wanted(path=f"{media}/{plain}", everywhere="/" not in plain)


def _show(file: FileVersions) -> None:
    archives = sum(len(version.archives) for version in file.versions)
    there = f"{counted(len(file.versions), 'version')} in {counted(archives, 'archive')}"
    gone = f"; not there any more from {file.gone_since} on" if file.gone_since else ""
    say(f"\n{file.path}: {there}{gone}")
    table = Table(_COLUMNS, output.width())
    say(table.head(), "head")
    for version in file.versions:
        say(table.row(_cells(version)))


def _cells(version: Version) -> list[str]:
    newest, count = version.archives[0], len(version.archives)
    content = f"-> {version.link}" if version.link else version.sha256[:_DIGITS]
    return [_moment(version.mtime_ns), human_bytes(version.size), content, newest, str(count)]


def _moment(ns: int) -> str:
    try:
        return f"{datetime.fromtimestamp(ns // 10**9, UTC):%Y-%m-%d %H:%M}"
    except (OverflowError, ValueError, OSError):  # a file system stores more years than a calendar has
        return "-"
