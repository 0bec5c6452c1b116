"""Copies missing archives off-site.

    look      list the copies in the store, by the names of commits
    choose    select complete archives of the configured types that the off-site rules keep, parents first
    send      send each of them (`sending`)

A failure at one destination does not affect the others, or the next attempt. Nor does an archive that cannot be copied:
the others are, except those that need it (ADR 206).
"""

from __future__ import annotations

import time
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from portal.ops.errors import (
    ArchiveAbsentError,
    BusyError,
    ConfigurationError,
    OpsError,
    StorageError,
    StoreFullError,
    StoreUnreachableError,
)
from portal.ops.hints import Advice
from portal.ops.model import FORMAT_VERSION, SUFFIX
from portal.ops.offsite.absent import Absent, entry_of
from portal.ops.offsite.beside import archive_beside
from portal.ops.offsite.layout import Stem, stem_of_commit
from portal.ops.offsite.ledger import CopyRecord, Ledger
from portal.ops.offsite.listing import read_commit
from portal.ops.offsite.missing import line_of_entry, unexpectedly_gone, wanted_copies
from portal.ops.offsite.prune import offsite_policy
from portal.ops.offsite.result import DestinationsResult
from portal.ops.offsite.sending import AlreadyCopiedError, Sender
from portal.ops.offsite.signing import Trust, find_key, own_key
from portal.ops.repository.access_log import Action, Observer, Outcome, Witness
from portal.ops.repository.catalogue import Catalogue
from portal.ops.repository.locks import archive_lock
from portal.ops.repository.repository import Repository
from portal.ops.runtime.logs import engine_log
from portal.ops.runtime.progress import Clock, Meter, Progress, utc_now
from portal.ops.storage.objects import recipients_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from portal.ops.offsite.commit import Commit
    from portal.ops.offsite.config import OffsiteConfig
    from portal.ops.repository.entry import Entry
    from portal.ops.retention.policy import RetentionPolicy
    from portal.ops.settings.destination import Destination
    from portal.ops.storage.backend import Backend
    from portal.ops.storage.signature import SigningKey

log = engine_log("portal.ops.offsite.copy")

_ONE_RECIPIENT: Final = (
    "copies are encrypted for one recipient only: whoever loses that key loses them; add a second one, and keep its "
    "identity offline"
)
_UNENCRYPTED: Final = "copies are not encrypted: BACKUP_OFFSITE_ENCRYPTION is off"


