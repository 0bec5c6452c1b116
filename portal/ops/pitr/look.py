"""Reads the repository's base backups and WAL, as values for the pure `window`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from portal.ops.chains.lineage import read_manifest
from portal.ops.errors import OpsError
from portal.ops.model import SUFFIX, BackupType, Component
from portal.ops.pitr.lsn import PARTIAL, parse_history_name, parse_lsn
from portal.ops.pitr.replaced_wal import find_replaced, replaced_identifiers
from portal.ops.pitr.wal_archive import DIRECTORY, WalArchive
from portal.ops.pitr.window import Base, Piece, Span, Wal, Window, find_spans, find_window
from portal.ops.repository.catalogue import Catalogue
from portal.ops.repository.faults import explain
from portal.ops.repository.restorability import own_fault
from portal.ops.runtime.logs import engine_log

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from portal.ops.pitr.replaced import ReplacedCluster
    from portal.ops.repository.entry import Entry
    from portal.ops.repository.repository import Repository

log = engine_log("portal.ops.pitr.look")


@dataclass(frozen=True, kw_only=True)
class PitrLook:
    """The base backups and WAL at one time.

    Arguments:
        archive: the WAL archive of the current cluster; None if no WAL was ever received.
        bases: its base backups that are complete, as far as known.
        state: the last report of the WAL service.
        replaced: the WAL of earlier clusters.
    """

    archive: WalArchive | None
    bases: tuple[Base, ...]
    wal: Wal
    spans: tuple[Span, ...]
    window: Window | None
    state: Mapping[str, Any]
    replaced: tuple[ReplacedCluster, ...] = ()


def look(repository: Repository, entries: list[Entry] | None = None) -> PitrLook:
    """Read base backups and WAL files; no server is queried, and no WAL content is read.

    Arguments:
        entries: the catalogue, if it was read already.

    Raises:
        RepositoryError: the repository cannot be read.
    """
    archive = WalArchive.current(repository)
    if archive is None:
        return PitrLook(archive=None, bases=(), wal=Wal(segment_bytes=1, pieces=()), spans=(), window=None, state={})
    listed = Catalogue(repository).entries() if entries is None else entries
    bases = tuple(_bases(repository, listed, archive.cluster.system_identifier))
    state = archive.state()
    wal = read_wal(archive, state)
    spans = find_spans(bases, wal)
    return PitrLook(
        archive=archive,
        bases=bases,
        wal=wal,
        spans=spans,
        window=find_window(spans),
        state=state,
        replaced=_replaced(repository, listed),
    )


def read_wal(archive: WalArchive, state: Mapping[str, Any]) -> Wal:
    """The segments and timelines of an archive. The segment being received covers what the service reports.

    What is being received is listed first: a segment that is stored meanwhile is seen twice, instead of not at all.
    """
    pieces: list[Piece] = []
    if archive.receiving.is_dir():
        found = [(path, False) for path in archive.partials()] + [(path, True) for path in archive.completed()]
        pieces += [
            Piece(segment=segment, covered=None, is_complete=is_complete)
            for path, is_complete in found
            if (segment := archive.segment(path.name))
        ]
    created: dict[int, datetime] = {}
    for name, file in archive.files().items():
        if timeline := parse_history_name(name):
            created |= {timeline: file.until} if file.until else {}
        elif segment := archive.segment(name):
            pieces.append(Piece(segment=segment, covered=file.covered, is_complete=PARTIAL not in name))
    pieces = _with_last_covered(pieces, state, archive.cluster.segment_bytes)
    return Wal(
        segment_bytes=archive.cluster.segment_bytes, pieces=pieces, histories=archive.histories(), created=created
    )


def _with_last_covered(pieces: list[Piece], state: Mapping[str, Any], segment_bytes: int) -> list[Piece]:
    """Let the segment received last cover what the service reports, whether it is complete or not."""
    if not state.get("covered_to") or not state.get("received"):
        return pieces
    covered = datetime.fromisoformat(state["covered_to"]).astimezone(UTC)
    number = (int(state["received"]) - 1) // segment_bytes
    return [
        replace(piece, covered=max(covered, piece.covered or covered)) if piece.segment.number == number else piece
        for piece in pieces
    ]


def base_of(path: Path) -> tuple[Base, Mapping[str, Any]] | None:
    """A base backup and its facts about the cluster; None if it is no base backup or cannot be read."""
    try:
        manifest = read_manifest(path)
        if manifest is None:
            return None
        facts = manifest.details[Component.CLUSTER.value]
        base = Base(
            name=manifest.backup_id,
            timeline=int(facts["timeline"]),
            start_lsn=parse_lsn(facts["start_lsn"]),
            end_lsn=parse_lsn(facts["end_lsn"]),
            ended=datetime.fromisoformat(facts["ended"]).astimezone(UTC),
        )
    except (OpsError, KeyError, TypeError, ValueError) as error:
        log.warning("base_unreadable", path=str(path), detail=str(error))
        return None
    return base, facts


def _replaced(repository: Repository, entries: list[Entry]) -> tuple[ReplacedCluster, ...]:
    """The WAL of clusters that came before; a base backup that cannot be read may be of any of them."""
    if not replaced_identifiers(repository):
        return ()
    paths = (repository.path / f"{entry.name}{SUFFIX}" for entry in entries if entry.type is BackupType.BASE)
    facts = [found[1] if (found := base_of(path)) else None for path in paths]
    with_base = {str(one.get("system_identifier")) for one in facts if one is not None}
    try:
        return find_replaced(repository, None if None in facts else with_base)
    except OSError as error:
        raise explain(error, "cannot read the WAL in", repository.path / DIRECTORY) from error


def _bases(repository: Repository, entries: list[Entry], system_identifier: str) -> Iterator[Base]:
    for entry in entries:
        if entry.type is not BackupType.BASE or own_fault(entry):
            continue
        found = base_of(repository.path / f"{entry.name}{SUFFIX}")
        if found and found[1].get("system_identifier") == system_identifier:
            yield found[0]
