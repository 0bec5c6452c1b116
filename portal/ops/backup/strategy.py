"""The strategies of a backup: everything, or changes since a parent."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from portal.ops.backup.increment import CACHE, BaseNeededError, parent_locked, plan_increment, remember
from portal.ops.chains.lineage import is_incremental
from portal.ops.errors import ArchiveAbsentError, OpsError
from portal.ops.model import BackupType, Component
from portal.ops.pitr.base_chain import FullBaseNeededError, find_parent
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
    """The strategy of one backup; to be closed."""

    @property
    def components(self) -> tuple[Component, ...]:
        """The components of the archive."""

    @property
    def increment(self) -> Increment | None:
        """The changes of the uploads since the parent; None if they are archived completely."""

    @property
    def is_settled(self) -> bool:
        """True if `increment` is final already."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings about the choice."""

    def reach_uploads(self) -> None:
        """Decide how to take the uploads, when the database has been read."""

    @property
    def base_parent(self) -> BaseParent | None:
        """The base backup that an incremental one follows."""

    @property
    def expected_bytes(self) -> int:
        """About how many bytes the archive will have."""

    def note(self, written: Written) -> None:
        """Record the published archive for later incrementals."""

    def close(self) -> None:
        """Release everything it holds."""


@dataclass(frozen=True, kw_only=True)
class Base:
    """A complete backup.

    Arguments:
        repository: the repository of the archive.
        components: the components to archive.
        kind: the type of the backup.
        is_chain_locked: whether incrementals are being kept waiting.
        is_followed: whether other archives will follow it in any case.
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
        """Do nothing: all uploads are taken."""

    @property
    def expected_bytes(self) -> int:
        """The size of the last complete backup of the type."""
        alike = [one for one in self.repository.archives() if one.backup_id and one.backup_id.type is self.kind]
        return next((one.size for one in alike if not is_incremental(one.path)), 0)

    def note(self, written: Written) -> None:
        """Fill the cache if there is one; if that fails, the next incremental does it."""
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
        """Do nothing."""


@dataclass(frozen=True, kw_only=True)
class Incremental:
    """The changes since a parent.

    Arguments:
        increment: the parent and the changes.
        opened: closes everything that they use.
    """

    increment: Increment
    opened: ExitStack
    components: tuple[Component, ...] = (Component.MEDIA,)
    base_parent: None = None
    is_settled: bool = True
    warnings: tuple[str, ...] = ()

    def reach_uploads(self) -> None:
        """Do nothing: the uploads have been examined."""

    @property
    def expected_bytes(self) -> int:
        """The size of the changed files."""
        return self.increment.delta.content_bytes

    def note(self, written: Written) -> None:
        """Update the cache for the archive."""
        self.increment.publish(written.content, written.digest)

    def close(self) -> None:
        """Close uploads and cache, and unlock the parent."""
        self.opened.close()


@dataclass(frozen=True, kw_only=True)
class IncrementalCluster:
    """The changes of the cluster since another base backup.

    Arguments:
        base_parent: the other base backup.
        held: keeps its chain from being pruned.
    """

    base_parent: BaseParent
    held: ExitStack
    components: tuple[Component, ...] = (Component.CLUSTER,)
    increment: None = None
    is_settled: bool = True
    warnings: tuple[str, ...] = ()

    def reach_uploads(self) -> None:
        """Do nothing: the archive has no uploads."""

    @property
    def expected_bytes(self) -> int:
        """The most bytes that the archive takes."""
        return self.base_parent.expected_bytes

    def note(self, written: Written) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Unlock the chain."""
        self.held.close()


def plan_incremental_cluster(repository: Repository, lock_timeout: float) -> IncrementalCluster:
    """Find the base backup that an incremental one follows, and keep its chain from being pruned.

    Raises:
        FullBaseNeededError: there is no base backup to follow, or it was removed meanwhile.
        OpsError: the repository cannot be read, or an archive stayed locked.
    """
    parent = find_parent(repository)
    with ExitStack() as held:
        for ancestor in parent.line:
            try:
                held.enter_context(archive_lock(ancestor.path, lock_timeout))
            except ArchiveAbsentError as error:
                raise FullBaseNeededError(error.message) from error
        return IncrementalCluster(base_parent=parent, held=held.pop_all())


def plan_incremental(
    repository: Repository,
    config: BackupConfig,
    changed: Sequence[str] | None,
    pending: PendingArchive,
    advance: Callable[[int], None],
) -> Incremental:
    """Find the parent of an incremental and the changes since.

    Arguments:
        changed: the only paths to examine; None for the whole tree.
        pending: the archive to be written.
        advance: called with the number of bytes after each file is read for comparison.

    Raises:
        BaseNeededError: there is no archive to follow.
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
    """Complete database and audit log, and the changes of the uploads since the parent.

    Other incrementals wait while the uploads are examined and until the commit, but not during the dump. Without a
    parent, the uploads are taken completely; if there should have been one, a warning says why.

    Arguments:
        repository: the repository of the archive.
        config: the sources, and the limits of a chain.
        components: the components to archive.
        moment: the time of the request, or the slot.
        pending: the archive to be written.
        check_space: refuses what does not fit, by the bytes that will still be written.
        advance: called with the number of bytes after each file is read for comparison.
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
        """Find the changes.

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
            written = self.pending.partial.stat().st_size  # the dump, which is on the disk already
            self.check_space(max(0, self._base.expected_bytes - written))
        self.is_settled = True

    def note(self, written: Written) -> None:
        """Update the cache for the archive."""
        if self.increment:
            self.increment.publish(written.content, written.digest)
        else:
            self._base.note(written)

    def close(self) -> None:
        """Close uploads and cache, and unlock the parent and other incrementals."""
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
    """The last time, up to a moment, at which a complete backup was due; None without a schedule."""
    if not config.schedule_complete:
        return None
    return last_slot(config.schedule_complete, config.time_zone, moment)
