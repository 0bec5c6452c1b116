"""Fills an archive with the components of a backup, and describes them in the manifest."""

from __future__ import annotations

import json
import socket
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from portal.ops.archive.compressor_pool import CompressorPool
from portal.ops.archive.writer import ArchiveWriter, Tally
from portal.ops.backup.loss import LOSS_OF, SourceState, check_loss, last_state, place_of
from portal.ops.backup.walk import FileTree, identity, tree_bytes
from portal.ops.backup.written import Written
from portal.ops.chains.deletions import encode_deletions
from portal.ops.chains.state_cache import Totals
from portal.ops.filesystem.xattrs import LABELS
from portal.ops.manifest import Manifest, room_for
from portal.ops.model import DELETED, Component, Loss, timestamp, version_of
from portal.ops.postgres.credential_key import credential_detail
from portal.ops.runtime.logs import engine_log
from portal.ops.runtime.progress import available_cores
from portal.ops.units import counted, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from portal.ops.archive.blocks import Readable
    from portal.ops.archive.packer import Foreign
    from portal.ops.backup.config import BackupConfig
    from portal.ops.backup.increment import Increment
    from portal.ops.backup.strategy import Strategy
    from portal.ops.model import BackupId
    from portal.ops.pitr.base_chain import BaseParent
    from portal.ops.repository.pending import PendingArchive
    from portal.ops.repository.repository import Repository
    from portal.ops.runtime.process import ProcessRunner
    from portal.ops.runtime.progress import Meter

log = engine_log("portal.ops.backup.collect")

_SECOND: Final = 1_000_000_000
_MOST_LINKS: Final = 5
_MOST_ROTATIONS: Final = 5
_MOST_ATTRIBUTES: Final = 10
_NAME_CHARACTERS: Final = 80
_WORTH_TELLING: Final = 100
"""The manifest has the sizes of tables that are at least one part in this number of the database."""

_FEW: Final = 200
"""This many files are packed before a helper process is ready."""


