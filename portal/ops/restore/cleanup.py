"""Cleanup: removes archives that the retention policy does not keep, then rollback data that is too old."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from portal.ops.errors import OpsError
from portal.ops.repository.access_log import Witness
from portal.ops.restore.journal import DIRECTORY
from portal.ops.retention.prune import PruneJob
from portal.ops.runtime.process import SystemRunner
from portal.ops.runtime.progress import utc_now

if TYPE_CHECKING:
    from portal.ops.repository.access_log import Observer
    from portal.ops.repository.repository import Repository
    from portal.ops.restore.config import RestoreConfig
    from portal.ops.retention.policy import RetentionPolicy
    from portal.ops.retention.prune import PruneResult
    from portal.ops.runtime.progress import Clock


@dataclass(frozen=True, kw_only=True)
class CleanupResult:
    """The result of a cleanup.

    Arguments:
        pruned: the result of the prune.
        discarded: one sentence for each restore whose rollback data was removed or could not be.
    """

    pruned: PruneResult
    discarded: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The result in the types of JSON."""
        return {**self.pruned.to_dict(), "rollback_data_discarded": list(self.discarded)}


class CleanupJob:
    """Prunes a repository, then discards old rollback data.

    Arguments:
        repository: the directory of archives.
        policy: the retention policy.
        config: where rollback data is, and how long to keep it.
        clock: returns the current time.
        actor: the requester, for the access log; by default the user of this process.
        observer: receives the result.
    """

    def __init__(
        self,
        repository: Repository,
        policy: RetentionPolicy,
        config: RestoreConfig,
        *,
        clock: Clock = utc_now,
        actor: str | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.prune = PruneJob(repository, policy, clock=clock, actor=actor, observer=observer)
        self._repository = repository
        self._config = config
        self._clock = clock
        self._witness = Witness(repository=repository, who=actor, clock=clock, observer=observer)

    def run(self, *, dry_run: bool = False) -> CleanupResult:
        """Prune, then discard; every error becomes part of the result.

        Arguments:
            dry_run: only report which archives would be removed.
        """
        pruned = self.prune.run(dry_run=dry_run)
        return CleanupResult(pruned=pruned, discarded=() if dry_run or not pruned.success else self.discard_old())

    def discard_old(self) -> tuple[str, ...]:
        """Discard rollback data that is too old; return one sentence for each action. A failure is only reported."""
        if not (self._repository.path / DIRECTORY).exists():  # usually there is none, and importing the rest takes time
            return ()
        from portal.ops.restore.context import RestoreContext
        from portal.ops.restore.rollback import Rollback

        context = RestoreContext(
            config=self._config,
            repository=self._repository,
            witness=self._witness,
            confirm=None,
            runner=SystemRunner(),
            clock=self._clock,
            progress=None,
        )
        try:
            return Rollback(context).discard_old()
        except OpsError as error:
            return (f"old rollback data was not looked at: {error}",)
