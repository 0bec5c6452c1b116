"""The record of a restore, by which it is finished or undone after a crash, or rolled back.

Each restore has one JSON file in the repository's `.restores/`, which is replaced at each step. After a crash, the
recorded step decides between undoing (live data unchanged) and finishing (live data changed).

    staging       live data is unchanged: to be undone, without a trace
    applying      the parts are put in place one by one: to be finished, or undone if none was begun
    applied       done; can be rolled back
    undoing       applying failed, and finished parts are being rolled back: to be continued
    rolling_back  being rolled back: to be continued
    rolled_back   rolled back; the restored data is kept
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping  # noqa: TC003  (the codec reads the annotations)
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from portal.ops.codec import decode, encode
from portal.ops.errors import BusyError, RestoreError
from portal.ops.model import Component
from portal.ops.repository.durable import make_hidden, sync_directory, write_durably
from portal.ops.repository.faults import explain
from portal.ops.repository.repository import LOCK_NAME, Repository

if TYPE_CHECKING:
    from collections.abc import Iterator

DIRECTORY: Final = ".restores"

_SUFFIX: Final = ".json"
_PREFIX: Final = "restore_"
_PATIENCE_SECONDS: Final = 2.0
"""Seconds to wait for the lock: a child process that a killed restore was just starting keeps it for an instant."""


class RestoreState(StrEnum):
    """The states of a restore."""

    STAGING = "staging"
    APPLYING = "applying"
    APPLIED = "applied"
    UNDOING = "undoing"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"

    @property
    def is_settled(self) -> bool:
        """True if nothing is left to do; otherwise the restore was interrupted, or is running."""
        return self in (RestoreState.APPLIED, RestoreState.ROLLED_BACK)


@dataclass(frozen=True, kw_only=True)
class RestoreRecord:
    """The record of one restore.

    Arguments:
        restore_id: such as ``restore_20240115_120000_abc123``.
        number: a counter of the repository's restores, so that their order does not depend on a clock.
        backup_id: the id in the manifest; in older records perhaps the name of the file.
        backup_file: the path of the archive; in older records perhaps relative.
        started: the start time, in the format of the manifest; `changed` is the time of the last change of state.
        state: the state of the restore.
        parts: for each component, the facts from which its part is recreated.
    """

    restore_id: str
    number: int
    backup_id: str
    backup_file: str
    started: str
    changed: str
    state: RestoreState = RestoreState.STAGING
    parts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def told(self) -> dict[str, Any]:
        """What the record says, as types of JSON for a list of restores."""
        return {
            "restore_id": self.restore_id,
            "backup_id": self.backup_id,
            "started": self.started,
            "changed": self.changed,
            "state": self.state.value,
            "components": list(self.parts),
            "targets": list(self.targets()),
        }

    def targets(self) -> tuple[str, ...]:
        """The places that were restored to, in words."""
        found = []
        for name, facts in self.parts.items():
            component = Component(name)
            if component is Component.DATABASE:
                found.append(f"database {facts['database']} on {facts['host']}:{facts['port']}")
            else:
                where = "beside" if component is Component.AUDIT_LOGS else "in"
                found.append(f"{component.spoken} {where} {facts['path']}")
        return tuple(found)

    def overlaps(self, parts: Mapping[str, Mapping[str, Any]]) -> bool:
        """True if a part of this restore has the same target as one of these; audit logs never do."""
        database, media = Component.DATABASE.value, Component.MEDIA.value
        ours, theirs = self.parts.get(database), parts.get(database)
        if ours and theirs and all(ours[name] == theirs[name] for name in ("host", "port", "database")):
            return True
        if media not in self.parts or media not in parts:
            return False
        one, other = Path(self.parts[media]["path"]), Path(parts[media]["path"])
        return one.is_relative_to(other) or other.is_relative_to(one)


class RestoreRecords:
    """All records of a repository."""

    def __init__(self, repository: Repository) -> None:
        self.directory = repository.path / DIRECTORY
        self._repository = repository

    def directory_of(self, restore_id: str) -> Path:
        """The directory for a restore's files: the dump in transit, and the safety dump of a restore in place."""
        return self.directory / restore_id

    def save(self, record: RestoreRecord, **changes: Any) -> RestoreRecord:
        """Write a record durably, with changes; return the new record."""
        changed = replace(record, **changes)
        make_hidden(self.directory)
        write_durably(self._path(changed.restore_id), json.dumps(encode(changed), indent=2).encode() + b"\n")
        return changed

    def remove(self, record: RestoreRecord) -> None:
        """Remove a record."""
        self._path(record.restore_id).unlink(missing_ok=True)
        sync_directory(self.directory)

    def all(self) -> list[RestoreRecord]:
        """All records, newest first.

        Raises:
            RestoreError: a record is invalid.
            RepositoryError: the records cannot be read.
        """
        try:
            names = os.listdir(self.directory)
        except (FileNotFoundError, NotADirectoryError):  # reading the repository itself reports what it is
            return []
        except OSError as error:
            raise explain(error, "cannot read", self.directory) from error
        paths = [self.directory / name for name in names if name.startswith(_PREFIX) and name.endswith(_SUFFIX)]
        return sorted((_load(path) for path in paths), key=lambda record: record.number, reverse=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other restores of this repository waiting.

        Raises:
            BusyError: another restore is running.
            RepositoryError: the repository cannot be written.
        """
        self._repository.prepare_for_restore()
        make_hidden(self.directory)
        with ExitStack() as stack:
            try:
                stack.enter_context(Repository(self.directory, lock_timeout=_PATIENCE_SECONDS).exclusive())
            except BusyError as error:
                raise BusyError(
                    "another restore is running", hint="Wait for it to end, then look again with --rollback --list."
                ) from error
            yield

    def are_locked(self) -> bool:
        """True if a restore is running; changes nothing."""
        if not (self.directory / LOCK_NAME).exists():
            return False
        try:
            with Repository(self.directory, lock_timeout=0).shared():
                return False
        except BusyError:
            return True

    def _path(self, restore_id: str) -> Path:
        return self.directory / f"{restore_id}{_SUFFIX}"


def named(record: RestoreRecord) -> dict[str, Any]:
    """The keys that identify a restore in a result."""
    return {"restore_id": record.restore_id, "backup_id": record.backup_id, "backup_file": record.backup_file}


def _load(path: Path) -> RestoreRecord:
    try:
        return decode(RestoreRecord, json.loads(path.read_bytes()))
    except OSError as error:
        raise explain(error, "cannot read", path) from error
    except (TypeError, ValueError, KeyError) as error:
        raise RestoreError(
            f"the record of a restore, {path}, is invalid",
            hint="Restore it from a copy, or move it away: that restore can then no longer be rolled back by itself.",
        ) from error
