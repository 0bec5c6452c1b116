"""`backup.sh wal`: shows the WAL archive, or fetches it from an off-site copy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from portal.ops.errors import ConfigurationError, NotIntactError
from tools.terminal.output import print_result, say
from tools.terminal.run import watched_settings

if TYPE_CHECKING:
    import argparse

    from portal.ops.repository.repository import Repository
    from portal.ops.settings.load import Settings


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:  # noqa: ARG001  (what every command has)
    """Define the command's arguments."""
    parser.add_argument("--fetch", action="store_true", help="bring the WAL back from the off-site destinations")


def run(arguments: argparse.Namespace) -> int:
    """Show the archive, after fetching if requested."""
    from portal.ops.pitr.look import look
    from portal.ops.repository.repository import Repository

    settings, _ = watched_settings()
    repository = Repository(Path(settings.local_path), lock_timeout=settings.lock_timeout)
    fetched = _fetch(settings, repository) if arguments.fetch else 0
    if arguments.fetch:
        say(f"{fetched} files of WAL were fetched")
    found = look(repository)
    files = found.archive.files() if found.archive else {}
    say(f"{len(files)} files of WAL, {sum(file.size for file in files.values()) >> 20} MB")
    say(f"recovery window: {found.window}" if found.window else "there is no recovery window")
    window = found.window.to_dict() if found.window else None
    print_result({"success": True, "fetched": fetched, "files": len(files), "recovery_window": window})
    return 0


def _fetch(settings: Settings, repository: Repository) -> int:
    from portal.ops.offsite.signing import trusted_signers
    from portal.ops.pitr.wal_sources import fetch_from_all

    if not settings.offsite.destinations():
        raise ConfigurationError("there is no off-site destination", hint="Set BACKUP_OFFSITE_URLS.")
    repository.prepare()
    found = fetch_from_all(repository, settings, trusted_signers(repository, settings.offsite.signers))
    if found.unsigned:
        first, last = found.unsigned[0], found.unsigned[-1]
        say(f"warning: {len(found.unsigned)} objects of WAL are not signed, from {first} to {last}")
    for fault in found.faults:
        say(f"warning: {fault}")
    damages = [fault for fault in found.faults if isinstance(fault, NotIntactError)]
    if damages:
        raise damages[0]
    return found.count
