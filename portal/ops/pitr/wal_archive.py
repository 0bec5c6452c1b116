"""The WAL archive: a directory of the repository for each cluster, named after its system identifier.

    wal/current.json                the cluster whose WAL is being received
    wal/<identifier>/cluster.json   its segment size, and limits that a scratch server needs
    wal/<identifier>/index.jsonl    every file with its digest, and the time it covers
    wal/<identifier>/state.json     the progress of the WAL service; may be lost
    wal/<identifier>/receiving/     the files of pg_receivewal: the current segment, and those just completed
    wal/<identifier>/<name>.gz      completed segments; gunzip reads them
    wal/<identifier>/<name>         history files of timelines

A segment is removed from `receiving/` only when its compressed copy and its line in the index are durable.
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, cast

from isal import isal_zlib

from portal.ops.errors import BusyError, NotIntactError, RepositoryError
from portal.ops.filesystem.temporary import temporary_name
from portal.ops.model import file_time
from portal.ops.pitr import archive_index
from portal.ops.pitr.archive_index import WalFile
from portal.ops.pitr.lsn import PARTIAL, Segment, parse_history, parse_history_name, parse_segment
from portal.ops.repository.durable import make_hidden, sync_directory, write_durably
from portal.ops.repository.faults import explain, is_full
from portal.ops.repository.repository import LOCK_NAME, Repository
from portal.ops.units import system_reason

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime
    from pathlib import Path

DIRECTORY: Final = "wal"
RECEIVING: Final = "receiving"
SUFFIX: Final = ".gz"

CURRENT: Final = "current.json"
CLUSTER: Final = "cluster.json"
STATE: Final = "state.json"
_LEVEL: Final = 1
_BLOCK_BYTES: Final = 1 << 20
_GZIP: Final = 31
_InflateError = cast("type[Exception]", isal_zlib.error)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Facts about a cluster that stay the same or only grow.

    Arguments:
        system_identifier: PostgreSQL's identifier of the cluster.
        segment_bytes: the size of a segment.
        major: the server's major version.
        limits: the highest value seen of each setting that replay depends on.
    """

    system_identifier: str
    segment_bytes: int
    major: int
    limits: Mapping[str, int] = field(default_factory=dict)

    def including(self, other: Cluster) -> Cluster:
        """This cluster, with limits that also suit another record of it."""
        names = {**self.limits, **other.limits}
        limits = {name: max(self.limits.get(name, 0), other.limits.get(name, 0)) for name in names}
        return replace(other, limits=limits)


