"""The database cluster on its way into an archive of its own: a base backup."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from portal.ops.errors import NotIntactError
from portal.ops.manifest import room_for
from portal.ops.pitr.base_manifest import MANIFEST, PREFIX, manifest_faults, read_facts
from portal.ops.pitr.base_stream import APPLICATION, open_base
from portal.ops.pitr.lsn import format_lsn
from portal.ops.pitr.relations import read_relations
from portal.ops.pitr.replication import SLOT, named, server_clock
from portal.ops.postgres.server import maintenance

if TYPE_CHECKING:
    from collections.abc import Iterator

    from portal.ops.archive.blocks import Readable
    from portal.ops.archive.index import Member
    from portal.ops.archive.writer import ArchiveWriter
    from portal.ops.backup.config import BackupConfig
    from portal.ops.runtime.process import ProcessRunner
    from portal.ops.runtime.progress import Meter


def copy_cluster(config: BackupConfig, runner: ProcessRunner, writer: ArchiveWriter, meter: Meter) -> dict[str, Any]:
    """Put a base backup into an archive; what the manifest says of it.

    Raises:
        SourceError: the server cannot be reached, or does not send one.
        NotIntactError: what it sent is not what its own manifest says.
    """
    target = config.replication
    bin_dir = Path(config.pg_bin_dir) if config.pg_bin_dir else None
    relations = read_relations(config.database)
    writer.reserve(room_for(tuple(relations.get("names", {}).values())))
    files: dict[str, tuple[int, str]] = {}
    with open_base(target, runner=runner, bin_dir=bin_dir, slot=SLOT) as base:
        meter.expect = lambda: base.expected_bytes
        for member in writer.add_members(cast("Iterator[tuple[Member, Readable]]", base.members())):
            if member.sha256:
                files[member.path.removeprefix(f"{PREFIX}/")] = member.size, member.sha256
        with maintenance(named(target, APPLICATION)) as connection:
            ended = server_clock(connection)
    facts = read_facts(base.kept)
    if faults := manifest_faults(files, base.kept[MANIFEST]):
        raise NotIntactError(
            f"the base backup is not what the server says it sent: {'; '.join(faults[:3])}",
            hint="Start it again; look at the network and the memory of both machines.",
        )
    cluster = base.settings.cluster
    return {
        "bytes": sum(size for size, _ in files.values()),
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
