"""Pins and unpins archives on request, by name, with a line in the access log."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from portal.ops.errors import ArchiveAbsentError, ConfigurationError
from portal.ops.repository.access_log import Action, Witness
from portal.ops.repository.locks import archive_lock
from portal.ops.repository.pins import Pin, Pins
from portal.ops.runtime.logs import engine_log
from portal.ops.runtime.progress import PathLike, utc_now

if TYPE_CHECKING:
    from portal.ops.repository.access_log import Observer
    from portal.ops.repository.repository import ArchiveFile, Repository
    from portal.ops.runtime.progress import Clock

log = engine_log("portal.ops.retention.pin")

_HOLD_SECONDS: Final = 10.0


def pin(
    repository: Repository,
    archive: PathLike,
    *,
    reason: str = "",
    actor: str | None = None,
    clock: Clock = utc_now,
    observer: Observer | None = None,
) -> Pin:
    """Pin an archive, so that it is kept until it is unpinned.

    Arguments:
        archive: the archive's path, its id or the start of one, or ``latest``.
        reason: the reason, for others to read.
        actor: the requester; by default the user of this process.
        observer: receives the result.

    Raises:
        ArchiveAbsentError: there is no such archive.
        ConfigurationError: it is not in this repository.
        RepositoryError: the pin cannot be written.
    """
    witness = Witness(repository=repository, who=actor, clock=clock, observer=observer)
    with witness.watching(Action.PIN, os.fspath(archive), reason=reason) as seen:
        found = repository.find(archive)
        _refuse_outside(repository, found)
        seen.subject = found.name
        with archive_lock(found.path, _HOLD_SECONDS):  # a prune that is about to remove it checks the pins after this
            pinned = Pins(repository).pin(found.name, reason=reason, who=witness.name, moment=clock())
    log.info("archive_pinned", backup_id=found.name)
    return pinned


def unpin(
    repository: Repository,
    archive: PathLike,
    *,
    actor: str | None = None,
    clock: Clock = utc_now,
    observer: Observer | None = None,
) -> tuple[str, bool]:
    """Unpin an archive, which need not exist any more; return its name and whether it was pinned.

    Raises:
        ArchiveAbsentError: there is neither such an archive nor such a pin.
        RepositoryError: the pin cannot be removed.
    """
    pins = Pins(repository)
    witness = Witness(repository=repository, who=actor, clock=clock, observer=observer)
    with witness.watching(Action.UNPIN, os.fspath(archive)) as seen:
        try:
            seen.subject = name = repository.find(archive).name
        except ArchiveAbsentError:
            seen.subject = name = os.fspath(archive)
            if name not in pins.names():
                raise
        was_pinned = pins.unpin(name)
    log.info("archive_unpinned", backup_id=name)
    return name, was_pinned


def _refuse_outside(repository: Repository, found: ArchiveFile) -> None:
    if os.path.realpath(found.path.parent) != os.path.realpath(repository.path):
        raise ConfigurationError(
            f"{found.path} is not in the repository {repository.path}", hint="Only archives in it can be pruned."
        )
