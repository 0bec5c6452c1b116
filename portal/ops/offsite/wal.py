"""Removes WAL in a destination together with the base backups that need it, and parts of segments that are complete.

A segment is needed if it is not older than the start of a base backup that has a copy. In doubt it is kept: if the copy
of a base backup does not say where its WAL begins, is damaged or foreign, or if the object is so recent that its base
backup may still be being copied.

A part of a segment is needed until the whole segment is there and a base backup with a copy begins after it. The second
condition defeats an attacker who can write to the store: he can put an object in place of the last segment, but cannot
sign a base backup that begins after it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import timedelta
from operator import itemgetter
from typing import TYPE_CHECKING, Final, Self

from portal.ops.chains.lineage import read_manifest
from portal.ops.errors import ObjectAbsentError, OpsError, StoreDeniedError
from portal.ops.model import SUFFIX, BackupType, Component
from portal.ops.offsite.commit import WalStart
from portal.ops.offsite.layout import WAL
from portal.ops.pitr.lsn import Segment, parse_lsn
from portal.ops.pitr.wal_objects import parse_object, place_in_wal
from portal.ops.runtime.logs import engine_log
from portal.ops.settings.destination import Scheme

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import datetime

    from portal.ops.manifest import Manifest
    from portal.ops.offsite.commit import Commit
    from portal.ops.pitr.wal_objects import WalObject
    from portal.ops.repository.repository import Repository
    from portal.ops.settings.destination import Destination
    from portal.ops.storage.backend import Backend, StoredObject

log = engine_log("portal.ops.offsite.wal")

YOUNG: Final = timedelta(days=7)
"""The base backup for WAL younger than this may not be off-site yet."""


@dataclass(frozen=True, kw_only=True)
class WalPlan:
    """The WAL to remove from a destination.

    Arguments:
        doomed: by cluster, the objects to remove, oldest WAL first.
        superseded: likewise, parts of segments that are there as a whole.
        warning: why nothing is removed, if that needs a warning.
    """

    doomed: Mapping[str, Sequence[StoredObject]]
    superseded: Mapping[str, Sequence[StoredObject]] = field(default_factory=dict)
    warning: str = ""

    @property
    def series(self) -> list[Sequence[StoredObject]]:
        """Objects to remove one after the other, until one of them cannot be."""
        return [*self.doomed.values(), *self.superseded.values()]


def wal_start(manifest: Manifest | None) -> WalStart | None:
    """The first WAL that a base backup needs, by its manifest; None for other archives."""
    facts = manifest.details.get(Component.CLUSTER.value) if manifest else None
    try:
        if not facts:
            return None
        size = int(facts["segment_bytes"])
        segment = Segment(int(facts["timeline"]), parse_lsn(facts["start_lsn"]) // size)
        return WalStart(str(facts["system_identifier"]), segment.name(size))
    except (KeyError, TypeError, ValueError):
        return None


def plan_wal(
    backend: Backend, repository: Repository, kept: Iterable[Commit], unread: Iterable[str], now: datetime
) -> WalPlan:
    """Find the WAL that no base backup needs, and superseded parts of segments.

    Arguments:
        repository: used for base backups whose copies do not say where their WAL starts.
        kept: the copies that stay.
        unread: stems of existing copies that cannot be used: damaged or foreign ones.

    Raises:
        StorageError: the store failed.
    """
    starts: defaultdict[str, list[str]] = defaultdict(list)
    bases = [one for one in kept if one.type == BackupType.BASE.value]
    unknown = [stem for stem in unread if stem.startswith(f"{BackupType.BASE}_")]
    for commit in bases:
        if (start := commit.wal or _start_of(repository, commit)) is None:
            unknown.append(str(commit.stem))
        else:
            starts[start.cluster].append(place_in_wal(start.first))
    if not starts and not unknown:
        return WalPlan(doomed={})
    if unknown:
        return WalPlan(
            doomed={},
            warning=f"no WAL is removed from {backend.shown}: it is unknown how much of it {unknown[0]} needs",
        )
    found = _Found.of(one for one in backend.list(WAL) if now - one.modified > YOUNG)
    return WalPlan(
        doomed={cluster: found.before(cluster, min(places)) for cluster, places in starts.items()},
        superseded={cluster: found.superseded(cluster, min(places), max(places)) for cluster, places in starts.items()},
    )


@dataclass(frozen=True, kw_only=True)
class _Found:
    """Objects of WAL that are old enough to be removed, by cluster.

    Arguments:
        segments: segments and parts of segments, each with its name.
    """

    segments: Mapping[str, Sequence[tuple[WalObject, StoredObject]]]

    @classmethod
    def of(cls, objects: Iterable[StoredObject]) -> Self:
        """Sort the objects of a destination."""
        found: defaultdict[str, list[tuple[WalObject, StoredObject]]] = defaultdict(list)
        for one in objects:
            if (name := parse_object(one.name)) and name.is_segment:
                found[name.cluster].append((name, one))
        return cls(segments=found)

    def before(self, cluster: str, start: str) -> list[StoredObject]:
        """Everything that lies before a position, oldest first."""
        return self._in_order(cluster, lambda name: place_in_wal(name.file) < start)

    def superseded(self, cluster: str, start: str, end: str) -> list[StoredObject]:
        """Parts of whole segments, from one position to before another, oldest first."""
        whole = {name.file for name, _ in self.segments.get(cluster, ()) if not name.is_part}
        return self._in_order(
            cluster,
            lambda name: name.is_part and name.file in whole and start <= place_in_wal(name.file) < end,
        )

    def _in_order(self, cluster: str, is_wanted: Callable[[WalObject], bool]) -> list[StoredObject]:
        found = [(place_in_wal(name.file), one) for name, one in self.segments.get(cluster, ()) if is_wanted(name)]
        return [one for _, one in sorted(found, key=itemgetter(0))]


def remove_wal(
    backend: Backend, destination: Destination, planned: WalPlan, now: datetime
) -> tuple[list[StoredObject], list[str]]:
    """Remove the planned WAL; return what was removed, and what was not with the reason.

    The oldest WAL is removed first, and nothing after a locked object of the same cluster: what stays has no gap.

    Raises:
        StorageError: the store failed.
    """
    gone: list[StoredObject] = []
    spared: list[str] = []
    for objects in planned.series:
        for number, one in enumerate(objects):
            try:
                until = _locked_until(backend, destination, one)
                if until is not None and until > now:
                    spared.append(f"{one.name} and {len(objects) - number - 1} more: locked until {until:%Y-%m-%d}")
                    break
                backend.delete(one.name)
            except StoreDeniedError as error:
                spared.append(f"{one.name} and {len(objects) - number - 1} more: {error.message}")
                break
            gone.append(one)
    if gone:
        log.info("offsite_wal_removed", destination=destination.shown, files=len(gone))
    return gone, spared


def _locked_until(backend: Backend, destination: Destination, one: StoredObject) -> datetime | None:
    """When the lock of an object ends; None without one, or if another prune has removed the object."""
    if destination.scheme is not Scheme.S3:
        return None
    try:
        return backend.head(one.name).locked_until
    except ObjectAbsentError:
        return None


def _start_of(repository: Repository, commit: Commit) -> WalStart | None:
    """The start of a base backup in the WAL, by the archive in the repository, or None."""
    try:
        return wal_start(read_manifest(repository.path / f"{commit.backup_id}{SUFFIX}"))
    except (OpsError, OSError):
        return None
