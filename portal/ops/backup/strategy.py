"""The strategy of a backup: everything, as a base for others, or the differences from its parent."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from portal.ops.backup.increment import CACHE, BaseNeededError, parent_locked, plan_increment, remember
from portal.ops.chains.lineage import is_incremental
from portal.ops.errors import OpsError
from portal.ops.model import BackupType, Component
from portal.ops.pitr.base_chain import find_parent
from portal.ops.repository.locks import archive_lock
from portal.ops.runtime.logs import engine_log
from portal.ops.settings.slots import last_slot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from portal.ops.backup.config import BackupConfig
    from portal.ops.backup.increment import Increment
    from portal.ops.backup.written import Written
    from portal.ops.pitr.base_chain import BaseParent
    from portal.ops.repository.pending import PendingArchive
    from portal.ops.repository.repository import Repository

log = engine_log("portal.ops.backup")


class Strategy(Protocol):
    """The strategy of a backup; to be closed."""

    @property
    def components(self) -> tuple[Component, ...]:
        """The components of the archive."""

    @property
    def increment(self) -> Increment | None:
        """The differences of the uploads from the parent archive; nothing if they are taken completely."""

    @property
    def is_settled(self) -> bool:
        """True if that is known already."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings about the choice, for people."""

    def reach_uploads(self) -> None:
        """Settle what is taken of the uploads, when it is their turn: the database has been read by then."""

    @property
    def base_parent(self) -> BaseParent | None:
        """The base backup that an incremental one of the cluster follows."""

    @property
    def expected_bytes(self) -> int:
        """About how large the archive will be."""

    def note(self, written: Written) -> None:
        """Note, for the incrementals that follow, what the archive has that was just published."""

    def close(self) -> None:
        """Give up what it holds."""


@dataclass(frozen=True, kw_only=True)
class Base:
    """Everything, whatever other archives have.

    Arguments:
        repository: where the archive goes.
        components: what goes into it.
        kind: its type.
        is_chain_locked: whether incrementals are kept waiting already.
        is_followed: whether others will follow it in any case.
    """

    repository: Repository
    components: tuple[Component, ...]
    kind: BackupType
    is_chain_locked: bool
    is_followed: bool = False
    increment: None = None
    base_parent: None = None
    is_settled: bool = True
    warnings: tuple[str, ...] = ()

    def reach_uploads(self) -> None:
        """Everything is taken."""

    @property
    def expected_bytes(self) -> int:
        """The size of the last complete backup of the same type."""
        alike = [one for one in self.repository.archives() if one.backup_id and one.backup_id.type is self.kind]
        return next((one.size for one in alike if not is_incremental(one.path)), 0)

    def note(self, written: Written) -> None:
        """Fill the cache, where there is one; where that cannot be, the next incremental does it."""
        holds_uploads = Component.MEDIA in self.components
        is_wanted = holds_uploads and (self.is_followed or (self.repository.path / CACHE).exists())
        if not (self.is_chain_locked or is_wanted):
            return
        try:
            with nullcontext() if self.is_chain_locked else self.repository.chain():
                remember(self.repository, written.content, written.digest)
        except OpsError as error:
            log.warning("cache_outdated", error=error.message)

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True, kw_only=True)
class Incremental:
    """The differences from the parent archive.

    Arguments:
        increment: that archive, and what differs.
        opened: what keeps them.
    """

    increment: Increment
    opened: ExitStack
    components: tuple[Component, ...] = (Component.MEDIA,)
    base_parent: None = None
    is_settled: bool = True
    warnings: tuple[str, ...] = ()

    def reach_uploads(self) -> None:
        """They were looked at before."""

    @property
    def expected_bytes(self) -> int:
        """The bytes of what differs."""
        return self.increment.delta.content_bytes

    def note(self, written: Written) -> None:
        """Bring the cache up to the archive."""
        self.increment.publish(written.content, written.digest)

    def close(self) -> None:
        """Close the uploads and the cache, and let the parent go."""
        self.opened.close()


@dataclass(frozen=True, kw_only=True)
class IncrementalCluster:
    """The changes of the cluster since another base backup.

    Arguments:
        base_parent: that base backup.
        held: what keeps its chain.
    """

    base_parent: BaseParent
    held: ExitStack
    components: tuple[Component, ...] = (Component.CLUSTER,)
    increment: None = None
    is_settled: bool = True
    warnings: tuple[str, ...] = ()

    def reach_uploads(self) -> None:
        """It has none."""

    @property
    def expected_bytes(self) -> int:
        """The most that the archive takes."""
        return self.base_parent.expected_bytes

    def note(self, written: Written) -> None:
        """Nothing is remembered."""

    def close(self) -> None:
        """Let the chain go."""
        self.held.close()


