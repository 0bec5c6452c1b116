"""Verifies archives of a repository: keeps a prune away meanwhile, records what was found, and tells who watches."""

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
from portal.ops.verify.verify import Expected, Verifier

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from portal.ops.repository.repository import ArchiveFile, Repository

log = engine_log("portal.ops.verify")


@dataclass(frozen=True, kw_only=True)
class VerifyJob:
    """Verifies archives.

    Arguments:
        repository: what was found is recorded here.
        witness: who asked for it, for the access log.
        runner: what starts pg_restore.
        pg_bin_dir: the only directory to look for it in, or nothing.
        jobs: how many threads decompress.
        lock_timeout: seconds to wait for a prune.
        is_recorded: whether what was found is recorded.
        clock: what time it is.
        progress: told how far it is.
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
        """Verify an archive, given by path, id or ``latest``, with a line in the access log.

        Raises:
            OpsError: it cannot be looked at; damage is no error, but in what is returned.
        """
        with self.witness.watching(Action.VERIFY, os.fspath(path), level=str(level)) as seen:
            archive = self.repository.find(path)
            seen.subject = archive.name
            with self._locked(archive):
                (found,) = self.examine([archive.path], VerifyLevel(level))
            seen.note(Outcome.DONE if found.intact else Outcome.FAILED, damages=len(found.damages))
        return found

    def examine(self, paths: Collection[Path], level: VerifyLevel, *, is_alone: bool = False) -> Iterator[Verification]:
        """Look at archives one after the other, and record what was found of each.

        Arguments:
            is_alone: what an archive stands on is none of its business.
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
        """Keep a prune away from an archive; who may only read the repository, reads without its lock."""
        is_ours = archive.path.parent == self.repository.path and os.access(self.repository.path, os.W_OK)
        with self.repository.shared() if is_ours else nullcontext(), archive_lock(archive.path, self.lock_timeout):
            yield


def _log(found: Verification) -> None:
    tell, event = (log.info, "archive_verified") if found.intact else (log.error, "archive_damaged")
    tell(
        event,
        backup_id=found.path.name.removesuffix(".tar.gz"),
        verify_level=found.level.value,
        damages=len(found.damages),
        seconds=round(found.duration_seconds, 3),
    )
