"""A base backup as the server sends it: pg_basebackup's tar, member by member.

The tar comes through a pipe and is never on the disk as it is. WAL is not in it: the WAL archive has that.
"""

from __future__ import annotations

import tarfile
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import IO, TYPE_CHECKING, Final, cast

from portal.ops.archive.index import Member, MemberType
from portal.ops.errors import ConfigurationError, DumpFailedError
from portal.ops.pitr.base_manifest import LABEL, MANIFEST, PREFIX
from portal.ops.pitr.replication import (
    check,
    cluster_bytes,
    ensure_slot,
    named,
    superuser_name,
    tablespaces,
)
from portal.ops.postgres.client_tools import find_client
from portal.ops.postgres.connection import conninfo, libpq_environment
from portal.ops.postgres.server import maintenance

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from portal.ops.pitr.base_chain import BaseParent
    from portal.ops.pitr.replication import ServerSettings
    from portal.ops.runtime.process import ProcessRunner, RunningProcess
    from portal.ops.settings.load import DatabaseTarget

APPLICATION: Final = "kekkai-base"

_KEPT: Final = (LABEL, MANIFEST)
_READ_BYTES: Final = 1 << 20
_NOTHING: Final = BytesIO()


@dataclass(kw_only=True)
class BaseStream:
    """A base backup on its way; made by `open_base`.

    Arguments:
        expected_bytes: about how much there is.
        kept: the files of the backup that describe it, once they have come.
    """

    process: RunningProcess
    settings: ServerSettings
    superuser: str
    expected_bytes: int
    version: str
    kept: dict[str, bytes] = field(default_factory=dict)

    def members(self) -> Iterator[tuple[Member, IO[bytes]]]:
        """Every member of the cluster with its content, which has to be read before the next one is asked for.

        Raises:
            DumpFailedError: pg_basebackup failed (a retry can help).
        """
        started = time.time_ns() // 1_000_000_000 * 1_000_000_000
        yield Member(PREFIX, MemberType.DIRECTORY, mode=0o700, mtime_ns=started), _NOTHING
        try:
            with tarfile.open(fileobj=self.process.stdout, mode="r|", bufsize=_READ_BYTES) as tar:
                for found in tar:
                    yield self._member(tar, found)
                    tar.members.clear()  # type: ignore[attr-defined]  # or it keeps every one of them
        except tarfile.TarError as error:
            raise self._failed(f"its output is no tar ({error})") from error
        while self.process.stdout.read(_READ_BYTES):
            pass
        if self.process.wait() != 0:
            raise self._failed()

    def _member(self, tar: tarfile.TarFile, found: tarfile.TarInfo) -> tuple[Member, IO[bytes]]:
        name = found.name.removeprefix("./")
        kind = _KINDS.get(found.type)
        if kind is None:
            raise self._failed(f"{name} is neither file, directory nor link")
        member = Member(
            f"{PREFIX}/{name}",
            kind,
            found.size if kind is MemberType.FILE else 0,
            found.mode,
            found.uid,
            found.gid,
            int(found.mtime) * 1_000_000_000,
            link=found.linkname if kind is MemberType.SYMLINK else "",
        )
        if kind is not MemberType.FILE:
            return member, _NOTHING
        content = cast("IO[bytes]", tar.extractfile(found))
        if name not in _KEPT:
            return member, content
        self.kept[name] = content.read()
        return member, BytesIO(self.kept[name])

    def _failed(self, reason: str = "") -> DumpFailedError:
        self.process.kill()
        said = [line for line in self.process.stderr_tail().strip().splitlines() if line]
        last = next(
            (line for line in reversed(said) if "error" in line.lower()), said[-1] if said else "it says nothing"
        )
        hint = "See the server's log. The role needs REPLICATION and a line 'host replication …' in pg_hba.conf."
        return DumpFailedError(f"pg_basebackup failed: {reason or last}", hint=hint)


_KINDS: Final = {
    tarfile.REGTYPE: MemberType.FILE,
    tarfile.AREGTYPE: MemberType.FILE,
    tarfile.DIRTYPE: MemberType.DIRECTORY,
    tarfile.SYMTYPE: MemberType.SYMLINK,
}


@contextmanager
def open_base(
    target: DatabaseTarget, *, runner: ProcessRunner, bin_dir: Path | None, slot: str, parent: BaseParent | None = None
) -> Iterator[BaseStream]:
    """Start a base backup; the slot is made first, so that the server keeps the WAL that follows.

    Arguments:
        target: the server, as the role that may replicate.
        slot: the WAL service's slot.
        parent: the base backup that an incremental one follows; nothing for a full one.

    Raises:
        FullBaseNeededError: the server cannot continue the chain of the parent.
        ConfigurationError: the cluster has tablespaces, or the server is not configured for it.
        SourceError: the server cannot be reached, or does not allow it.
    """
    target = named(target, APPLICATION)
    with maintenance(target) as connection:
        settings = check(connection, target)
        if others := tablespaces(connection):
            raise ConfigurationError(
                f"the cluster has tablespaces ({', '.join(others)}), which a base backup cannot hold",
                hint="Move their tables to pg_default, or back this cluster up without point-in-time recovery.",
            )
        if parent:
            parent.check(settings)
        ensure_slot(connection, slot)
        superuser, size = superuser_name(connection), cluster_bytes(connection)
    tool = find_client("pg_basebackup", settings.cluster.major, runner=runner, bin_dir=bin_dir)
    command = [
        str(tool.path),
        "--pgdata=-",
        "--format=tar",
        "--wal-method=none",
        "--checkpoint=fast",
        "--manifest-checksums=SHA256",
        "--no-password",
        f"--dbname={conninfo(target)}",
    ]
    with _followed(parent) as following:
        process = runner.start([*command, *following], environment=libpq_environment(target))
        try:
            yield BaseStream(
                process=process, settings=settings, superuser=superuser, expected_bytes=size, version=tool.version
            )
        finally:
            process.stdout.close()
            process.kill()


@contextmanager
def _followed(parent: BaseParent | None) -> Iterator[list[str]]:
    """The option of pg_basebackup that names what is followed; it reads a file."""
    if parent is None:
        yield []
        return
    with tempfile.NamedTemporaryFile(prefix="kekkai-base-", suffix=".manifest") as file:
        file.write(parent.server_manifest())
        file.flush()
        yield [f"--incremental={file.name}"]
