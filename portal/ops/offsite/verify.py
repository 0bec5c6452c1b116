"""Verifies copies: by the store's own digests, without an identity; more thoroughly by reading them.

checksum   every segment exists with the size and SHA-256 in the commit; nothing is downloaded if the store has digests
           of its own
contents   the archive is fetched, decrypted, verified, and removed again
dump       the same, with the database's dump decoded to its end
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Any, Final

from portal.ops.errors import (
    ArchiveAbsentError,
    ConfigurationError,
    NotIntactError,
    ObjectAbsentError,
    OpsError,
    StoreUnreachableError,
)
from portal.ops.model import FORMAT_VERSION, VerifyLevel
from portal.ops.offsite.beside import archive_beside
from portal.ops.offsite.layout import parse_stem
from portal.ops.offsite.ledger import CopyRecord, Ledger
from portal.ops.offsite.listing import FOREIGN, PREFIX, is_removed, list_copies
from portal.ops.offsite.missing import unexpectedly_gone
from portal.ops.offsite.signing import Trust
from portal.ops.repository.access_log import Action, Observer, Outcome, Witness
from portal.ops.repository.repository import Repository
from portal.ops.runtime.logs import engine_log
from portal.ops.runtime.progress import Clock, Meter, Progress, available_cores, utc_now
from portal.ops.verify.verify import Verifier

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from portal.ops.offsite.commit import Commit
    from portal.ops.offsite.config import OffsiteConfig
    from portal.ops.offsite.layout import Stem
    from portal.ops.offsite.listing import Listing
    from portal.ops.retention.policy import RetentionPolicy
    from portal.ops.runtime.progress import Advance
    from portal.ops.settings.destination import Destination
    from portal.ops.storage.backend import Backend

    _Choose = Callable[[Destination, Listing], list[Commit]]

log = engine_log("portal.ops.offsite.verify")

_MOST_DAMAGES: Final = 20
_MOST_RECORDED: Final = 10_000
_MOST_FOREIGN: Final = 20
"""Anyone who can write to the store can put foreign copies there, as many as they like."""

_ROTATION: Final = 7
_GONE: Final = "it was copied from here, and its commit is gone; if no prune removed it, look for it with --as-of"


@dataclass(frozen=True, kw_only=True)
class CopyFinding:
    """The result for one copy.

    Arguments:
        stem: the stem of the copy.
        damages: the damage found.
        is_downloaded: whether the copy was downloaded; unnecessary if the store has digests of its own.
    """

    destination: str
    stem: str
    backup_id: str
    level: VerifyLevel
    damages: tuple[str, ...] = ()
    is_downloaded: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The result as types of JSON."""
        return {
            "destination": self.destination,
            "copy": self.stem,
            "backup_id": self.backup_id,
            "level": self.level.value,
            "intact": not self.damages,
            "damages": list(self.damages),
            "downloaded": self.is_downloaded,
        }


@dataclass(frozen=True, kw_only=True)
class OffsiteVerification:
    """The results for all verified copies.

    Arguments:
        faults: why copies or destinations could not be verified.
    """

    findings: tuple[CopyFinding, ...]
    level: VerifyLevel
    faults: tuple[OpsError, ...] = ()
    duration_seconds: float = 0.0

    @property
    def intact(self) -> bool:
        """True if everything was verified, and no damage was found."""
        return not self.faults and not any(one.damages for one in self.findings)

    @property
    def exit_code(self) -> int:
        """The exit code for a program: damage counts more than what could not be verified."""
        if any(one.damages for one in self.findings):
            return NotIntactError.exit_code
        return self.faults[0].exit_code if self.faults else 0

    @property
    def error(self) -> str | None:
        """The damage, then the errors with their hints."""
        damage = [self.message] if any(one.damages for one in self.findings) else []
        return "\n".join(dict.fromkeys((*damage, *map(str, self.faults)))) or None

    @property
    def message(self) -> str:
        """The results in a sentence."""
        damaged = [one for one in self.findings if one.damages]
        count = len(self.findings)
        what = "1 copy was" if count == 1 else f"{count} copies were"
        if damaged:
            return f"{len(damaged)} of {count} copies are damaged: " + "; ".join(
                f"{one.stem}: {one.damages[0]}" for one in damaged[:3]
            )
        return f"{what} verified ({self.level}): every segment is as it should be"

    def to_dict(self) -> dict[str, Any]:
        """The results as types of JSON."""
        return {
            "success": self.intact,
            "level": self.level.value,
            "message": self.message,
            "copies": [one.to_dict() for one in self.findings],
            "error": self.error,
            "duration_seconds": round(self.duration_seconds, 3),
            "format_version": FORMAT_VERSION,
        }


