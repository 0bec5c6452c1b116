"""The temporary data of a drill: a directory in the repository and a database on the server, both removed afterwards.

The directory is `.drills/<drill_id>/`. Before the database is created, a file in the directory records its name, so
that any later process can drop it. Drills of a repository exclude each other: the holder of the lock knows that any
directory it finds was left by a dead process.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from portal.ops.codec import decode, encode
from portal.ops.drill.report import DIRECTORY
from portal.ops.errors import BusyError, DiskFullError, OpsError, RestoreError
from portal.ops.filesystem.tree import remove_tree
from portal.ops.postgres.database_names import LONGEST_NAME
from portal.ops.postgres.removal import remove_database
from portal.ops.postgres.server import create_like, end_orphans, find_database, maintenance, read_me
from portal.ops.repository.durable import make_hidden, sync_directory, write_durably
from portal.ops.repository.faults import explain
from portal.ops.repository.repository import Repository
from portal.ops.runtime.logs import engine_log
from portal.ops.units import human_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from portal.ops.postgres.identity import DatabaseIdentity
    from portal.ops.settings.database_url import DatabaseTarget

log = engine_log("portal.ops.drill")

_ID: Final = re.compile(r"drill_(\d{8}_\d{6}_[0-9a-f]{6})")
_NOTE: Final = "database.json"
_RESERVE_BYTES: Final = 64 << 20


@dataclass(frozen=True, kw_only=True)
class _Note:
    """The database of a drill, recorded before it is created."""

    database: str
    live: str
    host: str
    port: int


@dataclass(frozen=True, kw_only=True)
class Scratch:
    """The temporary data of one drill.

    Arguments:
        drill_id: such as ``drill_20240115_120000_abc123``.
        directory: the drill's directory.
    """

    drill_id: str
    directory: Path

    def make(self, needed_bytes: int) -> None:
        """Create the directory.

        Arguments:
            needed_bytes: the bytes that will be written to it.

        Raises:
            DiskFullError: there is not enough room.
            OSError: it cannot be created.
        """
        make_hidden(self.directory.parent)
        disk = os.statvfs(self.directory.parent)
        free, needed = disk.f_bavail * disk.f_frsize, needed_bytes + _RESERVE_BYTES
        if free < needed:
            raise DiskFullError(
                f"a drill needs about {human_bytes(needed)} in {self.directory.parent}, "
                f"and {human_bytes(free)} are free",
                hint="Make room, or name a smaller archive; nothing was restored.",
            )
        make_hidden(self.directory, is_new=True)

    def database(self, live: DatabaseTarget) -> DatabaseTarget:
        """The scratch database next to a live one; its name and application name identify it.

        Raises:
            RestoreError: the drill's id is invalid.
        """
        found = _ID.fullmatch(self.drill_id)
        if found is None:
            raise RestoreError(f"{self.drill_id!r} is not the id of a drill", hint="Leave that directory to a person.")
        suffix = f"_drill_{found[1]}"
        name = live.name.encode()[: LONGEST_NAME - len(suffix)].decode(errors="ignore") + suffix
        return replace(live, name=name, options={**live.options, "application_name": self.drill_id})

    def create_database(
        self, live: DatabaseTarget, identity: DatabaseIdentity | None = None
    ) -> tuple[DatabaseTarget, tuple[str, ...]]:
        """Create the scratch database like the live one, which is only read.

        Arguments:
            identity: the backup's facts about its database, used if there is no live one.

        Returns:
            the database, and warnings.

        Raises:
            RestoreError: such a database exists, so it is not ours.
            OpsError: the server failed.
        """
        scratch = self.database(live)
        with maintenance(replace(scratch, name=live.name)) as connection:
            if find_database(connection, scratch.name):
                raise RestoreError(
                    f"there is a database {scratch.name} already, which this drill has not made",
                    hint="Look at it, and drop it if it is not needed.",
                )
            note = _Note(database=scratch.name, live=live.name, host=live.host, port=live.port)
            write_durably(self.directory / _NOTE, json.dumps(encode(note)).encode("ascii") + b"\n")
            model = find_database(connection, live.name) or identity
            said = create_like(connection, scratch.name, model, read_me(connection).name)
        return scratch, said

    def throw_away(self, live: DatabaseTarget) -> None:
        """Drop the recorded database, if any, and remove the directory.

        Arguments:
            live: provides user and password; host, port and name come from the record.

        Raises:
            OpsError: the server failed; the directory stays for another attempt.
        """
        note = self._note()
        if note:
            noted = replace(live, name=note.live, host=note.host, port=note.port)
            scratch = self.database(noted)
            if scratch.name != note.database:
                raise RestoreError(
                    f"{self.directory / _NOTE} names {note.database}, which is no database of that drill",
                    hint="Look at it, and remove the directory by hand.",
                )
            end_orphans(replace(scratch, name=noted.name), self.drill_id)
            with maintenance(replace(scratch, name=noted.name)) as connection:
                remove_database(connection, scratch, scratch.name)
        try:
            remove_tree(self.directory)
            sync_directory(self.directory.parent)
        except FileNotFoundError:
            pass
        except OSError as error:
            by_hand = "Remove it by hand, as its owner or as root."
            raise explain(error, "cannot remove", self.directory, denied=by_hand, hint=by_hand) from error

    def _note(self) -> _Note | None:
        try:
            return decode(_Note, json.loads((self.directory / _NOTE).read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, RecursionError, ValueError) as error:
            raise RestoreError(
                f"{self.directory / _NOTE} is invalid", hint="Look at it, and remove the directory by hand."
            ) from error


@contextmanager
def drills_locked(repository: Repository) -> Iterator[None]:
    """Exclude other drills of a repository.

    Raises:
        BusyError: another drill is running.
        RepositoryError: the repository cannot be written.
    """
    repository.prepare()
    directory = repository.path / DIRECTORY
    make_hidden(directory)
    with ExitStack() as stack:
        try:
            stack.enter_context(Repository(directory, lock_timeout=0).exclusive())
        except BusyError as error:
            raise BusyError("another drill is running", hint="Wait for it to end; it shows its report.") from error
        yield


def throw_remains_away(repository: Repository, live: DatabaseTarget) -> tuple[str, ...]:
    """Remove what killed drills have left; return sentences about what was and could not be removed.

    The caller must hold the lock of `drills_locked`.
    """
    said = []
    for path in sorted((repository.path / DIRECTORY).glob("drill_*")):
        if not path.is_dir() or path.is_symlink() or not _ID.fullmatch(path.name):
            continue
        try:
            Scratch(drill_id=path.name, directory=path).throw_away(live)
            said.append(f"{path.name} had been interrupted; its restored data has been removed")
        except OpsError as error:
            said.append(f"{path.name} had been interrupted, and its remains cannot be removed now: {error.message}")
    for sentence in said:
        log.warning("unfinished_work_found", detail=sentence)
    return tuple(said)