def plan_incremental_cluster(repository: Repository, lock_timeout: float) -> IncrementalCluster:
    """Find the base backup that an incremental one follows, and keep its chain from being pruned.

    Raises:
        FullBaseNeededError: there is nothing to follow.
        OpsError: the repository cannot be read, or an archive is being removed.
    """
    parent = find_parent(repository)
    with ExitStack() as held:
        for ancestor in parent.line:
            held.enter_context(archive_lock(ancestor.path, lock_timeout))
        return IncrementalCluster(base_parent=parent, held=held.pop_all())


def plan_incremental(
    repository: Repository,
    config: BackupConfig,
    changed: Sequence[str] | None,
    pending: PendingArchive,
    advance: Callable[[int], None],
) -> Incremental:
    """Find out what an incremental follows, and what it takes.

    Arguments:
        changed: the only paths to look at; nothing looks at the whole tree.
        pending: the archive that will be written.
        advance: called with every number of bytes that were read to compare them.

    Raises:
        BaseNeededError: there is nothing to follow.
        OpsError: as `plan_increment`.
    """
    begun = pending.partial.stat().st_mtime
    with ExitStack() as opened:
        increment = plan_increment(repository, config, changed=changed, begun=begun, advance=advance)
        opened.callback(increment.close)
        opened.enter_context(parent_locked(increment, config.lock_timeout))
        return Incremental(increment=increment, opened=opened.pop_all())


@dataclass(kw_only=True)
class ChainedFull:
    """Database and audit log completely, and of the uploads what differs from the archive that is followed.

    Other incrementals wait from the look at the uploads to the commit, and not while the database is dumped. Where
    there is nothing to follow, the uploads are taken completely; where there should be, a warning says why.

    Arguments:
        repository: where the archive goes.
        config: where the uploads are, and how long a chain may become.
        components: what goes into it.
        moment: when it was asked for, or the slot that it is for.
        pending: the archive that will be written.
        check_space: refuses what will not fit, by the bytes that it will still take.
        advance: called with every number of bytes that were read to compare them.
    """

    repository: Repository
    config: BackupConfig
    components: tuple[Component, ...]
    moment: datetime
    pending: PendingArchive
    check_space: Callable[[int], None]
    advance: Callable[[int], None]
    increment: Increment | None = None
    base_parent: None = None
    is_settled: bool = False
    warnings: tuple[str, ...] = ()
    _opened: ExitStack = field(default_factory=ExitStack)

    @property
    def expected_bytes(self) -> int:
        """The size of the last full backup that followed another archive."""
        fulls = (one for one in self.repository.archives() if one.backup_id and one.backup_id.type is BackupType.FULL)
        return next((one.size for one in fulls if is_incremental(one.path)), 0)

    def reach_uploads(self) -> None:
        """Find out what differs.

        Raises:
            OpsError: as `plan_increment`, or other incrementals did not end in time.
        """
        begun = self.pending.partial.stat().st_mtime
        try:
            with ExitStack() as opened:
                opened.enter_context(self.repository.chain())
                increment = plan_increment(
                    self.repository,
                    self.config,
                    changed=None,
                    begun=begun,
                    advance=self.advance,
                    base_since=complete_since(self.config, self.moment),
                    closely=True,
                )
                opened.callback(increment.close)
                opened.enter_context(parent_locked(increment, self.config.lock_timeout))
                self.increment, self._opened = increment, opened.pop_all()
        except BaseNeededError as reason:
            log.info("base_needed", reason=str(reason))
            if reason.is_fault:
                self.warnings = (f"the uploads are complete in this backup, since {reason}",)
            written = self.pending.partial.stat().st_size  # the dump, which is in the room that is taken already
            self.check_space(max(0, self._base.expected_bytes - written))
        self.is_settled = True

    def note(self, written: Written) -> None:
        """Bring the cache up to the archive."""
        if self.increment:
            self.increment.publish(written.content, written.digest)
        else:
            self._base.note(written)

    def close(self) -> None:
        """Close the uploads and the cache, and let the parent and other incrementals go."""
        self._opened.close()

    @property
    def _base(self) -> Base:
        return Base(
            repository=self.repository,
            components=self.components,
            kind=BackupType.FULL,
            is_chain_locked=False,
            is_followed=True,
        )


def complete_since(config: BackupConfig, moment: datetime) -> datetime | None:
    """The last time at or before a moment that a complete backup was due at; nothing where there is no schedule."""
    if not config.schedule_complete:
        return None
    return last_slot(config.schedule_complete, config.time_zone, moment)