class WalArchive:
    """The WAL of one cluster.

    Arguments:
        repository: the repository with the archive.
        cluster: which cluster.
    """

    def __init__(self, repository: Repository, cluster: Cluster) -> None:
        self.repository = repository
        self.cluster = cluster
        self.path = repository.path / DIRECTORY / cluster.system_identifier
        self.receiving = self.path / RECEIVING

    @classmethod
    def current(cls, repository: Repository) -> WalArchive | None:
        """The archive of the cluster whose WAL is or was last received; None if there is none."""
        found = _read_json(repository.path / DIRECTORY / CURRENT)
        return cls.of(repository, str(found["system_identifier"])) if found else None

    @staticmethod
    def current_since(repository: Repository) -> datetime | None:
        """When the current cluster became the current one; None if there is none."""
        try:
            written = (repository.path / DIRECTORY / CURRENT).stat().st_mtime
        except (FileNotFoundError, NotADirectoryError):
            return None
        return file_time(written)

    @classmethod
    def of(cls, repository: Repository, system_identifier: str) -> WalArchive | None:
        """The archive of a cluster, or None."""
        found = _read_json(repository.path / DIRECTORY / system_identifier / CLUSTER)
        return cls(repository, Cluster(**found)) if found else None

    @classmethod
    def prepare(cls, repository: Repository, cluster: Cluster, *, is_current: bool = True) -> WalArchive:
        """The archive of a cluster, created if necessary.

        Arguments:
            is_current: whether it becomes the current one.

        Raises:
            RepositoryError: it cannot be created.
        """
        known = cls.of(repository, cluster.system_identifier)
        archive = cls(repository, known.cluster.including(cluster) if known else cluster)
        try:
            for directory in (archive.path.parent, archive.path, archive.receiving):
                make_hidden(directory)
            if known is None or known.cluster != archive.cluster:
                write_durably(archive.path / CLUSTER, _json(asdict(archive.cluster)))
            current = _json({"system_identifier": cluster.system_identifier})
            text = archive.path.parent / CURRENT
            if is_current and (not text.exists() or text.read_bytes() != current):
                write_durably(text, current)
        except OSError as error:
            raise explain(error, "cannot make the WAL archive in", archive.path) from error
        return archive

    @contextmanager
    def receiving_alone(self) -> Iterator[None]:
        """Lock out a second WAL service.

        Raises:
            BusyError: another one is running.
        """
        try:
            with Repository(self.path, lock_timeout=0).exclusive():
                yield
        except BusyError as error:
            raise BusyError(
                f"another WAL service receives into {self.path} (it holds {LOCK_NAME} there)",
                hint="One service is enough; stop one of the two.",
            ) from error

    # -- writing ----------------------------------------------------------------------------------------------------

    def completed(self) -> list[Path]:
        """The files that pg_receivewal has finished, in order: history files and complete segments."""
        names = sorted(os.listdir(self.receiving))
        return [self.receiving / name for name in names if self._is_segment(name) or parse_history_name(name)]

    def partials(self) -> list[Path]:
        """The incomplete segments, oldest first; the last one is being written."""
        names = sorted(os.listdir(self.receiving))
        return [
            self.receiving / name for name in names if self._is_segment(name.removesuffix(PARTIAL)) and PARTIAL in name
        ]

    def publish(self, source: Path, *, covered: datetime | None, until: datetime | None) -> WalFile:
        """Compress, hash and store a completed file durably, then remove the original.

        Raises:
            OSError: it cannot be written; the original still exists.
        """
        is_history = parse_history_name(source.name) is not None
        final = self.path / (source.name if is_history else source.name + SUFFIX)
        temporary = self.path / temporary_name(final.name)
        try:
            size, digest = _copy(source, temporary, compress=not is_history)
            os.rename(temporary, final)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync_directory(self.path)
        file = WalFile(name=source.name, size=size, sha256=digest, covered=covered, until=until)
        with archive_index.index_lock(self.path):
            archive_index.append(self.path, file)
        source.unlink()
        return file

    def note_covered(self, received: int, covered: datetime) -> None:
        """Record what the last segment covers so far, before it is known whether another one continues it.

        Arguments:
            received: the position up to which everything is here.
        """
        for name, file in self.files().items():
            segment = self.segment(name)
            if segment and segment.number == (received - 1) // self.cluster.segment_bytes:
                with archive_index.index_lock(self.path):
                    archive_index.append(self.path, replace(file, covered=max(covered, file.covered or covered)))

    def sweep(self) -> None:
        """Remove unfinished copies; the caller must hold the `receiving_alone` lock."""
        for left in self.path.glob(".*.tmp"):
            name = left.name.removeprefix(".").partition(".")[0]
            if self._is_segment(name) or parse_history_name(f"{name}.history"):
                left.unlink(missing_ok=True)

    def take(self, name: str, content: bytes, *, covered: datetime | None, until: datetime | None) -> None:
        """Add a file in its stored form, from an off-site copy.

        Raises:
            OSError: it cannot be written.
        """
        write_durably(self.stored(name), content)
        file = WalFile(name=name, size=len(content), sha256=sha256(content).hexdigest(), covered=covered, until=until)
        with archive_index.index_lock(self.path):
            archive_index.append(self.path, file)

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Replace the state; not synced, since it is written every second and may be lost.

        On a full disk the old state is overwritten, which takes no room: the state has to report the full disk.
        """
        temporary, content = self.path / temporary_name(STATE), _json(state)
        try:
            temporary.write_bytes(content)
            temporary.rename(self.path / STATE)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            if not is_full(error):
                raise
            with (self.path / STATE).open("r+b") as file:
                file.write(content)
                file.truncate()

    def remove(self, names: set[str]) -> int:
        """Remove files; return the number of bytes freed.

        Index lines are removed last, so that every existing file is always listed, also one that was fetched meanwhile.
        """
        for name in sorted(names):
            self.stored(name).unlink(missing_ok=True)
        sync_directory(self.path)
        with archive_index.index_lock(self.path):
            files = archive_index.load(self.path)
            archive_index.rewrite(
                self.path, [file for name, file in files.items() if name not in names or self.stored(name).exists()]
            )
        return sum(files[name].size for name in names if name in files)

    # -- reading ----------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """The last reported state; empty if there is none."""
        return _read_json(self.path / STATE) or {}

    def stamp(self) -> archive_index.Stamp | None:
        """What differs once `files` may have changed; quick, however many there are."""
        return archive_index.stamp(self.path)

    def files(self) -> dict[str, WalFile]:
        """The files in the index that exist."""
        there = set(os.listdir(self.path)) if self.path.is_dir() else set()
        return {name: file for name, file in archive_index.load(self.path).items() if _stored_name(name) in there}

    def stored(self, name: str) -> Path:
        """The path of a stored file, whether it exists or not."""
        return self.path / _stored_name(name)

    def histories(self) -> dict[int, tuple[tuple[int, int], ...]]:
        """The ancestors of each timeline that has a history file."""
        found = {}
        for place in (self.receiving, self.path):  # a file that is stored meanwhile is in the second one by then
            for name in os.listdir(place) if place.is_dir() else ():
                if timeline := parse_history_name(name):
                    with suppress(FileNotFoundError):
                        found[timeline] = parse_history((place / name).read_text("utf-8", "replace"))
        return found

    def freeze(self, directory: Path) -> set[str]:
        """Copy the files being received, so that they no longer change; return the names of readable segments.

        Arguments:
            directory: the directory for the copies, each named like the whole segment.
        """
        frozen = set()
        for path in (*self.partials(), *self.completed()) if self.receiving.is_dir() else ():
            with suppress(FileNotFoundError):  # it has been stored meanwhile
                name = path.name.removesuffix(PARTIAL)
                _unpack(path, directory / name)
                frozen.add(name)
        stored = {name.removesuffix(PARTIAL) for name in self.files()}
        for name in frozen & {name for name in self.files() if PARTIAL not in name}:
            (directory / name).unlink(missing_ok=True)
        return stored

    def has_segment_at(self, lsn: int) -> bool:
        """True if we have the segment that contains a position or ends there."""
        numbers = {lsn // self.cluster.segment_bytes, max(0, lsn - 1) // self.cluster.segment_bytes}
        for place in (self.receiving, self.path):  # the position moves on in the first one, which has few files
            names = os.listdir(place) if place.is_dir() else []
            held = (self.segment(name.removesuffix(SUFFIX)) for name in names)
            if any(segment is not None and segment.number in numbers for segment in held):
                return True
        return False

    def segment(self, name: str) -> Segment | None:
        """The segment with that name, partial or not."""
        return parse_segment(name.removesuffix(PARTIAL), self.cluster.segment_bytes)

    def read(self, name: str, destination: Path) -> bool:
        """Write a WAL file, in PostgreSQL's form, to a new file; return whether it exists.

        A segment is searched for among the stored ones, then those being received, and last as a partial one.

        Raises:
            NotIntactError: the stored file is damaged.
        """
        stored = self.stored(name)
        sources = (
            stored,
            self.receiving / name,
            self.path / f"{name}{PARTIAL}{SUFFIX}",
            self.receiving / (name + PARTIAL),
        )
        for source in sources:
            with suppress(FileNotFoundError):
                _unpack(source, destination)
                return True
        return stored.exists() and self.read(name, destination)  # it was completed between the two checks

    def _is_segment(self, name: str) -> bool:
        return parse_segment(name, self.cluster.segment_bytes) is not None


def _stored_name(name: str) -> str:
    return name if parse_history_name(name) else name + SUFFIX


def _copy(source: Path, destination: Path, *, compress: bool) -> tuple[int, str]:
    """Copy a file durably, compressed or not; return the copy's size and SHA-256."""
    digest, size = sha256(), 0
    squeeze = isal_zlib.compressobj(_LEVEL, isal_zlib.DEFLATED, _GZIP)
    with source.open("rb", buffering=0) as reader, destination.open("wb") as writer:
        os.fchmod(writer.fileno(), 0o600)
        while block := reader.read(_BLOCK_BYTES):
            piece = squeeze.compress(block) if compress else block
            digest.update(piece)
            size += writer.write(piece)
        if compress:
            piece = squeeze.flush()
            digest.update(piece)
            size += writer.write(piece)
        writer.flush()
        os.fsync(writer.fileno())
    return size, digest.hexdigest()


def _unpack(source: Path, destination: Path) -> None:
    """Write the content of a stored or received file."""
    with source.open("rb", buffering=0) as reader, destination.open("wb") as writer:
        if source.suffix != SUFFIX:
            while block := reader.read(_BLOCK_BYTES):
                writer.write(block)
            return
        inflate = isal_zlib.decompressobj(_GZIP)
        try:
            while block := reader.read(_BLOCK_BYTES):
                writer.write(inflate.decompress(block))
        except _InflateError as error:
            raise _damaged(source) from error
        if not inflate.eof:
            raise _damaged(source)


def _damaged(source: Path) -> NotIntactError:
    return NotIntactError(
        f"the WAL file {source} is damaged", hint="Fetch it from the off-site copy, or recover to an earlier moment."
    )


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:
        raise RepositoryError(
            f"cannot read {path}: {system_reason(error)}", hint="Run this as the user that the backups belong to."
        ) from error
    return found if isinstance(found, dict) else None


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=2, sort_keys=True).encode() + b"\n"
