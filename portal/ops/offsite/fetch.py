"""Fetches archives from off-site into the repository: byte for byte, with their sidecars.

list      list the copies in the destination
lock      lock a pending archive, like a backup
receive   receive and decrypt segments in two threads, each to its place in the file, and hash the archive meanwhile
check     compare size and SHA-256 of the archive; if they are wrong, find the damaged segment
publish   write the sidecar, then rename: only now it is an archive
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from portal.ops.errors import (
    ArchiveAbsentError,
    IdentityError,
    NotIntactError,
    OpsError,
    StorageError,
)
from portal.ops.model import FORMAT_VERSION, SUFFIX, BackupId
from portal.ops.offsite.listing import LATEST, PREFIX, Listing, list_copies, unless_removed
from portal.ops.offsite.place import check_space, unwritable
from portal.ops.offsite.reading import find_file
from portal.ops.offsite.receiving import blame, receive
from portal.ops.offsite.signing import Trust
from portal.ops.repository.access_log import Action, Observer, Witness
from portal.ops.repository.durable import write_durably
from portal.ops.repository.locks import archive_lock
from portal.ops.repository.repository import Repository
from portal.ops.repository.sidecar import file_digest, read_sidecar, sidecar_of
from portal.ops.runtime.logs import engine_log
from portal.ops.runtime.progress import Clock, Meter, Progress, utc_now
from portal.ops.storage.objects import identities_of

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Mapping, Sequence
    from pathlib import Path

    from portal.ops.archive.index import Member
    from portal.ops.archive.reader import ArchiveReader
    from portal.ops.offsite.commit import Commit
    from portal.ops.offsite.config import OffsiteConfig
    from portal.ops.runtime.progress import Advance
    from portal.ops.settings.destination import Destination
    from portal.ops.storage.age_keys import Identity
    from portal.ops.storage.backend import Backend

log = engine_log("portal.ops.offsite.fetch")


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """An archive in the repository, with all that it needs.

    Arguments:
        path: the archive's file.
        destination: the destination that it was fetched from.
        fetched: the archives that were fetched; those that existed are left out.
        signer: the public key of the repository that made the copy; None if it is not signed.
        recipients: the age public keys of the copy.
        warnings: destinations whose copy could not be used.
    """

    backup_id: str
    path: Path
    destination: str
    checksum: str
    size: int
    fetched: tuple[str, ...]
    signer: str | None = None
    recipients: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    duration_seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The result as types of JSON."""
        return {
            "success": True,
            "backup_id": self.backup_id,
            "path": str(self.path),
            "destination": self.destination,
            "checksum": self.checksum,
            "size_bytes": self.size,
            "fetched": list(self.fetched),
            "signer": self.signer,
            "warnings": list(self.warnings),
            "duration_seconds": round(self.duration_seconds, 3),
            "format_version": FORMAT_VERSION,
        }


