"""Archives a base backup of the whole database cluster."""

from __future__ import annotations

import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from portal.ops.errors import DumpFailedError, NotIntactError
from portal.ops.manifest import room_for
from portal.ops.pitr.base_chain import FullBaseNeededError
from portal.ops.pitr.base_manifest import MANIFEST, PREFIX, manifest_faults, read_facts
from portal.ops.pitr.base_stream import APPLICATION, open_base
from portal.ops.pitr.lsn import format_lsn
from portal.ops.pitr.relations import read_relations
from portal.ops.pitr.replication import SLOT, named, server_clock
from portal.ops.postgres.server import maintenance

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from portal.ops.archive.blocks import Readable
    from portal.ops.archive.index import Member
    from portal.ops.archive.writer import ArchiveWriter
    from portal.ops.backup.config import BackupConfig
    from portal.ops.pitr.base_chain import BaseParent
    from portal.ops.runtime.process import ProcessRunner
    from portal.ops.runtime.progress import Meter


def copy_cluster(
    config: BackupConfig, runner: ProcessRunner, writer: ArchiveWriter, meter: Meter, parent: BaseParent | None = None
) -> dict[str, Any]:
    """Write a base backup to an archive; return the manifest's facts about it.

    Arguments:
        parent: the base backup that an incremental one follows; None for a full one.

    Raises:
        FullBaseNeededError: an incremental one is impossible, or would not save half of a full one.
        SourceError: the server cannot be reached, or sends no base backup.
        NotIntactError: the files differ from the server's own manifest.
    """
    target = config.replication
    bin_dir = Path(config.pg_bin_dir) if config.pg_bin_dir else None
    relations = read_relations(config.database)
    writer.reserve(room_for(tuple(relations.get("names", {}).values())))
    files: dict[str, tuple[int, str]] = {}
    read_from = time.time_ns()
    with open_base(target, runner=runner, bin_dir=bin_dir, slot=SLOT, parent=parent) as base:
        meter.expect = lambda: None if parent else base.expected_bytes
        members = _worthwhile(base.members(), parent)
        for member in writer.add_members(cast("Iterator[tuple[Member, Readable]]", members)):
            if member.sha256:
                files[member.path.removeprefix(f"{PREFIX}/")] = member.size, member.sha256
        with maintenance(named(target, APPLICATION)) as connection:
            ended = server_clock(connection)
    facts = read_facts(base.kept)
    _check(files, base.kept[MANIFEST])
    cluster = base.settings.cluster
    held = sum(size for size, _ in files.values())
    return {
        "bytes": held,
        **({"tree": {"bytes": max(parent.full_bytes, base.expected_bytes)}} if parent else {}),
        "read_from_ns": read_from,
        "files": len(files),
        "server_version": f"{base.settings.version // 10000}.{base.settings.version % 10000}",
        "pg_basebackup_version": base.version,
        "system_identifier": cluster.system_identifier,
        "segment_bytes": cluster.segment_bytes,
        "limits": dict(cluster.limits),
        "superuser": base.superuser,
        "timeline": facts.timeline,
        "start_lsn": format_lsn(facts.start_lsn),
        "end_lsn": format_lsn(facts.end_lsn),
        "ended": ended.isoformat(),
        "relations": relations,
    }


def _check(files: Mapping[str, tuple[int, str]], manifest: bytes) -> None:
    """Compare the files with the server's own manifest; raises `NotIntactError`."""
    if faults := manifest_faults(files, manifest):
        raise NotIntactError(
            f"the base backup differs from the server's own description: {'; '.join(faults[:3])}",
            hint="Start it again; look at the network and the memory of both machines.",
        )


def _worthwhile(members: Iterator[tuple[Member, IO[bytes]]], parent: BaseParent | None) -> Iterator[Any]:
    """The members, while they are small enough for an incremental base backup.

    Raises:
        FullBaseNeededError: they are too large, or the server refuses.
    """
    if parent is None:
        yield from members
        return
    held = 0
    try:
        for member, content in members:
            held += member.size
            if held > parent.most_bytes:
                raise FullBaseNeededError("an incremental one would hold more than half of a full one")
            yield member, content
    except DumpFailedError as error:
        raise FullBaseNeededError(error.message) from error
