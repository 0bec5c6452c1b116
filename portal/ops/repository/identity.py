"""The id of a repository, in the lock file that every repository has.

An unmounted volume leaves an empty directory, which looks like a new repository. So archives are only written to the
repository that was used at the path before, or that the configuration names.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from typing import TYPE_CHECKING, Final

from portal.ops.errors import RepositoryAbsentError, RepositoryError
from portal.ops.model import Loss
from portal.ops.repository.durable import open_own, sync_directory, write_durably
from portal.ops.repository.locks import try_lock

if TYPE_CHECKING:
    from pathlib import Path

STAND_IN_NAME: Final = ".not-the-repository"
"""A note in a directory that replaced a repository: archives in it were fetched for a restore."""

_MOST_BYTES: Final = 64
_CONFIRM: Final = (
    "See that its volume is mounted. If another one is meant, confirm that once, with a backup: "
    f"--confirm-loss {Loss.REPOSITORY}."
)
_STAND_IN: Final = (
    b"The repository that was used at this path was not there when a restore began to use this directory.\n"
)


def repository_id(lock: Path) -> str:
    """The id, or an empty string if there is none yet or it cannot be read.

    Arguments:
        lock: the repository's lock file.
    """
    try:
        with lock.open("rb") as file:
            text = file.read(_MOST_BYTES).decode("ascii", "replace").strip()
    except OSError:
        return ""
    return text if text.isalnum() else ""


def give_id(lock: Path) -> None:
    """Give a repository an id if it has none. If it is in use, or the disk is full, a later command does."""
    try:
        descriptor = open_own(lock)
    except OSError:
        return
    try:
        if os.fstat(descriptor).st_size == 0 and try_lock(descriptor, fcntl.LOCK_EX):
            os.pwrite(descriptor, f"{uuid.uuid4().hex}\n".encode(), 0)
            os.fsync(descriptor)
            sync_directory(lock.parent)
    except OSError:
        return
    finally:
        os.close(descriptor)


def note_stand_in(place: Path) -> None:
    """Note that a directory is not the repository used at its path, whatever is fetched into it.

    Raises:
        OSError: the note cannot be written.
    """
    write_durably(place / STAND_IN_NAME, _STAND_IN)


def check_known(lock: Path, known: str, *, is_empty: bool) -> None:
    """Refuse a repository other than the one used at this path before.

    A repository with archives and no id is accepted: it was copied without its hidden files.

    Arguments:
        known: the id of the previous one; empty if there was none.
        is_empty: whether the present one has only archives that a restore has fetched.

    Raises:
        RepositoryAbsentError: there is no repository.
        RepositoryError: there is another one.
    """
    found = repository_id(lock)
    if not known or found == known or (not found and not is_empty):
        return
    place = lock.parent
    if found:
        what = f"the repository in {place} has the id {found}, and the one that was used here has {known}"
        raise RepositoryError(what, hint=_CONFIRM)
    if (place / STAND_IN_NAME).exists():
        what = "the directory has no id, and no archive but what was brought for a restore"
    elif place.exists():
        what = "the directory has no archive and no id"
    else:
        what = "there is no such directory"
    raise RepositoryAbsentError(f"the repository that was used in {place} is not there: {what}", hint=_CONFIRM)


def check_id(lock: Path, wanted: str) -> None:
    """Refuse to write to a repository other than the configured one.

    Arguments:
        wanted: the configured id; empty for any.

    Raises:
        RepositoryError: there is another one, or none.
    """
    if not wanted or (found := repository_id(lock)) == wanted:
        return
    what = f"its id is {found}" if found else "it has no id, as a directory whose volume is not mounted has none"
    raise RepositoryError(
        f"{lock.parent} is not the repository {wanted}: {what}",
        hint="See that its volume is mounted. If another one is meant, correct BACKUP_REPOSITORY_ID or clear it.",
    )