class FetchJob:
    """Fetches archives from the first destination that has a copy.

    Arguments:
        open_store: opens the store of a destination, possibly as it was at a moment.
        progress: receives progress reports.
        actor: the requester, for the access log.
        observer: receives the result for each archive.
    """

    def __init__(
        self,
        config: OffsiteConfig,
        *,
        open_store: Callable[[Destination], Backend] | None = None,
        clock: Clock = utc_now,
        progress: Progress | None = None,
        actor: str | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._config = config
        self._open = open_store or config.open
        self.repository = Repository(config.local_path, lock_timeout=config.lock_timeout)
        self._witness = Witness(repository=self.repository, who=actor, clock=clock, observer=observer)
        self._progress = progress

    def run(self, name: str) -> Fetched:
        """Fetch an archive with everything that it needs.

        Arguments:
            name: its id or the start of one, or ``latest``; the prefix ``offsite:`` is allowed.

        Raises:
            ArchiveAbsentError: the copy was removed while it was fetched.
            ConfigurationError: no destination has a copy.
            IdentityError: it is encrypted, and no identity fits.
            NotIntactError: the copy is damaged, in every destination that has one.
            StorageError: a store failed.
        """
        started = time.monotonic()
        failed: dict[str, OpsError] = {}
        while True:
            with self._found(name, failed) as hit:
                _, listing, commit = hit
                try:
                    fetched = self._fetch_line(*hit)
                except (ArchiveAbsentError, NotIntactError, StorageError) as error:
                    failed[listing.shown] = error
                    name = commit.backup_id  # another destination's ``latest`` may be an older one
                    log.warning("offsite_destination_passed_over", destination=listing.shown, error=error.message)
                    continue
            warnings = tuple(f"{shown} was passed over: {error.message}" for shown, error in failed.items())
            return replace(fetched, warnings=warnings, duration_seconds=time.monotonic() - started)

    def _fetch_line(self, backend: Backend, listing: Listing, commit: Commit) -> Fetched:
        """Fetch an archive with everything that it needs from one destination.

        What is here is kept from being pruned until all of it is: old archives that nothing needs yet are not safe.
        """
        with unless_removed(backend, commit):
            line = listing.line_of(commit)
        identities = self._identities(line)
        self.repository.prepare_for_restore()
        missing = [one for one in line if not self._is_here(one)]
        check_space(self.repository, sum(one.archive_size for one in missing))
        meter = Meter(self._progress)
        meter.phase = "fetch"
        total = sum(one.archive_size for one in missing)
        meter.expect = lambda: total
        with ExitStack() as held:
            for one in line:
                self._hold(backend, one, identities, meter.advance, held)
        return Fetched(
            backup_id=commit.backup_id,
            path=self._path(commit),
            destination=listing.shown,
            checksum=commit.archive_sha256,
            size=commit.archive_size,
            fetched=tuple(one.backup_id for one in missing),
            signer=commit.signer,
            recipients=commit.recipients,
        )

    @contextmanager
    def _found(self, name: str, failed: Mapping[str, OpsError]) -> Iterator[tuple[Backend, Listing, Commit]]:
        """The next destination with a copy; if there is none, the error of the first one that had a copy is raised."""
        first = next(iter(failed.values()), None)
        if first and all(one.shown in failed for one in self._config.destinations):
            raise first
        with ExitStack() as opened:
            try:
                hit = opened.enter_context(self.found(name, without=failed))
            except OpsError:
                if first:
                    raise first from None
                raise
            yield hit

    @contextmanager
    def found(self, name: str, *, without: Container[str] = ()) -> Iterator[tuple[Backend, Listing, Commit]]:
        """The first destination with a copy, open; for ``latest`` the one with the newest.

        Arguments:
            without: destinations not to ask.

        Raises:
            ConfigurationError: no destination has a copy.
            StorageError: no copy was found, and a store failed.
        """
        name = name.removeprefix(PREFIX)
        hits: list[tuple[Backend, Listing, Commit]] = []
        faults: list[OpsError] = []
        opened: list[Backend] = []
        try:
            for destination in self._config.require_destinations():
                if destination.shown in without:
                    continue
                try:
                    backend = self._open(destination)
                    opened.append(backend)
                    listing = list_copies(backend, name, Trust.of(self._config, destination))
                    hits.append((backend, listing, listing.find(name)))
                except OpsError as error:
                    faults.append(error)
                    log.warning("offsite_destination_passed_over", destination=destination.shown, error=error.message)
                    continue
                if name != LATEST:
                    break
            if not hits:
                raise next((fault for fault in faults if fault.exit_code != 2), faults[0])
            yield max(hits, key=lambda hit: hit[2].moment)
        finally:
            for backend in opened:
                backend.close()

    @contextmanager
    def file(self, name: str, path: str) -> Iterator[tuple[ArchiveReader, Member, Callable[[], int]]]:
        """Find one file of a copy; the result reads it and counts downloaded bytes.

        Arguments:
            name: the archive's id or the start of one, or ``latest``.
            path: the file's path in the archive.

        Raises:
            ArchiveAbsentError: the archive does not have the file.
            OpsError: as `run`.
        """
        with self.found(name) as (backend, listing, commit):
            with unless_removed(backend, commit):
                line = listing.line_of(commit)
            with (
                self._witness.watching(
                    Action.OFFSITE_READ, commit.backup_id, destination=backend.shown, files=1
                ) as seen,
                unless_removed(backend, commit),
            ):
                found = find_file(backend, line, self._identities(line), path)
                if found is None:
                    raise ArchiveAbsentError(
                        f"there is no file {path!r} in {commit.backup_id}",
                        hint="The path starts with media/ or audit/, as in the archive.",
                    )
                yield found.reader, found.member, found.received
                seen.details["bytes"] = found.received()

    def _identities(self, line: Sequence[Commit]) -> tuple[Identity, ...]:
        if not any(one.is_encrypted for one in line):
            return ()
        identities = identities_of(self._config.settings)
        if not identities:
            raise IdentityError(
                f"the copy of {line[-1].backup_id} is encrypted, and there is no identity to open it",
                hint="Name the file with the secret key in BACKUP_ENCRYPTION_IDENTITY_FILE.",
            )
        return identities

    def _hold(
        self,
        backend: Backend,
        commit: Commit,
        identities: Sequence[Identity],
        advance: Advance,
        held: ExitStack,
    ) -> None:
        """Fetch one archive if it is not here, and keep it from being pruned.

        Arguments:
            held: what keeps it.
        """
        while True:
            if not self._is_here(commit):
                self._fetch(backend, commit, identities, advance)
            with suppress(ArchiveAbsentError):  # removed before it was locked
                held.enter_context(archive_lock(self._path(commit), self._config.lock_timeout))
                return

    def _fetch(self, backend: Backend, commit: Commit, identities: Sequence[Identity], advance: Advance) -> None:
        """Fetch one archive, and write a line to the access log."""
        identifier = BackupId.parse(commit.backup_id)
        assert identifier is not None
        with (
            self._witness.watching(Action.OFFSITE_FETCH, commit.backup_id, destination=backend.shown),
            unless_removed(backend, commit),
        ):
            started = time.monotonic()
            with self.repository.shared(), self.repository.pending(identifier) as pending:
                if pending is None:
                    return  # another process has just fetched it
                try:
                    receive(backend, commit, identities, pending.out, advance)
                    digest = pending.out.finish()
                    copied = commit.copied.timestamp()
                    os.utime(pending.partial, (copied, copied))  # not today's time
                except OSError as error:
                    raise unwritable(self.repository, error) from error
                if digest != commit.archive_sha256:
                    raise blame(backend, commit)
                pending.commit(digest)
        log.info(
            "offsite_fetched",
            backup_id=commit.backup_id,
            destination=backend.shown,
            bytes=commit.archive_size,
            seconds=round(time.monotonic() - started, 3),
        )

    def _is_here(self, commit: Commit) -> bool:
        """True if the repository has the archive, by its sidecar; one without a sidecar is hashed, and gets one.

        Raises:
            NotIntactError: it has another archive of that name.
        """
        path = self._path(commit)
        if not path.exists():
            return False
        sidecar = read_sidecar(path)
        if (sidecar or file_digest(path)) == commit.archive_sha256:
            if sidecar is None:
                self._add_sidecar(commit)
            return True
        raise NotIntactError(
            f"{path} is there, and is not the archive that the copy is of",
            hint="Verify it; if it is damaged, move it away, and fetch again.",
        )

    def _add_sidecar(self, commit: Commit) -> None:
        path = self._path(commit)
        try:
            write_durably(sidecar_of(path), f"{commit.archive_sha256}  {path.name}\n".encode())
        except OSError as error:
            raise unwritable(self.repository, error) from error

    def _path(self, commit: Commit) -> Path:
        return self.repository.path / f"{commit.backup_id}{SUFFIX}"


def is_offsite(name: str | os.PathLike[str]) -> bool:
    """True if an archive's name refers to an off-site copy."""
    return isinstance(name, str) and name.startswith(PREFIX)
