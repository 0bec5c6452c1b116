"""Fetches WAL back from off-site.

Anyone who may write to the store can have put objects there: names and sizes are accepted only if they are valid for
WAL, and nothing is written outside the WAL archive.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import reduce
from typing import TYPE_CHECKING, Final, NamedTuple

from portal.ops.errors import IdentityError, NotIntactError
from portal.ops.pitr.lsn import PARTIAL, parse_history_name
from portal.ops.pitr.wal_archive import DIRECTORY, Cluster, WalArchive
from portal.ops.pitr.wal_objects import CLUSTER, NAME, Told, deflate, inflate, split
from portal.ops.pitr.wal_trust import WalTrust, in_order
from portal.ops.repository.faults import explain
from portal.ops.runtime.logs import engine_log
from portal.ops.storage.objects import read_object

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet

    from portal.ops.repository.repository import Repository
    from portal.ops.storage.age_keys import Identity
    from portal.ops.storage.backend import Backend

log = engine_log("portal.ops.pitr.wal_fetch")

_IDENTIFIER: Final = re.compile(r"[0-9]{1,20}")
_SEGMENT_SIZES: Final = frozenset(1 << bits for bits in range(20, 31))
_MOST_DESCRIPTION: Final = 1 << 20
_LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)
_AGE: Final = b"age-encryption.org/"


class _Part(NamedTuple):
    """Bytes of a segment from `start` to before `end`."""

    start: int
    end: int
    place: str


class Damage(NamedTuple):
    """An object that cannot be used.

    Arguments:
        cluster: its system identifier.
        file: what it holds, or holds a part of.
    """

    cluster: str
    file: str
    error: NotIntactError

    def is_mended(self, repository: Repository, taken: AbstractSet[tuple[str, str]]) -> bool:
        """True if the file is here by now.

        Arguments:
            taken: cluster and name of the files that came from elsewhere later.
        """
        if taken & {(self.cluster, self.file), (self.cluster, self.file + PARTIAL)}:
            return True
        archive = WalArchive.of(repository, self.cluster)
        return archive is not None and (self.file == CLUSTER or self.file in archive.files())


class Found(NamedTuple):
    """The WAL that a destination had.

    Arguments:
        taken: cluster and name of each file that is new here.
        unsigned: the objects that were taken although nobody has signed them.
    """

    taken: AbstractSet[tuple[str, str]]
    damages: list[Damage]
    unsigned: list[str]


def fetch_wal(
    repository: Repository,
    backend: Backend,
    identities: Sequence[Identity],
    signers: AbstractSet[str] | None = None,
) -> Found:
    """Fetch the WAL of every cluster from one destination, except damaged objects.

    Arguments:
        identities: empty if copies are not encrypted.
        signers: the public keys whose WAL is taken; None means any.

    Raises:
        StorageError: the store failed.
        IdentityError: an object is encrypted for none of the identities.
        BusyError: the WAL service of a cluster is running.
        RepositoryError: the disk is full, or writing fails.
    """
    clusters: dict[str, list[tuple[str, re.Match[str]]]] = {}
    for found in backend.list(f"{DIRECTORY}/"):
        parts = found.name.split("/")
        if len(parts) == 3 and _IDENTIFIER.fullmatch(parts[1]) and (name := NAME.fullmatch(parts[2])):
            clusters.setdefault(parts[1], []).append((found.name, name))
    is_first = WalArchive.current(repository) is None
    fetch = _Fetch(repository=repository, backend=backend, identities=identities, trust=WalTrust(signers))
    try:
        for identifier in sorted(clusters, key=int):  # newest last
            fetch.cluster(identifier, clusters[identifier], is_current=is_first)
    except OSError as error:
        raise explain(error, "cannot write WAL to", repository.path / DIRECTORY) from error
    return Found(fetch.taken, fetch.damages, fetch.trust.unsigned)


@dataclass(kw_only=True)
class _Fetch:
    """Fetches missing WAL; damaged objects are skipped and do not stop the rest.

    Arguments:
        taken: cluster and name of each new file.
        damages: the damage found.
    """

    repository: Repository
    backend: Backend
    identities: Sequence[Identity]
    trust: WalTrust
    taken: set[tuple[str, str]] = field(default_factory=set)
    damages: list[Damage] = field(default_factory=list)

    def cluster(self, identifier: str, objects: Sequence[tuple[str, re.Match[str]]], *, is_current: bool) -> None:
        """Fetch the WAL of one cluster."""
        cluster = self._description(identifier, [place for place, name in objects if name["file"] == CLUSTER])
        if cluster is None:
            return
        archive = WalArchive.prepare(self.repository, cluster, is_current=is_current)
        with archive.receiving_alone():
            known = archive.files()
            whole: dict[str, list[str]] = {}
            parts: dict[str, list[_Part]] = {}
            for place, name in objects:
                file = name["file"]
                if file in known or not (parse_history_name(file) or archive.segment(file)):
                    continue
                if name["start"] is None:
                    whole.setdefault(file, []).append(place)
                else:
                    parts.setdefault(file, []).append(_Part(int(name["start"]), int(name["end"]), place))
            self.trust.begin()
            for file in sorted({*whole, *parts}, key=in_order):
                is_taken = file in whole and self._whole(archive, file, whole[file])
                if not is_taken and file in parts:
                    self._joined(archive, file, sorted(parts[file]))

    def _description(self, identifier: str, places: Sequence[str]) -> Cluster | None:
        """The facts about a cluster. They are stored again when limits grow; the latest suit all of its WAL."""
        signed: list[Cluster] = []
        unsigned: list[Cluster] = []
        for place in places:
            try:
                data = self._read(place)
                is_signed = self.trust.is_signed(place, data)
                cluster = _described(inflate(data, _MOST_DESCRIPTION), place)
                if cluster.system_identifier != identifier:
                    raise _senseless(place)
            except NotIntactError as error:
                self._damaged(identifier, CLUSTER, place, error)
                continue
            (signed if is_signed else unsigned).append(cluster)
        return reduce(Cluster.including, signed or unsigned) if signed or unsigned else None

    def _whole(self, archive: WalArchive, file: str, places: Sequence[str]) -> bool:
        """Fetch a file; return whether there is one to take. Of two objects, the second may know better what it covers.

        Anyone who may write to the store can put one there that is not to be taken.
        """
        found: dict[bool, list[tuple[bytes, Told, str]]] = {True: [], False: []}
        for place in places:
            try:
                content = self._read(place)
                is_signed = self.trust.is_signed(place, content)
                data, told = split(content)
                data = inflate(data, archive.cluster.segment_bytes) if parse_history_name(file) else data
                found[is_signed].append((data, told, place))
            except NotIntactError as error:
                self._damaged(archive.cluster.system_identifier, file, place, error)
        if not (taken := found[True] or found[False]):
            return False
        data, told, place = max(taken, key=lambda one: one[1].covered or _LONG_AGO)
        try:
            self.trust.take(file, place, is_signed=bool(found[True]))
        except NotIntactError as error:
            self._damaged(archive.cluster.system_identifier, file, place, error)
            return False
        archive.take(file, data, covered=told.covered, until=told.until)
        self.taken.add((archive.cluster.system_identifier, file))
        return True

    def _joined(self, archive: WalArchive, file: str, parts: Sequence[_Part]) -> None:
        """Join the parts of a segment that is not there as a whole; the one that reaches farthest says what it covers.

        If nothing of it is missing, they are the segment.
        """
        segment, reached, told = bytearray(archive.cluster.segment_bytes), 0, Told()
        for part in parts:
            if part.start > reached:
                break  # a part is missing in between: what follows is useless
            if part.end <= reached:
                continue
            try:
                content = self._read(part.place)
                is_signed = self.trust.is_signed(part.place, content)
                stored, says = split(content)
                data = inflate(stored, len(segment))
                if part.end > len(segment) or len(data) != part.end - part.start:
                    raise _senseless(part.place)
                self.trust.take(file, part.place, is_signed=is_signed)
            except NotIntactError as error:
                self._damaged(archive.cluster.system_identifier, file, part.place, error)
                continue
            segment[part.start : part.end] = data
            reached, told = part.end, says
        known = archive.files().get(file + PARTIAL)
        if not reached or (known and (told.covered is None or (known.covered and told.covered <= known.covered))):
            return
        name = file if reached == len(segment) else file + PARTIAL
        archive.take(name, deflate(bytes(segment)), covered=told.covered, until=None)
        self.taken.add((archive.cluster.system_identifier, name))

    def _read(self, place: str) -> bytes:
        """Read and decrypt an object.

        Raises:
            IdentityError: it is encrypted, and no identity was given.
        """
        data = read_object(self.backend, place, self.identities)
        if data.startswith(_AGE):
            raise IdentityError(
                f"the WAL in {self.backend.shown} is encrypted, and there is no identity to open it",
                hint="Name the file with the secret key in BACKUP_ENCRYPTION_IDENTITY_FILE.",
            )
        return data

    def _damaged(self, cluster: str, file: str, place: str, error: NotIntactError) -> None:
        log.warning("wal_object_damaged", name=place, error=error.message)
        fault = NotIntactError(f"{self.backend.shown}/{place} is not usable: {error.message}", hint=error.hint)
        self.damages.append(Damage(cluster, file, fault))


def _described(content: bytes, place: str) -> Cluster:
    """Decode an object's facts about the cluster, which anyone with write access may have written.

    Raises:
        NotIntactError: they are invalid.
    """
    try:
        found = json.loads(content)
        cluster = Cluster(
            system_identifier=found["system_identifier"],
            segment_bytes=found["segment_bytes"],
            major=int(found["major"]),
            limits={str(name): int(value) for name, value in found.get("limits", {}).items()},
        )
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise _senseless(place) from error
    if cluster.segment_bytes not in _SEGMENT_SIZES:
        raise _senseless(place)
    return cluster


def _senseless(place: str) -> NotIntactError:
    return NotIntactError(
        f"the WAL object {place} is invalid", hint="Take another copy, or one as of a time before it was written."
    )
