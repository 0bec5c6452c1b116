"""What is remembered of a restore, so that a crash can be finished or undone and a restore taken back.

One JSON file for each restore, in the repository's `.restores/`. It is replaced as a whole at each step; the step it
names is what decides, after a crash, between undoing (nothing live was touched) and finishing (something was).
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from portal.ops.errors import NotIntactError
from portal.ops.repository import Repository, write_durably

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

DIRECTORY: Final = ".restores"


class RestoreState(StrEnum):
    """How far a restore is."""

    STAGING = "staging"
    APPLYING = "applying"
    APPLIED = "applied"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"


@dataclass(frozen=True, kw_only=True)
class RestoreRecord:
    """One restore.

    Arguments:
        restore_id: such as ``restore_20240115_120000_abc123``.
        backup_id: what is restored.
        backup_file: from where.
        started: when, as the manifest writes it.
        state: how far it is.
        parts: for each component what its part needs to be finished or taken back.
    """

    restore_id: str
    backup_id: str
    backup_file: str
    started: str
    state: RestoreState = RestoreState.STAGING
    parts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class RestoreRecords:
    """The records of a repository's restores."""

    def __init__(self, repository: Repository) -> None:
        self.directory = repository.path / DIRECTORY
        self._repository = repository

    def stage(self, record: RestoreRecord) -> Path:
        """The directory for what has to lie on a disk before it can go to its place, such as the dump."""
        return self.directory / record.restore_id

    def save(self, record: RestoreRecord, **changes: Any) -> RestoreRecord:
        """Write a record with changes, durably; the record as it is now."""
        changed = replace(record, **changes)
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(self._path(changed.restore_id), json.dumps(asdict(changed), indent=2).encode() + b"\n")
        return changed

    def forget(self, record: RestoreRecord) -> None:
        """Remove a record."""
        self._path(record.restore_id).unlink(missing_ok=True)

    def all(self) -> list[RestoreRecord]:
        """All records, newest first.

        Raises:
            NotIntactError: one of them cannot be read.
        """
        return [_load(path) for path in sorted(self.directory.glob("restore_*.json"), reverse=True)]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold off every other restore of this repository.

        Raises:
            BusyError: one is running.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with Repository(self.directory, lock_timeout=0).exclusive():
            yield

    def _path(self, restore_id: str) -> Path:
        return self.directory / f"{restore_id}.json"


def _load(path: Path) -> RestoreRecord:
    try:
        found = json.loads(path.read_bytes())
        return RestoreRecord(**{**found, "state": RestoreState(found["state"])})
    except (TypeError, ValueError, KeyError) as error:
        raise NotIntactError(
            f"the record of a restore, {os.fspath(path)}, makes no sense",
            hint="Restore it from a copy, or move it away: that restore can then no longer be taken back by itself.",
        ) from error