@dataclass(kw_only=True)
class Collection:
    """Fills one archive for one backup.

    Arguments:
        config: the sources.
        repository: the repository of the archive.
        pending: the archive to fill.
        strategy: which components and uploads to archive.
        runner: starts pg_dump.
        meter: counts the bytes read.
    """

    config: BackupConfig
    repository: Repository
    pending: PendingArchive
    backup_id: BackupId
    strategy: Strategy
    runner: ProcessRunner
    meter: Meter
    _dump_bytes: int = 0
    _file_bytes: int | None = None
    _deleted: Sequence[str] = ()
    _details: dict[str, dict[str, Any]] = field(default_factory=dict)
    _warnings: list[str] = field(default_factory=list)

    def run(self, moment: datetime) -> Written:
        """Collect everything, write the manifest, and sync."""
        self.meter.expect = self._expected_bytes
        jobs = self.config.jobs or available_cores()
        with CompressorPool(str(self.backup_id), jobs, compression=self.config.compression) as pool:
            writer = ArchiveWriter(
                self.pending.out,
                str(self.backup_id),
                pool,
                spool_directory=self.pending.final.parent,
                advance=self.meter.advance,
            )
            try:
                for component in self.components:
                    self.meter.phase = component.value
                    with _phase("component_collected", component) as facts:
                        if component is Component.MEDIA:
                            self._reach_uploads(pool)
                        facts |= self._collect(component, writer)
                manifest = self._describe(moment, writer)
                self.meter.phase = "publish"
                with _phase("archive_finished") as facts:
                    digest = writer.finish(manifest.encode(), mtime_ns=int(moment.timestamp()) * 1_000_000_000)
                    facts["bytes"] = self.pending.out.position
                return Written(
                    manifest=manifest, digest=digest, index=writer.take_index(), deleted=tuple(self._deleted)
                )
            finally:
                writer.close()

    @property
    def components(self) -> tuple[Component, ...]:
        """The components of the archive."""
        return self.strategy.components

    @property
    def increment(self) -> Increment | None:
        """The changed part of the uploads; None if they are archived completely."""
        return self.strategy.increment

    @property
    def base_parent(self) -> BaseParent | None:
        """The base backup that an incremental one follows."""
        return self.strategy.base_parent

    def _reach_uploads(self, pool: CompressorPool) -> None:
        self.strategy.reach_uploads()
        self._warnings += self.strategy.warnings
        if self.increment and len(self.increment.delta.taken) <= _FEW:
            pool.forgo_helpers()

    def _expected_bytes(self) -> int:
        """About how many bytes there are to read; files are counted once, and only on demand."""
        if not self.strategy.is_settled:
            return self._dump_bytes
        if self._file_bytes is None:
            excluded = frozenset([identity(self.pending.final.parent)])
            counted = [one for one in self.components if not (self.increment and one is Component.MEDIA)]
            sources = (self.config.source(component) for component in counted)
            self._file_bytes = sum(tree_bytes(source, excluded) for source in sources if source)
            self._file_bytes += self.increment.delta.content_bytes if self.increment else 0
        return self._dump_bytes + self._file_bytes

    def _collect(self, component: Component, writer: ArchiveWriter) -> dict[str, Any]:
        if component is Component.DATABASE:
            self._details[component.value] = self._dump(writer)
        elif component is Component.CLUSTER:
            from portal.ops.backup.cluster import copy_cluster  # imported late: it loads the database driver

            self._details[component.value] = copy_cluster(
                self.config, self.runner, writer, self.meter, self.base_parent
            )
        else:
            if not writer.reserved:
                writer.reserve(room_for(()))
            source = self.config.source(component)
            assert source is not None
            if self.increment and component is Component.MEDIA:
                self._details[component.value] = self._copy_changes(self.increment, writer)
            else:
                self._details[component.value] = self._copy(component, source, writer)
        return {"bytes": self._details[component.value]["bytes"]}

    def _dump(self, writer: ArchiveWriter) -> dict[str, Any]:
        from portal.ops.postgres.dump import open_dump

        bin_dir = Path(self.config.pg_bin_dir) if self.config.pg_bin_dir else None
        read_from = time.time_ns()
        with open_dump(
            self.config.database,
            runner=self.runner,
            timeout_seconds=self.config.dump_timeout,
            bin_dir=bin_dir,
            lock_timeout_seconds=self.config.lock_timeout,
        ) as dump:
            self._dump_bytes = dump.estimated_bytes
            large = {
                table: size for table, size in dump.table_bytes.items() if size * _WORTH_TELLING >= self._dump_bytes
            }
            described = dump.facts.to_dict()
            writer.reserve(room_for((*dump.table_names, *large)) + 2 * len(json.dumps(described, indent=12)))
            self._warnings += dump.facts.warnings
            begun = read_from // _SECOND * _SECOND
            member = writer.add_stream(Component.DATABASE.member, cast("Readable", dump.stdout), mtime_ns=begun)
            facts = dump.finish()
        return {
            "bytes": member.size,
            "files": 1,
            "sha256": member.sha256,
            "server_version": facts.server_version,
            "pg_dump_version": facts.pg_dump_version,
            **credential_detail(self.config.credential_key, str(self.backup_id)),
            "rows": facts.row_counts,
            "read_from_ns": read_from,
            "table_bytes": large,
            **described,
        }

    def _copy(self, component: Component, source: Path, writer: ArchiveWriter) -> dict[str, Any]:
        writer.tally = tally = Tally()
        excluded = frozenset([identity(self.pending.final.parent)])
        read_from = time.time_ns()
        with FileTree(root=source, prefix=component.member, excluded=excluded, tally=tally) as files:
            writer.add_items(files.tree, files.items())
            if component is Component.AUDIT_LOGS:
                _add_rotated(writer, files)
        if not self.config.is_confirmed(LOSS_OF[component]):
            check_loss(component, source, last_state(self.repository, component), tally.files)
        self._warnings += _warnings(tally)
        return {
            "bytes": tally.content_bytes,
            "files": tally.files,
            "root": "directory" if source.is_dir() else "file",
            "read_from_ns": read_from,
            "source": place_of(source),
            **_left_out(tally.foreign),
        }

    def _copy_changes(self, increment: Increment, writer: ArchiveWriter) -> dict[str, Any]:
        """Archive the changes since the parent, then the deletions, with files that vanish before they are read."""
        writer.tally = tally = Tally(special=[*increment.delta.special])
        read_from = time.time_ns()
        writer.add_items(increment.tree, increment.delta.items())
        increment.lose(tally)
        self._deleted = deleted = increment.delta.deleted()
        if deleted:
            writer.add_stream(DELETED, encode_deletions(deleted), mtime_ns=read_from // _SECOND * _SECOND)
        self._warnings += _warnings(tally)
        files, content_bytes = increment.tree_after(Totals(tally.files, tally.content_bytes))
        source = self.config.source(Component.MEDIA)
        assert source is not None
        if not self.config.is_confirmed(Loss.UPLOADS):
            check_loss(Component.MEDIA, source, SourceState.of(increment.parent.manifest, Component.MEDIA), files)
        return {
            "bytes": tally.content_bytes,
            "files": tally.files,
            "root": "directory",
            "read_from_ns": read_from,
            "source": place_of(source),
            **_left_out(tally.foreign),
            "deleted": len(deleted),
            "tree": {"bytes": content_bytes, "files": files},
        }

    def _describe(self, moment: datetime, writer: ArchiveWriter) -> Manifest:
        manifest = Manifest(
            backup_id=str(self.backup_id),
            type=self.backup_id.type.value,
            timestamp=timestamp(moment),
            components=self.components,
            hostname=socket.gethostname(),
            db_name=self.config.db_name if Component.DATABASE in self.components else "",
            details=self._details,
            warnings=tuple(self._warnings),
            warnings_total=len(self._warnings),
            **self._chain(),
        )
        for warning in self._warnings:
            log.warning("source_unsteady", detail=warning)
        while manifest.warnings and not writer.manifest_fits(manifest.encode()):
            manifest = replace(manifest, warnings=manifest.warnings[: len(manifest.warnings) // 2])
        return manifest

    def _chain(self) -> dict[str, Any]:
        """The manifest's keys for the chain and the format."""
        followed = self.increment or self.base_parent
        if followed is None:
            return {"format_version": version_of(self.backup_id.type, None)}
        base, parent = followed.line[0], followed.line[-1]
        return {
            "format_version": version_of(self.backup_id.type, parent.name),
            "parent": parent.name,
            "parent_sha256": parent.sha256,
            "base": base.name,
        }


@contextmanager
def _phase(event: str, component: Component | None = None) -> Iterator[dict[str, Any]]:
    """Log the end of a phase with its duration and the facts that the caller adds."""
    started = time.monotonic()
    facts: dict[str, Any] = {"component": component.value} if component else {}
    yield facts
    log.info(event, **facts, seconds=round(time.monotonic() - started, 3))


def _add_rotated(writer: ArchiveWriter, files: FileTree) -> None:
    """Add logs that got another name while they were read: under the old one was what followed them."""
    for _ in range(_MOST_ROTATIONS):
        if not (found := list(files.appeared())):
            return
        writer.add_items(files.tree, found)


def _warnings(tally: Tally) -> list[str]:
    return [
        *(f"{path} vanished before it could be read" for path in tally.vanished),
        *(f"{path} changed each time it was read; the last version read is in the archive" for path in tally.changed),
        *(f"{path} is a socket, a FIFO or a device and was left out" for path in tally.special),
        *(f"{path} has more extended attributes than an archive takes; they were left out" for path in tally.stripped),
        *_attributes(tally.foreign),
        *_links(tally.outside),
    ]


def _left_out(foreign: Foreign) -> dict[str, dict[str, int]]:
    """The detail that counts the members with each attribute that is not kept, labels of the machine included."""
    counts = {name: count for name, (count, _) in _most_common(foreign)}
    return {"attributes_left_out": counts} if counts else {}


def _attributes(foreign: Foreign) -> list[str]:
    """A warning for each attribute that is not kept and that somebody has set: not every file has it by itself."""
    return [
        f"{name}, an extended attribute of {counted(count, 'file or directory', 'files and directories')}, "
        f"is not kept (the first: {path})"
        for name, (count, path) in _most_common({name: foreign[name] for name in foreign.keys() - LABELS})
    ]


def _most_common(foreign: Foreign) -> list[tuple[str, tuple[int, str]]]:
    most = sorted(foreign.items(), key=lambda one: (-one[1][0], one[0]))[:_MOST_ATTRIBUTES]
    return [(printable(name)[:_NAME_CHARACTERS], found) for name, found in most]


def _links(outside: list[tuple[str, str]]) -> list[str]:
    """Warnings about symlinks that a restore would ask about; if there are many, only the first ones."""
    named = [
        f"the link {path} leads out of the tree, to {link}: a restore will ask for --allow-outside-links"
        for path, link in outside[:_MOST_LINKS]
    ]
    more = len(outside) - len(named)
    return [*named, f"{more:,} more links lead out of the tree"] if more else named
