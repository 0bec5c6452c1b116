"""Verifies archives of a repository: locks them against pruning, records the results, and informs observers."""

from __future__ import annotations

import os
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from portal.ops.model import VerifyLevel
from portal.ops.repository.access_log import Action, Outcome, Witness
from portal.ops.repository.locks import archive_lock
from portal.ops.repository.verifications import Verification, Verifications
from portal.ops.runtime.logs import engine_log
from portal.ops.runtime.process import ProcessRunner, SystemRunner
from portal.ops.runtime.progress import Clock, Meter, PathLike, Progress, available_cores, utc_now
from portal.ops.units import printable
from portal.ops.verify.verify import Expected, Verifier

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from portal.ops.repository.repository import ArchiveFile, Repository

log = engine_log("portal.ops.verify")


@dataclass(frozen=True, kw_only=True)
class VerifyJob:
    """Verifies archives.

    Arguments:
        repository: stores the results.
        witness: writes the access log in the name of the requester.
        runner: starts pg_restore.
        pg_bin_dir: the only directory to look for pg_restore in; None looks everywhere.
        jobs: how many threads decompress.
        lock_timeout: seconds to wait for a prune.
        is_recorded: whether to store results.
        clock: returns the current time.
        progress: receives progress reports.
    """

    repository: Repository
    witness: Witness
    runner: ProcessRunner = field(default_factory=SystemRunner)
    pg_bin_dir: PathLike | None = None
    jobs: int | None = None
    lock_timeout: float = 60
    is_recorded: bool = True
    clock: Clock = utc_now
    progress: Progress | None = None

    def run(self, path: PathLike, level: VerifyLevel = VerifyLevel.CONTENTS) -> Verification:
        """Verify an archive, given by path, id or ``latest``, and write a line to the access log.

        Raises:
            OpsError: it cannot be examined; damage is part of the result instead.
        """
        with self.witness.watching(Action.VERIFY, os.fspath(path), level=str(level)) as seen:
            archive = self.repository.find(path)
            seen.subject = archive.name
            with self._locked(archive):
                (found,) = self.examine([archive.path], VerifyLevel(level))
            seen.note(
                Outcome.DONE if found.intact else Outcome.FAILED,
                damages=len(found.damages),
                error=None if found.intact else _first(found),
            )
        return found

    def examine(self, paths: Collection[Path], level: VerifyLevel, *, is_alone: bool = False) -> Iterator[Verification]:
        """Verify archives one after the other, and store the results.

        Arguments:
            is_alone: do not check the archives that each one needs.
        """
        meter = Meter(self.progress)
        meter.phase = "verify"
        meter.expect = Expected(paths)
        verifier = Verifier(
            runner=self.runner,
            pg_bin_dir=Path(self.pg_bin_dir) if self.pg_bin_dir else None,
            jobs=self.jobs or available_cores(),
            advance=meter.advance,
        )
        for path in paths:
            found = verifier.verify_alone(path, level) if is_alone else verifier.verify(path, level)
            _log(found)
            if self.is_recorded:
                Verifications(self.repository).note(found, self.clock())
            yield found

    @contextmanager
    def _locked(self, archive: ArchiveFile) -> Iterator[None]:
        """Keep an archive from being pruned; a user who may only read the repository reads without the lock."""
        is_ours = archive.path.parent == self.repository.path and os.access(self.repository.path, os.W_OK)
        with self.repository.shared() if is_ours else nullcontext(), archive_lock(archive.path, self.lock_timeout):
            yield


def _first(found: Verification) -> str:
    """The first damage, for those who see only the access log."""
    first, more = printable(str(found.damages[0])), len(found.damages) - 1
    return f"{first}, and {more} more" if more else first


def _log(found: Verification) -> None:
    tell, event = (log.info, "archive_verified") if found.intact else (log.error, "archive_damaged")
    tell(
        event,
        backup_id=found.path.name.removesuffix(".tar.gz"),
        verify_level=found.level.value,
        damages=len(found.damages),
        seconds=round(found.duration_seconds, 3),
    )
