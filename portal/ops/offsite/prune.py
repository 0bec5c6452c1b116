"""Removes copies that the off-site rules do not keep, on a host whose credentials permit that.

plan       decide with a reason about every archive that has a copy; chains stay complete
look       skip copies with locked objects
remove     remove the commit first, so that an incomplete copy never counts as one; then the segments
sweep      remove copies replaced by a newer one of the same archive, and segments without a commit
WAL        remove WAL older than every base backup that still has a copy, and superseded parts (`wal`)
"""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from portal.ops.errors import ObjectAbsentError, OpsError, StoreDeniedError
from portal.ops.model import FORMAT_VERSION
from portal.ops.offsite.absent import entry_of
from portal.ops.offsite.layout import parse_stem
from portal.ops.offsite.ledger import Ledger
from portal.ops.offsite.listing import Listing, commit_stems, list_copies, read_commit
from portal.ops.offsite.result import DestinationsResult
from portal.ops.offsite.signing import Trust
from portal.ops.offsite.wal import plan_wal, remove_wal
from portal.ops.repository.access_log import Action, Observer, Witness
from portal.ops.repository.repository import Repository
from portal.ops.retention.plan import Decision, RetentionPlan, plan
from portal.ops.retention.policy import RetentionPolicy, own_rules
from portal.ops.runtime.logs import engine_log
from portal.ops.runtime.progress import Clock, utc_now

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from portal.ops.offsite.commit import Commit
    from portal.ops.offsite.config import OffsiteConfig
    from portal.ops.offsite.wal import WalPlan
    from portal.ops.settings.destination import Destination
    from portal.ops.storage.backend import Backend, StoredObject

log = engine_log("portal.ops.offsite.prune")

_UNFINISHED_AGE: Final = timedelta(days=7)
"""Segments without a commit, and temporary files, may belong to a copy in progress; after this time they do not."""