@dataclass(frozen=True, kw_only=True)
class CopyResult(DestinationsResult):
    """The result of a copy, over all destinations.

    Arguments:
        copied: the copies made: destination and archive.
        missing: archives without a copy, by destination.
        failed: the archives that could not be copied: destination and archive.
    """

    copied: tuple[tuple[str, str], ...] = ()
    stored_bytes: int = 0
    missing: dict[str, tuple[str, ...]] = field(default_factory=dict)
    failed: tuple[tuple[str, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The result as types of JSON."""
        return {
            "success": self.success,
            "copied": [{"destination": place, "backup_id": name} for place, name in self.copied],
            "stored_bytes": self.stored_bytes,
            "missing": {place: list(names) for place, names in self.missing.items()},
            "failed": [{"destination": place, "backup_id": name} for place, name in self.failed],
            "warnings": list(self.warnings),
            "error": self.error,
            "errors": list(self.errors),
            "duration_seconds": round(self.duration_seconds, 3),
            "format_version": FORMAT_VERSION,
        }


@dataclass(kw_only=True)
class _Done:
    """The copies made to one destination so far.

    Arguments:
        failed: the archives that could not be copied, with the reasons.
        is_logged: whether the access log has the failure already.
        has_store_failed: whether the store refused the last archive.
    """

    missing: list[Entry]
    copied: list[CopyRecord] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    failed: dict[str, OpsError] = field(default_factory=dict)
    faults: list[OpsError] = field(default_factory=list)
    is_logged: bool = False
    has_store_failed: bool = False

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Note the failure of one archive, so that the others are still copied.

        Raises:
            StorageError: the store is away or full, or refuses a second archive in a row, so the others would fail too.
        """
        self.is_logged = True
        try:
            yield
        except OpsError as error:
            self.failed[name] = error
            is_storage = isinstance(error, StorageError)
            is_over = isinstance(error, StoreUnreachableError | StoreFullError) or self.has_store_failed
            if is_storage and is_over:
                raise
            self.has_store_failed = is_storage
            self.faults.append(error)
        else:
            self.has_store_failed = False

    def refuse_orphan(self, entry: Entry) -> None:
        """Raise an error for an archive that needs one that could not be copied, of the same class as that error."""
        if entry.parent is not None and (fault := self.failed.get(entry.parent)):
            raise type(fault)(
                f"{entry.name} was not copied: it needs {entry.parent}, which could not be copied",
                hint=f"If that archive cannot be repaired, make a full backup with {Advice.BACK_UP_FULL}.",
            )


class CopyJob:
    """Copies archives of a repository to its destinations.

    Arguments:
        policy: the repository's retention policy, on which the off-site rules are based.
        progress: receives progress reports.
        actor: the requester, for the access log; by default the user of this process.
        observer: receives each copy's result.
    """

    def __init__(
        self,
        config: OffsiteConfig,
        policy: RetentionPolicy,
        *,
        clock: Clock = utc_now,
        progress: Progress | None = None,
        actor: str | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._config = config
        self._policy = offsite_policy(policy, config.settings.rules)
        self._repository = Repository(config.local_path, lock_timeout=config.lock_timeout)
        self._witness = Witness(repository=self._repository, who=actor, clock=clock, observer=observer)
        self._clock = clock
        self._progress = progress

    def run(self, archive: str | None = None, *, again: bool = False) -> CopyResult:
        """Copy everything missing, or one archive with all that it needs; every error becomes a result.

        Arguments:
            archive: the archive's path, its id or the start of one, or ``latest``.
            again: make another copy for other recipients: of one archive, or of all. An archive that the repository no
                longer has is fetched for that with the identity, unless it is already encrypted for the present
                recipients.
        """
        started = time.monotonic()
        result = CopyResult(warnings=tuple(self._warnings()))
        try:
            destinations = self._config.require_destinations()
            recipients = recipients_of(self._config.settings)
            is_first = find_key(self._repository) is None and not self._config.settings.signers
            entries = Catalogue(self._repository).entries()
            wanted, absent = self._chosen(entries, archive, again=again)
        except OpsError as error:
            return replace(result, faults=(error,), duration_seconds=time.monotonic() - started)
        for destination in destinations:
            result = self._to_destination(destination, recipients, wanted, absent, is_first, result, again=again)
        return replace(result, duration_seconds=time.monotonic() - started)

    def _warnings(self) -> Iterable[str]:
        settings = self._config.settings
        if not settings.encryption:
            yield _UNENCRYPTED
        elif len(settings.recipients) == 1:
            yield _ONE_RECIPIENT

    def _chosen(self, entries: Sequence[Entry], archive: str | None, *, again: bool) -> tuple[list[Entry], Absent]:
        """The archives to copy from the repository, and those to find among the copies."""
        here = frozenset(entry.name for entry in entries)
        try:
            return self._wanted(entries, archive), Absent(here=here, is_wanted=again and archive is None)
        except ArchiveAbsentError:
            if not again:
                raise
            return [], Absent(here=here, is_wanted=True, name=archive)

    def _wanted(self, entries: Sequence[Entry], archive: str | None) -> list[Entry]:
        """The archives that should have copies: parents before children, newer chains before older ones."""
        by_name = {entry.name: entry for entry in entries}
        if archive is not None:
            found = self._repository.find(archive)
            entry = by_name.get(found.name)
            if entry is None or entry.type is None or found.path.parent != self._repository.path:
                raise ConfigurationError(
                    f"{found.path} is no archive of {self._repository.path} with an id as its name",
                    hint="Only archives of the repository are copied; 'list' shows them.",
                )
            if entry.fault:
                raise ConfigurationError(f"{entry.name} is not copied: {entry.fault}", hint="Copy an intact archive.")
            return list(line_of_entry(entry, by_name))
        return wanted_copies(self._config, self._policy, entries, self._clock())

    def _to_destination(
        self,
        destination: Destination,
        recipients: tuple[str, ...],
        wanted: Sequence[Entry],
        absent: Absent,
        is_first: bool,
        so_far: CopyResult,
        *,
        again: bool,
    ) -> CopyResult:
        """Copy what is missing at one destination."""
        ledger = Ledger(self._repository, destination)
        done = _Done(missing=list(wanted))
        try:
            with ledger.locked(self._config.lock_timeout):
                self._copy_missing(ledger, destination, recipients, wanted, absent, is_first, done, again=again)
        except BusyError as error:
            done.faults.append(error)
        except OpsError as error:
            done.faults.append(error)
            if not done.is_logged:
                self._witness.saw(
                    Action.OFFSITE_COPY,
                    destination.shown,
                    Outcome.of(error.exit_code),
                    destination=destination.shown,
                    error=str(error),
                )
            log.error("offsite_copy_failed", destination=destination.shown, error=str(error))
        return replace(
            so_far,
            copied=(*so_far.copied, *((destination.shown, record.stem.backup_id) for record in done.copied)),
            stored_bytes=so_far.stored_bytes + sum(record.stored_bytes for record in done.copied),
            failed=(*so_far.failed, *((destination.shown, name) for name in done.failed)),
            missing={**so_far.missing, destination.shown: tuple(entry.name for entry in done.missing)},
            warnings=(*so_far.warnings, *done.warnings),
            faults=(*so_far.faults, *done.faults),
        )

    def _copy_missing(
        self,
        ledger: Ledger,
        destination: Destination,
        recipients: tuple[str, ...],
        wanted: Sequence[Entry],
        absent: Absent,
        is_first: bool,
        done: _Done,
        *,
        again: bool,
    ) -> None:
        """Copy archives one after the other and note each; if the store fails, the rest stays missing."""
        with closing(self._config.open(destination, is_writing=True)) as backend:
            known = ledger.copies()
            # Without key and signers, existing copies count as ours; from now on, only signed ones do.
            trust = Trust(known=known) if is_first else Trust.of(self._config, destination)
            found = reconcile(backend, ledger, trust)
            key = own_key(self._repository)
            done.warnings += _gone(unexpectedly_gone(known, found, self._policy, self._clock()), destination)
            there = {stem.backup_id for stem in found}
            done.missing = [entry for entry in wanted if again or entry.name not in there]
            afar = absent.among(backend, trust, recipients)
            if afar and not self._config.settings.identity_file and absent.name is None:
                done.warnings.append(_unopened(afar, destination))
                afar = []
            sizes = [*(entry.size for entry in done.missing), *(2 * commit.archive_size for commit in afar)]
            sender = self._sender(backend, ledger, recipients, sum(sizes), key, trust)
            for entry in list(done.missing):
                with ExitStack() as held:
                    fault = self._hold(entry, held)
                    if isinstance(fault, ArchiveAbsentError):
                        self._repository.refuse_absent()
                        done.missing.remove(entry)
                        continue
                    with done.attempt(entry.name), self._sent(sender, entry.name, destination) as take:
                        if fault:
                            raise fault
                        if entry.parent not in there:
                            done.refuse_orphan(entry)
                        done.copied.append(take(self._copy(sender, entry, again=again)))
                        done.missing.remove(entry)
            for commit in afar:
                with done.attempt(commit.backup_id), self._sent(sender, commit.backup_id, destination) as take:
                    done.copied.append(take(self._copy_anew(sender, commit)))

    def _sender(
        self,
        backend: Backend,
        ledger: Ledger,
        recipients: tuple[str, ...],
        total: int,
        key: SigningKey,
        trust: Trust,
    ) -> Sender:
        meter = Meter(self._progress)
        meter.phase = "copy"
        meter.expect = lambda: total
        return Sender(
            backend=backend,
            ledger=ledger,
            recipients=recipients,
            rate=self._config.settings.rate,
            key=key,
            trust=trust,
            clock=self._clock,
            advance=meter.advance,
        )

    def _hold(self, entry: Entry, held: ExitStack) -> OpsError | None:
        """Keep an archive from being pruned; return why that failed.

        Arguments:
            held: what keeps it.

        Returns:
            An `ArchiveAbsentError` if it was removed while others were copied, such as by a prune.
        """
        try:
            path = self._repository.path / f"{entry.name}{SUFFIX}"
            held.enter_context(archive_lock(path, self._config.lock_timeout))
        except OpsError as error:
            return error
        return None

    def _copy(self, sender: Sender, entry: Entry, *, again: bool) -> Commit:
        """Copy one archive, which the caller keeps locked."""
        try:
            return sender.send(self._repository.find(entry.name), entry, again=again)
        except AlreadyCopiedError as there:
            return there.commit

    def _copy_anew(self, sender: Sender, commit: Commit) -> Commit:
        """Copy an archive of which only a copy is left, for the present recipients."""
        with archive_beside(self._config, self._repository, sender.backend, commit, sender.advance) as path:
            return sender.send(self._repository.find(path), entry_of(commit), again=True)

    @contextmanager
    def _sent(self, sender: Sender, name: str, destination: Destination) -> Iterator[Callable[[Commit], CopyRecord]]:
        """Record a copy in access log, ledger and log; the returned function takes the commit."""
        with self._witness.watching(Action.OFFSITE_COPY, name, destination=destination.shown) as seen:
            started = time.monotonic()

            def take(commit: Commit) -> CopyRecord:
                record = CopyRecord.of(commit)
                sender.ledger.add(record)
                sender.ledger.forget_pending(name)
                seen.details["bytes"] = record.stored_bytes
                log.info(
                    "offsite_copied",
                    backup_id=name,
                    destination=destination.shown,
                    bytes=record.stored_bytes,
                    seconds=round(time.monotonic() - started, 3),
                )
                return record

            yield take


def _unopened(commits: Sequence[Commit], destination: Destination) -> str:
    """A warning about copies for other recipients that cannot be decrypted here."""
    return (
        f"{len(commits)} copies in {destination.shown} are of archives that are no longer here, and stay encrypted "
        "as they are: set BACKUP_ENCRYPTION_IDENTITY_FILE to have them copied again"
    )


def _gone(unexpected: Iterable[Stem], destination: Destination) -> list[str]:
    """A warning about lost copies that the off-site rules keep."""
    names = sorted(map(str, unexpected))
    if not names:
        return []
    log.warning("offsite_copies_gone", destination=destination.shown, count=len(names))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return [
        f"copies in {destination.shown} are gone: {', '.join(names[:3])}{more}; the off-site rules would "
        "keep them, so look for them with 'offsite list --as-of TIME'"
    ]


def reconcile(backend: Backend, ledger: Ledger, trust: Trust) -> dict[Stem, CopyRecord]:
    """List the copies in a store by the names of commits, and update the ledger.

    Raises:
        StorageError: the store cannot be listed.
    """
    known = ledger.copies()
    found: dict[Stem, CopyRecord] = {}
    for one in backend.list_top():
        stem = stem_of_commit(one.name)
        if stem is None:
            continue
        if stem in known:
            found[stem] = known[stem]
        elif (commit := read_commit(backend, stem)) and trust.accepts(commit):
            found[stem] = CopyRecord.of(commit)
    if found != known and ledger.can_be_kept:
        ledger.replace(found.values())
    return found
