"""A base backup as the server sends it: the tar of pg_basebackup, member by member.

The tar comes through a pipe and is never stored itself. It has no WAL: the WAL archive holds that.
"""

from __future__ import annotations

import tarfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import IO, TYPE_CHECKING, Final, cast

from portal.ops.archive.index import Member, MemberType
from portal.ops.errors import ConfigurationError, DumpFailedError
from portal.ops.pitr.archiver_watch import archiver_watched
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
from portal.ops.runtime.unnamed_file import unnamed_file

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
    """A running base backup; made by `open_base`.

    Arguments:
        expected_bytes: about how many bytes will come.
        kept: the two files that describe the backup, once they have come.
    """

    process: RunningProcess
    settings: ServerSettings
    superuser: str
    expected_bytes: int
    version: str
    kept: dict[str, bytes] = field(default_factory=dict)

    def members(self) -> Iterator[tuple[Member, IO[bytes]]]:
        """Every member of the cluster with its content, which must be read before the next member is requested.

        Raises:
            DumpFailedError: pg_basebackup failed (retryable).
        """
        started = time.time_ns() // 1_000_000_000 * 1_000_000_000
        yield Member(PREFIX, MemberType.DIRECTORY, mode=0o700, mtime_ns=started), _NOTHING
        try:
            with tarfile.open(fileobj=self.process.stdout, mode="r|", bufsize=_READ_BYTES, encoding="utf-8") as tar:
                for found in tar:
                    yield self._member(tar, found)
                    tar.members.clear()  # type: ignore[attr-defined]  # or it keeps every one of them
        except tarfile.TarError as error:
            raise self.failure(silent=f"its output is no tar ({error})") from error
        while self.process.stdout.read(_READ_BYTES):
            pass
        if self.process.wait() != 0:
            raise self.failure()

    def _member(self, tar: tarfile.TarFile, found: tarfile.TarInfo) -> tuple[Member, IO[bytes]]:
        name = found.name.removeprefix("./")
        kind = _KINDS.get(found.type)
        if kind is None:
            raise self.failure(f"{name} is neither file, directory nor link")
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

    def failure(self, reason: str = "", *, silent: str = "it says nothing") -> DumpFailedError:
        """End the program, and return the error for it.

        Arguments:
            reason: in place of the program's last words.
            silent: the reason if the program has said nothing.
        """
        self.process.kill()
        said = [line for line in self.process.stderr_tail().strip().splitlines() if line]
        last = next((line for line in reversed(said) if "error" in line.lower()), said[-1] if said else silent)
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
    """Start a base backup. The slot is created first, so that the server keeps the WAL that follows.

    Arguments:
        target: the server, with the replication role.
        slot: the slot of the WAL service.
        parent: the base backup that an incremental one follows; None for a full one.

    Raises:
        FullBaseNeededError: the server cannot continue the parent's chain.
        ConfigurationError: the cluster has tablespaces, or the server's settings do not permit base backups.
        SourceError: the server cannot be reached, or refuses.
        DumpFailedError: pg_basebackup ended too early, or the server waits for its own archiving (both retryable).
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
        stream = BaseStream(
            process=process, settings=settings, superuser=superuser, expected_bytes=size, version=tool.version
        )
        with _running(stream, target):
            yield stream


@contextmanager
def _running(stream: BaseStream, target: DatabaseTarget) -> Iterator[None]:
    """End the program at the end; explain an end in the middle of a file, which only the reader of its content sees."""
    try:
        with archiver_watched(target, APPLICATION, stream.process):
            try:
                yield
            except tarfile.TarError as error:
                raise stream.failure() from error
    finally:
        stream.process.stdout.close()
        stream.process.kill()


@contextmanager
def _followed(parent: BaseParent | None) -> Iterator[list[str]]:
    """The pg_basebackup option that names the parent's manifest, written to a file."""
    if parent is None:
        yield []
        return
    with unnamed_file(parent.server_manifest()) as manifest:
        yield [f"--incremental={manifest}"]