@dataclass(frozen=True, kw_only=True)
class OffsitePruneResult(DestinationsResult):
    """The result of a prune of copies.

    Arguments:
        decisions: by destination, what is kept and removed, with reasons.
        removed: removed copies, or those that would be: destination and stem.
        spared: copies to be removed that are locked.
        wal: removed WAL objects, or those that would be.
    """

    dry_run: bool = False
    decisions: tuple[tuple[str, Decision], ...] = ()
    removed: tuple[tuple[str, str], ...] = ()
    freed_bytes: int = 0
    spared: tuple[str, ...] = ()
    swept: tuple[str, ...] = ()
    wal: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The result as types of JSON."""
        return {
            "success": self.success,
            "dry_run": self.dry_run,
            "removed": [{"destination": place, "copy": stem} for place, stem in self.removed],
            "freed_bytes": self.freed_bytes,
            "kept": sum(decision.keep for _, decision in self.decisions),
            "spared": list(self.spared),
            "swept": list(self.swept),
            "wal_removed": len(self.wal),
            "warnings": list(self.warnings),
            "error": self.error,
            "errors": list(self.errors),
            "duration_seconds": round(self.duration_seconds, 3),
            "format_version": FORMAT_VERSION,
        }


def offsite_policy(policy: RetentionPolicy, rules: Mapping[str, Mapping[str, int]]) -> RetentionPolicy:
    """The off-site rules: the given ones, and the repository's for other types.

    Raises:
        ConfigurationError: a rule keeps nothing, or is invalid.
    """
    return replace(policy, rules={**policy.rules, **own_rules(rules, policy.rule)})


@dataclass(kw_only=True)
class _ResultBuilder:
    """Builds a result."""

    dry_run: bool
    decisions: list[tuple[str, Decision]] = field(default_factory=list)
    removed: list[tuple[str, str]] = field(default_factory=list)
    freed_bytes: int = 0
    spared: list[str] = field(default_factory=list)
    swept: list[str] = field(default_factory=list)
    wal: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    faults: list[OpsError] = field(default_factory=list)


class OffsitePruneJob:
    """Prunes the copies of all destinations.

    Arguments:
        policy: the repository's policy, on which the off-site rules are based.
        actor: the requester, for the access log.
        observer: receives the result.
    """

    def __init__(
        self,
        config: OffsiteConfig,
        policy: RetentionPolicy,
        *,
        clock: Clock = utc_now,
        actor: str | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._config = config
        self._policy = offsite_policy(policy, config.settings.rules)
        self._repository = Repository(config.local_path, lock_timeout=config.lock_timeout)
        self._witness = Witness(repository=self._repository, who=actor, clock=clock, observer=observer)
        self._clock = clock

    def run(self, *, dry_run: bool = False) -> OffsitePruneResult:
        """Prune every destination; every error becomes a result.

        Arguments:
            dry_run: only decide.
        """
        started = time.monotonic()
        builder = _ResultBuilder(dry_run=dry_run)
        try:
            destinations = self._config.require_destinations()
        except OpsError as error:
            destinations = ()
            builder.faults.append(error)
        for destination in destinations:
            try:
                self._prune(destination, builder)
            except OpsError as error:
                builder.faults.append(error)
                log.error("offsite_prune_failed", destination=destination.shown, error=str(error))
        return OffsitePruneResult(
            dry_run=dry_run,
            decisions=tuple(builder.decisions),
            removed=tuple(builder.removed),
            freed_bytes=builder.freed_bytes,
            spared=tuple(builder.spared),
            swept=tuple(builder.swept),
            wal=tuple(builder.wal),
            warnings=tuple(dict.fromkeys(builder.warnings)),
            faults=tuple(builder.faults),
            duration_seconds=time.monotonic() - started,
        )

    def _prune(self, destination: Destination, builder: _ResultBuilder) -> None:
        """Prune one destination, while nothing is copied there: a new copy would need what is removed."""
        ledger = Ledger(self._repository, destination)
        with ExitStack() as held:
            if not builder.dry_run:
                held.enter_context(ledger.locked_if_kept(self._config.lock_timeout))
            backend = held.enter_context(closing(self._config.open(destination)))
            listing = list_copies(backend, trust=Trust.of(self._config, destination))
            decided = plan([entry_of(commit) for commit in listing.newest().values()], self._policy, self._clock())
            builder.warnings += decided.warnings
            builder.warnings += (
                f"the copy {stem} in {destination.shown} is left there: {why}" for stem, why in listing.damaged.items()
            )
            builder.warnings += (
                f"the copy {stem} in {destination.shown} was not made by this repository; it is left there"
                for stem in listing.foreign
            )
            builder.decisions += ((destination.shown, decision) for decision in decided.decisions)
            gone = self._doomed(listing, decided)
            remains = self._remains(backend, listing)
            if builder.dry_run:
                builder.removed += ((destination.shown, str(commit.stem)) for commit in gone)
                builder.freed_bytes += sum(commit.stored_bytes for commit in gone)
                builder.swept += remains
                planned = self._plan_wal(backend, listing, gone)
                builder.warnings += filter(None, [planned.warning])
                self._count_wal(builder, (one for some in planned.series for one in some))
            else:
                with self._witness.watching(
                    Action.OFFSITE_PRUNE, destination.shown, destination=destination.shown
                ) as seen:
                    before = len(builder.removed)
                    try:
                        gone = self._without_needed(backend, listing, gone, builder)
                        self._remove(backend, destination, gone, builder)
                        self._sweep(backend, remains, builder)
                        removed = {stem for place, stem in builder.removed[before:] if place == destination.shown}
                        planned = self._plan_wal(backend, listing, [one for one in gone if str(one.stem) in removed])
                        builder.warnings += filter(None, [planned.warning])
                        seen.details["wal_removed"] = self._remove_wal(backend, destination, planned, builder)
                    finally:
                        seen.details["removed"] = [stem for _, stem in builder.removed[before:]]

    def _plan_wal(self, backend: Backend, listing: Listing, gone: list[Commit]) -> WalPlan:
        doomed = {one.stem for one in gone}
        kept = [one for one in listing.commits if one.stem not in doomed]
        return plan_wal(backend, self._repository, kept, (*listing.damaged, *listing.foreign), self._clock())

    def _remove_wal(self, backend: Backend, destination: Destination, planned: WalPlan, builder: _ResultBuilder) -> int:
        removed, spared = remove_wal(backend, destination, planned, self._clock())
        self._count_wal(builder, removed)
        builder.spared += spared
        return len(removed)

    def _count_wal(self, builder: _ResultBuilder, removed: Iterable[StoredObject]) -> None:
        for one in removed:
            builder.wal.append(one.name)
            builder.freed_bytes += one.size

    def _doomed(self, listing: Listing, decided: RetentionPlan) -> list[Commit]:
        """The copies to remove, children before parents: those that the rules do not keep, and replaced ones."""
        newest = listing.newest()
        replaced = [one for one in listing.commits if newest[one.backup_id] is not one]
        by_archive: defaultdict[str, list[Commit]] = defaultdict(list)
        for commit in listing.commits:
            by_archive[commit.backup_id].append(commit)
        ruled_out = [commit for one in decided.removals for commit in by_archive[one.entry.name]]
        stems = {commit.stem for commit in ruled_out}
        return [*ruled_out, *(commit for commit in replaced if commit.stem not in stems)]

    def _without_needed(
        self, backend: Backend, listing: Listing, gone: list[Commit], builder: _ResultBuilder
    ) -> list[Commit]:
        """The copies to remove, without those that a copy needs which another machine has made since the listing."""
        known = {str(commit.stem) for commit in listing.commits} | {*listing.damaged, *listing.foreign}
        new = [
            commit
            for stem in commit_stems(backend)
            if str(stem) not in known and (commit := read_commit(backend, stem))
        ]
        newest, needed = listing.newest(), set[str]()
        for commit in new:
            name = commit.parent
            while name is not None and name not in needed:
                needed.add(name)
                name = newest[name].parent if name in newest else None
        builder.spared += (f"{commit.stem}: a new copy needs it" for commit in gone if commit.backup_id in needed)
        return [commit for commit in gone if commit.backup_id not in needed]

    def _remove(self, backend: Backend, destination: Destination, gone: list[Commit], builder: _ResultBuilder) -> None:
        """Remove copies; one that cannot be removed is spared, with all that it needs.

        Raises:
            StoreDeniedError: the credentials do not permit any removal.
            StoreUnreachableError: the store does not answer.
        """
        needed_by_spared: set[str] = set()
        denied: list[StoreDeniedError] = []
        count = 0
        for commit in gone:
            if commit.backup_id in needed_by_spared:
                why = "a spared copy needs it"
            else:
                why = self._removed(backend, commit, denied)
            if not why:
                count += 1
                builder.removed.append((destination.shown, str(commit.stem)))
                builder.freed_bytes += commit.stored_bytes
                log.info("offsite_copy_removed", stem=str(commit.stem), destination=destination.shown)
                continue
            builder.spared.append(f"{commit.stem}: {why}")
            needed_by_spared |= {name for name in (commit.parent, commit.base) if name}
        if denied and not count:
            raise denied[0]
        ledger = Ledger(self._repository, destination)
        if ledger.directory.exists() and ledger.can_be_kept:
            stems = {stem for place, stem in builder.removed if place == destination.shown}
            ledger.replace(one for one in ledger.copies().values() if str(one.stem) not in stems)

    def _removed(self, backend: Backend, commit: Commit, denied: list[StoreDeniedError]) -> str:
        """Remove a copy; return a reason if it is locked or the store refuses.

        Arguments:
            denied: receives the store's refusal.
        """
        try:
            until = backend.head(commit.stem.commit).locked_until
            if until is not None and until > self._clock():
                return f"it is locked until {until:%Y-%m-%d}"
            backend.delete(commit.stem.commit)  # the copy is gone now; the rest is cleaning up
        except ObjectAbsentError:
            pass  # another prune has removed it
        except StoreDeniedError as error:
            denied.append(error)
            return error.message
        for one in list(backend.list(commit.stem.directory)):
            try:
                backend.delete(one.name)
            except StoreDeniedError as error:
                log.warning("offsite_segment_locked", name=one.name, error=error.message)
        return ""

    def _remains(self, backend: Backend, listing: Listing) -> list[str]:
        """The objects of copies without a commit that have not changed for a week, and temporary files as old.

        Their writers are gone: one that lives would have written meanwhile, or given up.
        """
        committed = {str(commit.stem) for commit in listing.commits} | {*listing.damaged, *listing.foreign}
        newest: dict[str, Any] = {}
        objects: defaultdict[str, list[str]] = defaultdict(list)
        for one in backend.list(""):
            directory = one.name.partition("/")[0]
            if "/" in one.name and directory not in committed and parse_stem(directory):
                objects[directory].append(one.name)
                newest[directory] = max(one.modified, newest.get(directory, one.modified))
        old = [stem for stem in sorted(objects) if self._clock() - newest[stem] > _UNFINISHED_AGE]
        abandoned = [one.name for one in backend.unfinished() if self._clock() - one.modified > _UNFINISHED_AGE]
        return [name for stem in old for name in objects[stem]] + abandoned

    def _sweep(self, backend: Backend, remains: list[str], builder: _ResultBuilder) -> None:
        for name in remains:
            try:
                backend.delete(name)
                builder.swept.append(name)
            except StoreDeniedError as error:
                builder.spared.append(f"{name}: {error.message}")