class OffsiteVerifyJob:
    """Verifies copies in all destinations.

    Arguments:
        policy: the off-site rules, which tell a pruned copy from a lost one; without them, an absent copy counts as
            lost.
        progress: receives progress reports.
        actor: the requester, for the access log.
        observer: receives each result.
    """

    def __init__(
        self,
        config: OffsiteConfig,
        policy: RetentionPolicy | None = None,
        *,
        clock: Clock = utc_now,
        progress: Progress | None = None,
        actor: str | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._config = config
        self._policy = policy
        self._repository = Repository(config.local_path, lock_timeout=config.lock_timeout)
        self._witness = Witness(repository=self._repository, who=actor, clock=clock, observer=observer)
        self._clock = clock
        self._progress = progress

    def run(self, name: str | None = None, level: VerifyLevel = VerifyLevel.CHECKSUM) -> OffsiteVerification:
        """Verify one copy, or the newest copy of every archive.

        Arguments:
            name: the archive's id or the start of one, or ``latest``; None for all.

        What cannot be verified is among the result's faults, if anything was verified.

        Raises:
            ArchiveAbsentError: the copy was removed while it was verified.
            ConfigurationError: no destination has a copy, or the level is ``drill``.
            IdentityError: the level needs an identity, and none fits any copy.
            StorageError: the store failed.
        """
        if level is VerifyLevel.DRILL:
            raise ConfigurationError(
                "a drill takes more than verifying a copy", hint="Run a drill with 'offsite:<id>' as the archive."
            )
        return self._run(level, partial(self._chosen, name), is_all=name is None)

    def run_rotation(self, level: VerifyLevel = VerifyLevel.CHECKSUM) -> OffsiteVerification:
        """Verify the copies that are due: new ones, and a seventh of the others, those verified longest ago.

        Raises:
            OpsError: as `run`.
        """
        return self._run(level, self._whose_turn, is_all=True)

    def _run(self, level: VerifyLevel, choose: _Choose, *, is_all: bool) -> OffsiteVerification:
        started = time.monotonic()
        findings: list[CopyFinding] = []
        absent: list[ConfigurationError] = []
        faults: list[OpsError] = []
        for destination in self._config.require_destinations():
            try:
                findings += self._verify_destination(destination, level, choose, absent, faults, is_all=is_all)
            except OpsError as error:  # the other destinations are still verified
                faults.append(error)
                log.error("offsite_verify_failed", destination=destination.shown, error=str(error))
        if not findings and (faults or absent):
            raise [*faults, *absent][0]
        if not (findings or is_all):
            raise ArchiveAbsentError("the copy has just been removed", hint="'offsite list' shows the others.")
        return OffsiteVerification(
            findings=tuple(findings),
            level=level,
            faults=tuple(faults),
            duration_seconds=time.monotonic() - started,
        )

    def _verify_destination(
        self,
        destination: Destination,
        level: VerifyLevel,
        choose: _Choose,
        absent: list[ConfigurationError],
        faults: list[OpsError],
        *,
        is_all: bool,
    ) -> list[CopyFinding]:
        """Verify copies in one destination.

        Arguments:
            absent: receives the error if the destination lacks the copy: another one may have it.
            faults: receives the errors of copies that cannot be verified.
        """
        with (
            closing(self._config.open(destination)) as backend,
            self._witness.watching(
                Action.OFFSITE_VERIFY, destination.shown, destination=destination.shown, level=level.value
            ) as seen,
        ):
            known = Ledger(self._repository, destination).copies()  # before the list, which then has all of them
            listing = list_copies(backend, trust=Trust.of(self._config, destination))
            try:
                chosen = choose(destination, listing)
            except ConfigurationError as error:
                absent.append(error)
                return []
            seen.details["copies"] = len(chosen)
            before = len(faults)
            found = self._verify(destination, backend, known, listing, chosen, level, faults, is_all=is_all)
            if new := faults[before:]:
                seen.note(Outcome.of(new[0].exit_code), error=str(new[0]))
                log.error("offsite_verify_failed", destination=destination.shown, error=str(new[0]), faults=len(new))
            return found

    def _chosen(self, name: str | None, _destination: Destination, listing: Listing) -> list[Commit]:
        if name is None:
            return list(listing.newest().values())
        return [listing.find(name.removeprefix(PREFIX))]

    def _whose_turn(self, destination: Destination, listing: Listing) -> list[Commit]:
        turns = Ledger(self._repository, destination).turns()
        copies = listing.newest().values()
        new = [commit for commit in copies if str(commit.stem) not in turns]
        others = sorted((turns[str(one.stem)], str(one.stem), one) for one in copies if str(one.stem) in turns)
        return [*new, *(commit for _, _, commit in others[: ceil(len(others) / _ROTATION)])]

    def _verify(
        self,
        destination: Destination,
        backend: Backend,
        known: Mapping[Stem, CopyRecord],
        listing: Listing,
        chosen: Sequence[Commit],
        level: VerifyLevel,
        faults: list[OpsError],
        *,
        is_all: bool,
    ) -> list[CopyFinding]:
        meter = Meter(self._progress)
        meter.phase = "verify"
        total = sum(one.archive_size for one in chosen)
        meter.expect = lambda: total
        ledger = Ledger(self._repository, destination)
        newest = listing.newest()
        findings = [_broken(stem, destination, level, why) for stem, why in listing.damaged.items() if is_all]
        if is_all:
            findings += [_broken(stem, destination, level, _GONE) for stem in self._gone(known, listing)]
            findings += [_broken(stem, destination, level, FOREIGN) for stem in listing.foreign]
            findings += [
                _broken(str(one.stem), destination, level, fault)
                for one in set(newest.values()) - set(chosen)
                if (fault := listing.chain_fault(one, newest)) and not is_removed(backend, one)
            ]
        verified: list[Commit] = []
        for commit in chosen:
            chain_fault = listing.chain_fault(commit, newest)
            try:
                record = known.get(commit.stem)
                finding = self._verify_copy(backend, commit, level, record, chain_fault, meter.advance)
                if finding is None:
                    continue
                findings.append(finding)
            except StoreUnreachableError as error:
                faults.append(error)
                break  # the other copies cannot be reached either
            except OpsError as error:
                faults.append(error)
            else:
                verified.append(commit)
        if findings:
            with ledger.recording() as is_ours:
                if is_ours:
                    self._note(ledger, listing, verified, findings, level, is_all=is_all)
        return findings

    def _verify_copy(
        self,
        backend: Backend,
        commit: Commit,
        level: VerifyLevel,
        record: CopyRecord | None,
        chain_fault: str,
        advance: Advance,
    ) -> CopyFinding | None:
        """Verify one copy, and write a line to the access log; None if it was removed meanwhile.

        Arguments:
            record: what the repository knows about the copy.
            chain_fault: why the archive could not be restored from copies.
        """
        with self._witness.watching(
            Action.OFFSITE_VERIFY, commit.backup_id, destination=backend.shown, level=level.value
        ) as seen:
            finding = self._look_at(backend, commit, level, advance)
            if record and record.archive_sha256 != commit.archive_sha256:
                finding = _with(finding, "its commit is not the one that was written from here")
            if chain_fault:
                finding = _with(finding, chain_fault)
            if finding.damages and is_removed(backend, commit):
                seen.note(Outcome.DONE, removed=True)
                return None
            outcome = Outcome.FAILED if finding.damages else Outcome.DONE
            seen.note(outcome, damages=len(finding.damages), error="; ".join(finding.damages[:3]))
        return finding

    def _gone(self, known: Mapping[Stem, CopyRecord], listing: Listing) -> list[str]:
        """Copies made from here that are gone, and that the rules keep, so that no prune has removed them."""
        shown = {str(commit.stem) for commit in listing.commits} | {*listing.damaged, *listing.foreign}
        if self._policy is None:
            return [str(stem) for stem in known if str(stem) not in shown]
        found = [stem for text in shown if (stem := parse_stem(text))]
        return [str(stem) for stem in unexpectedly_gone(known, found, self._policy, self._clock())]

    def _note(
        self,
        ledger: Ledger,
        listing: Listing,
        chosen: Sequence[Commit],
        findings: Sequence[CopyFinding],
        level: VerifyLevel,
        *,
        is_all: bool,
    ) -> None:
        """Record the results; known damage stays until the same copy is found intact.

        Arguments:
            is_all: whether lost and foreign copies were also looked for.
        """
        now, looked_at = self._clock(), {one.stem for one in findings}
        present = {str(commit.stem) for commit in listing.commits} | set(listing.damaged)
        before = ledger.proof().get("verified", {}).get("damaged", ())
        damaged = [one.stem for one in findings if one.damages]
        damaged += [stem for stem in before if (stem in present or not is_all) and stem not in looked_at]
        turns = {stem: moment for stem, moment in ledger.turns().items() if stem in present}
        ledger.note_turns(turns | dict.fromkeys((str(commit.stem) for commit in chosen), now))
        facts = {
            "moment": now.isoformat(),
            "level": level.value,
            "copies": len(findings),
            "damaged": damaged[:_MOST_RECORDED],
            "foreign": list(listing.foreign[:_MOST_FOREIGN]),
        }
        ledger.note_proof("verified", facts)

    def _look_at(self, backend: Backend, commit: Commit, level: VerifyLevel, advance: Advance) -> CopyFinding:
        if level is VerifyLevel.CHECKSUM:
            return _compared(backend, commit, advance)
        return self._read(backend, commit, level, advance)

    def _read(self, backend: Backend, commit: Commit, level: VerifyLevel, advance: Advance) -> CopyFinding:
        """Fetch an archive to a temporary place, verify it, and remove it."""
        try:
            with archive_beside(self._config, self._repository, backend, commit, advance) as path:
                found = Verifier(
                    pg_bin_dir=self._config.pg_bin_dir, jobs=self._config.jobs or available_cores()
                ).verify_alone(path, level)
                damages = tuple(str(damage) for damage in found.damages)
        except (NotIntactError, ObjectAbsentError) as error:
            damages = (error.message,)
        return CopyFinding(
            destination=backend.shown,
            stem=str(commit.stem),
            backup_id=commit.backup_id,
            level=level,
            damages=damages,
            is_downloaded=True,
        )


def _compared(backend: Backend, commit: Commit, advance: Advance) -> CopyFinding:
    """Compare every stored segment with the commit."""
    damages: list[str] = []
    is_downloaded = False
    for number, segment in enumerate(commit.segments):
        name = commit.segment_name(number)
        try:
            found = backend.head(name)
        except ObjectAbsentError:
            damages.append(f"{name} is missing")
        else:
            is_downloaded |= not found.is_own_digest
            if found.size != segment.size:
                damages.append(f"{name} has {found.size:,} bytes, and should have {segment.size:,}")
            elif found.sha256 != segment.sha256:
                damages.append(f"{name} has another SHA-256 than it should")
        advance(commit.plain_size(number))
        if len(damages) >= _MOST_DAMAGES:
            break
    return CopyFinding(
        destination=backend.shown,
        stem=str(commit.stem),
        backup_id=commit.backup_id,
        level=VerifyLevel.CHECKSUM,
        damages=tuple(damages),
        is_downloaded=is_downloaded,
    )


def _broken(stem: str, destination: Destination, level: VerifyLevel, damage: str) -> CopyFinding:
    return CopyFinding(
        destination=destination.shown,
        stem=stem,
        backup_id=stem,
        level=level,
        damages=(damage,),
    )


def _with(finding: CopyFinding, damage: str) -> CopyFinding:
    return replace(finding, damages=(*finding.damages, damage))
