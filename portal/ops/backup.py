"""Backing the portal up: the guide's Python API, and the job behind it.

    check      the repository can be written, the sources are there
    collect    database, then media, then audit log, each into frames of one archive
    describe   the manifest: what is in it, and what there is to know of it
    publish    on the disk, hashed, sidecar in place, renamed

A backup that is reported is whole: every component that was asked for is in it, or there is no archive.
"""

from __future__ import annotations

import errno
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any, Final, cast

import structlog

from portal.ops.archive.lanes import Lanes, available_cores
from portal.ops.archive.writer import ArchiveWriter, Readable, Tally, unreadable
from portal.ops.errors import (
    ConfigurationError,
    DiskFullError,
    OpsError,
    RepositoryError,
    SourceError,
    UnsupportedError,
)
from portal.ops.logs import engine_log
from portal.ops.manifest import Manifest, room_for
from portal.ops.model import FORMAT_VERSION, BackupId, BackupType, Component, VerifyLevel, timestamp
from portal.ops.process import ProcessRunner, SystemRunner
from portal.ops.repository import ArchiveFile, Draft, Repository, disk_full, read_sidecar
from portal.ops.settings import DatabaseTarget, Secret, Settings, load_settings
from portal.ops.sources.files import FileTree, identity, tree_bytes
from portal.ops.verify import Verification, Verifier, file_digest, open_archive

__all__ = ["BackupConfig", "BackupJob", "BackupResult", "BackupType", "create_backup_job"]

log = engine_log("portal.ops.backup")

PathLike = str | os.PathLike[str]
Clock = Callable[[], datetime]
Progress = Callable[["Step"], None]

_DISK_RESERVE: Final = 64 << 20
_SECRET_OPTIONS: Final = frozenset({"password", "sslpassword"})


def utc_now() -> datetime:
    """The clock that is used where no other is passed in."""
    return datetime.now(UTC)


@dataclass(frozen=True, kw_only=True)
class Step:
    """How far a job is.

    Arguments:
        phase: what it works on, such as a component's name.
        done: bytes of content so far, over all components.
        expect: how many there will be, about; asked only by who wants to know, since finding out takes a moment.
    """

    phase: str
    done: int
    expect: Callable[[], int | None] = field(default=lambda: None, compare=False)


@dataclass(frozen=True, kw_only=True)
class BackupConfig:
    """What to back up, and where to.

    Arguments:
        destination: where archives go; ``local`` is the only place of this release.
        local_path: the repository.
        s3_bucket: not in this release, like `s3_prefix` and `s3_endpoint`.
        db_host: the server, or the directory of its socket.
        db_password: where it is not given, libpq looks for it in ``~/.pgpass``.
        db_options: further connection options of libpq, such as ``sslmode``.
        media_path: the uploads; nothing leaves them out.
        audit_log_path: the audit log's directory, or the file itself; nothing leaves it out.
        encryption_enabled: not in this release.
        retention_days: days to keep archives.
        retention_count: how many archives to keep whatever their age.
        compress: archives are always compressed; switching it off is refused.
        pg_bin_dir: where pg_dump is; by default chosen by the server's version.
        dump_timeout: seconds that pg_dump may take.
        lock_timeout: seconds to wait for a lock.
        jobs: processes and threads that work at once; by default the cores there are.

    Raises:
        ConfigurationError: a value makes no sense.
        UnsupportedError: it asks for what this release cannot do.
    """

    destination: str | Enum = "local"
    local_path: PathLike = Path("/var/lib/kekkai-portal/backups")
    s3_bucket: str | None = None
    s3_prefix: str = ""
    s3_endpoint: str | None = None
    db_host: str = "localhost"
    db_port: int = 5432
    db_name: str = "defectdojo"
    db_user: str = "defectdojo"
    db_password: Secret | str | None = None
    db_options: Mapping[str, str] = field(default_factory=dict)
    media_path: PathLike | None = None
    audit_log_path: PathLike | None = None
    encryption_enabled: bool = False
    retention_days: int = 30
    retention_count: int = 10
    compress: bool = True
    pg_bin_dir: PathLike | None = None
    dump_timeout: float = 21600
    lock_timeout: float = 60
    jobs: int | None = None

    def __post_init__(self) -> None:
        for name in ("local_path", "media_path", "audit_log_path", "pg_bin_dir"):
            value = getattr(self, name)
            object.__setattr__(self, name, Path(value) if value else None)
        if isinstance(self.db_password, str):
            object.__setattr__(self, "db_password", Secret(self.db_password) if self.db_password else None)
        self._refuse_nonsense()
        self._refuse_unbuilt()

    def _refuse_nonsense(self) -> None:
        faults = []
        if self.local_path is None:
            faults.append("local_path is empty")
        if not 1 <= self.db_port <= 65535:
            faults.append(f"db_port is {self.db_port}, not a port")
        if self.retention_days < 0 or self.retention_count < 0:
            faults.append("retention_days and retention_count cannot be negative")
        if self.jobs is not None and self.jobs < 1:
            faults.append("jobs is less than 1")
        if self.dump_timeout <= 0 or self.lock_timeout < 0:
            faults.append("dump_timeout and lock_timeout are seconds, the first of them more than 0")
        if secret := self.db_options.keys() & _SECRET_OPTIONS:
            faults.append(f"db_options has {' and '.join(sorted(secret))}, which is no place for a secret")
        if faults:
            raise ConfigurationError("; ".join(faults), hint="Correct the arguments of BackupConfig.")

    def _refuse_unbuilt(self) -> None:
        place = self.destination.value if isinstance(self.destination, Enum) else self.destination
        wanted = {
            f"the destination {place!r}": place != "local",
            "a copy on S3": bool(self.s3_bucket or self.s3_endpoint or self.s3_prefix),
            "encryption": self.encryption_enabled,
            "an archive that is not compressed": not self.compress,
        }
        unbuilt = [what for what, asked in wanted.items() if asked]
        if unbuilt:
            raise UnsupportedError(
                f"this release does not have {' and '.join(unbuilt)}",
                hint="Leave it out; copy archives and their .sha256 files away with a tool of your own until then.",
            )

    @classmethod
    def from_settings(cls, settings: Settings) -> BackupConfig:
        """The configuration that the environment describes."""
        return cls(
            local_path=settings.local_path,
            db_host=settings.database.host,
            db_port=settings.database.port,
            db_name=settings.database.name,
            db_user=settings.database.user,
            db_password=settings.database.password,
            db_options=settings.database.options,
            media_path=settings.upload_dir,
            audit_log_path=settings.audit_dir,
            retention_days=settings.retention_days,
            retention_count=settings.retention_count,
            pg_bin_dir=settings.pg_bin_dir,
            dump_timeout=settings.dump_timeout,
            lock_timeout=settings.lock_timeout,
            jobs=settings.jobs,
        )

    @property
    def database(self) -> DatabaseTarget:
        """The database to dump."""
        password = self.db_password
        return DatabaseTarget(
            host=self.db_host,
            port=self.db_port,
            name=self.db_name,
            user=self.db_user,
            password=Secret(password) if isinstance(password, str) else password,
            options=self.db_options,
        )

    def source(self, component: Component) -> Path | None:
        """The directory or file of a component; nothing for the database, and where it is left out."""
        path = {Component.MEDIA: self.media_path, Component.AUDIT_LOGS: self.audit_log_path}.get(component)
        return Path(path) if path else None


@dataclass(frozen=True, kw_only=True)
class BackupResult:
    """How a backup ended.

    Arguments:
        success: every component that was asked for is whole, in an archive that is there.
        timestamp: when the backup was started.
        size_bytes: the archive's size.
        checksum: the archive's SHA-256, in hexadecimal.
        destination_path: the archive.
        error: what went wrong and what to do, where it did not succeed.
        components: what the archive holds.
        warnings: what is not quite as it should be, although the archive is whole.
        exit_code: the code that a program should end with: 0, or that of the error.
    """

    success: bool
    backup_id: str
    backup_type: BackupType
    timestamp: datetime
    size_bytes: int = 0
    checksum: str = ""
    destination_path: str = ""
    error: str | None = None
    duration_seconds: float = 0.0
    encrypted: bool = False
    components: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    exit_code: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The result in the types of JSON."""
        return {
            "success": self.success,
            "backup_id": self.backup_id,
            "type": self.backup_type.value,
            "backup_type": self.backup_type.value,
            "timestamp": timestamp(self.timestamp),
            "path": self.destination_path,
            "destination_path": self.destination_path,
            "size_bytes": self.size_bytes,
            "checksum": self.checksum,
            "components": list(self.components),
            "warnings": list(self.warnings),
            "error": self.error,
            "duration_seconds": round(self.duration_seconds, 3),
            "encrypted": self.encrypted,
            "format_version": FORMAT_VERSION,
        }


class BackupJob:
    """Makes, lists and verifies backups.

    Arguments:
        config: what and where.
        runner: what starts pg_dump.
        clock: what time it is.
        progress: told how far a backup is, several times a second.
    """

    def __init__(
        self,
        config: BackupConfig,
        *,
        runner: ProcessRunner | None = None,
        clock: Clock = utc_now,
        progress: Progress | None = None,
    ) -> None:
        self.config = config
        self.repository = Repository(Path(config.local_path), lock_timeout=config.lock_timeout)
        self._runner = runner or SystemRunner()
        self._clock = clock
        self._progress = progress

    def backup_full(self, *, moment: datetime | None = None, request_id: str | None = None) -> BackupResult:
        """Back up the database, and media and audit log where they are configured.

        Arguments:
            moment: the slot that the backup is for; now by default.
            request_id: what asked for it; the same moment and request give the same archive.
        """
        return self._run(BackupType.FULL, moment, request_id)

    def backup_database(self, *, moment: datetime | None = None, request_id: str | None = None) -> BackupResult:
        """Back up the database; arguments as for `backup_full`."""
        return self._run(BackupType.DATABASE, moment, request_id)

    def backup_media(self, *, moment: datetime | None = None, request_id: str | None = None) -> BackupResult:
        """Back up the uploads; arguments as for `backup_full`."""
        return self._run(BackupType.MEDIA, moment, request_id)

    def list_backups(self) -> list[dict[str, Any]]:
        """The archives of the repository, newest first, by names and sidecars alone.

        Raises:
            RepositoryError: the repository cannot be read.
        """
        return [_listed(archive) for archive in self.repository.archives()]

    def verify_backup(self, path: PathLike, level: VerifyLevel = VerifyLevel.CONTENTS) -> tuple[bool, str]:
        """Whether an archive is intact, and what was found."""
        try:
            found = self.verify(path, level)
        except OpsError as error:
            return False, str(error)
        return found.intact, found.message

    def verify(self, path: PathLike, level: VerifyLevel = VerifyLevel.CONTENTS) -> Verification:
        """Look at an archive, given by path, id or ``latest``.

        Raises:
            OpsError: it cannot be looked at; damage is no error, but in what is returned.
        """
        archive = self.repository.find(path)
        meter = _Meter(self._progress)
        meter.phase = "verify"
        verifier = Verifier(
            runner=self._runner,
            pg_bin_dir=Path(self.config.pg_bin_dir) if self.config.pg_bin_dir else None,
            jobs=self.config.jobs or available_cores(),
            advance=meter.advance,
        )
        with self._held(archive):
            found = verifier.verify(archive.path, VerifyLevel(level))
        tell, event = (log.info, "archive_verified") if found.intact else (log.error, "archive_damaged")
        tell(
            event,
            backup_id=archive.name,
            verify_level=found.level.value,
            damages=len(found.damages),
            seconds=round(found.duration_seconds, 3),
        )
        return found

    @contextmanager
    def _held(self, archive: ArchiveFile) -> Iterator[None]:
        """Keep a prune away from an archive of the repository; who may only read there, reads without."""
        if archive.path.parent == self.repository.path and os.access(self.repository.path, os.W_OK):
            with self.repository.shared():
                yield
        else:
            yield

    # -- one backup -------------------------------------------------------------------------------------------------

    def _run(self, kind: BackupType, moment: datetime | None, request_id: str | None) -> BackupResult:
        """One backup from check to publish; every fault becomes a result."""
        started = time.monotonic()
        submitted = moment or self._clock()
        backup_id = BackupId.of(kind, submitted, request_id or uuid.uuid4().hex)
        result = BackupResult(success=False, backup_id=str(backup_id), backup_type=kind, timestamp=submitted)
        with structlog.contextvars.bound_contextvars(backup_id=str(backup_id)):
            try:
                result = self._back_up(backup_id, result)
            except OpsError as error:
                result = replace(result, error=str(error), exit_code=error.exit_code)
            except OSError as error:
                explained = self._explain(error)
                result = replace(result, error=str(explained), exit_code=explained.exit_code)
            result = replace(result, duration_seconds=time.monotonic() - started)
            _log_result(result)
        return result

    def _back_up(self, backup_id: BackupId, result: BackupResult) -> BackupResult:
        components = self._components(backup_id.type)
        self.repository.prepare()
        self._check_sources(components)
        with self.repository.shared():
            for name in self.repository.sweep():
                log.warning("remains_swept", name=name)
            with self.repository.draft(backup_id) as draft:
                if draft is None:
                    return self._existing(self.repository.archive_path(backup_id), result)
                self._check_space(backup_id.type)
                job = _Collection(self, draft, backup_id, components)
                manifest, digest = job.run(result.timestamp)
                path = draft.commit(digest)
            return self._finished(path, digest, manifest, result)

    def _components(self, kind: BackupType) -> tuple[Component, ...]:
        """What the backup has to hold."""
        if kind is BackupType.FULL:
            files = (component for component in Component if self.config.source(component))
            return (Component.DATABASE, *files)
        component = Component(kind.value)
        if component is not Component.DATABASE and self.config.source(component) is None:
            raise ConfigurationError(
                f"there is no directory of {component.value} to back up",
                hint="Set PORTAL_UPLOAD_DIR (or media_path) to the portal's uploads.",
            )
        return (component,)

    def _check_sources(self, components: tuple[Component, ...]) -> None:
        repository = identity(self.repository.path)
        for component in components:
            source = self.config.source(component)
            if source is None:
                continue
            name = _VARIABLES[component]
            try:
                place = Path(os.path.realpath(source, strict=True))
            except (FileNotFoundError, NotADirectoryError) as error:
                raise SourceError(
                    f"{source} does not exist, so the {component.value} cannot be backed up",
                    hint=f"Mount or create it, or correct {name}; set {name} to nothing to leave it out on purpose.",
                ) from error
            except OSError as error:
                raise unreadable(os.fsencode(source), error.errno or 0) from error
            if any(identity(parent) == repository for parent in (place, *place.parents)):
                raise ConfigurationError(
                    f"{source} lies inside the repository {self.repository.path}",
                    hint=f"Move BACKUP_LOCAL_PATH out of it, or correct {name}.",
                )

    def _check_space(self, kind: BackupType) -> None:
        """Refuse to start what the last backup of the same type says cannot fit."""
        last = next((one for one in self.repository.archives() if one.backup_id and one.backup_id.type is kind), None)
        needed = _DISK_RESERVE + (last.size if last else 0)
        disk = os.statvfs(self.repository.path)
        free = disk.f_bavail * disk.f_frsize
        if free < needed:
            raise DiskFullError(
                f"{self.repository.path} has {free >> 20} MiB free, and this backup needs about {needed >> 20} MiB",
                hint="Remove old archives, or move BACKUP_LOCAL_PATH to a larger disk; nothing was written yet.",
            )

    def _existing(self, path: Path, result: BackupResult) -> BackupResult:
        """The result of a request that was fulfilled before."""
        log.info("archive_found", path=str(path))
        reader = open_archive(path)
        try:
            manifest = reader.manifest()
        finally:
            reader.close()
        return self._finished(path, read_sidecar(path) or file_digest(path), manifest, result)

    def _finished(self, path: Path, digest: str, manifest: Manifest, result: BackupResult) -> BackupResult:
        return replace(
            result,
            success=True,
            size_bytes=path.stat().st_size,
            checksum=digest,
            destination_path=str(path),
            components=tuple(component.value for component in manifest.components),
            warnings=manifest.warnings,
        )

    def _explain(self, error: OSError) -> OpsError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return disk_full(self.repository.path)
        place = f" ({error.filename})" if error.filename else ""
        return RepositoryError(
            f"the operating system refused: {error.strerror}{place}",
            hint="Look at the disk and the permissions of the repository, then start the backup again.",
        )


_VARIABLES: Final = {Component.MEDIA: "PORTAL_UPLOAD_DIR", Component.AUDIT_LOGS: "PORTAL_AUDIT_DIR"}


class _Meter:
    """Adds up what was read, and tells it on."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._done = 0
        self.phase = ""
        self.expect: Callable[[], int | None] = lambda: None

    def advance(self, count: int) -> None:
        self._done += count
        if self._progress:
            self._progress(Step(phase=self.phase, done=self._done, expect=self.expect))


class _Collection:
    """Fills one archive with the components of one backup."""

    def __init__(self, job: BackupJob, draft: Draft, backup_id: BackupId, components: tuple[Component, ...]) -> None:
        self._job = job
        self._config = job.config
        self._draft = draft
        self._backup_id = backup_id
        self._components = components
        self._meter = _Meter(job._progress)  # noqa: SLF001
        self._meter.expect = self._expected_bytes
        self._dump_bytes = 0
        self._file_bytes: int | None = None
        self._details: dict[str, dict[str, Any]] = {}
        self._warnings: list[str] = []

    def run(self, moment: datetime) -> tuple[Manifest, str]:
        """Collect, describe, and put everything on the disk; the manifest and the archive's SHA-256."""
        jobs = self._config.jobs or available_cores()
        with Lanes(str(self._backup_id), jobs) as lanes:
            writer = ArchiveWriter(
                self._draft.out,
                str(self._backup_id),
                lanes,
                spool_directory=self._draft.final.parent,
                advance=self._meter.advance,
            )
            try:
                for component in self._components:
                    self._meter.phase = component.value
                    with _phase("component_collected", component) as facts:
                        facts |= self._collect(component, writer)
                manifest = self._describe(moment, writer)
                self._meter.phase = "publish"
                with _phase("archive_finished") as facts:
                    digest = writer.finish(manifest.encode(), mtime_ns=int(moment.timestamp()) * 1_000_000_000)
                    facts["bytes"] = self._draft.out.position
                return manifest, digest
            finally:
                writer.close()

    def _expected_bytes(self) -> int:
        """About how much there is to read; the files are counted once, and only if somebody asks."""
        if self._file_bytes is None:
            excluded = frozenset([identity(self._job.repository.path)])
            sources = (self._config.source(component) for component in self._components)
            self._file_bytes = sum(tree_bytes(source, excluded) for source in sources if source)
        return self._dump_bytes + self._file_bytes

    def _collect(self, component: Component, writer: ArchiveWriter) -> dict[str, Any]:
        if component is Component.DATABASE:
            self._details[component.value] = self._dump(writer)
        else:
            if not writer.reserved:
                writer.reserve(room_for(()))
            source = self._config.source(component)
            assert source is not None
            self._details[component.value] = self._copy(component, source, writer)
        return {"bytes": self._details[component.value]["bytes"]}

    def _dump(self, writer: ArchiveWriter) -> dict[str, Any]:
        from portal.ops.sources.postgres import open_dump

        bin_dir = Path(self._config.pg_bin_dir) if self._config.pg_bin_dir else None
        started = time.time_ns() // 1_000_000_000 * 1_000_000_000
        with open_dump(
            self._config.database,
            runner=self._job._runner,  # noqa: SLF001
            timeout_seconds=self._config.dump_timeout,
            bin_dir=bin_dir,
            lock_timeout_seconds=self._config.lock_timeout,
        ) as dump:
            self._dump_bytes = dump.estimated_bytes
            writer.reserve(room_for(dump.table_names))
            member = writer.add_stream(Component.DATABASE.member, cast("Readable", dump.stdout), mtime_ns=started)
            facts = dump.finish()
        return {
            "bytes": member.size,
            "files": 1,
            "sha256": member.sha256,
            "server_version": facts.server_version,
            "pg_dump_version": facts.pg_dump_version,
            "rows": facts.row_counts,
        }

    def _copy(self, component: Component, source: Path, writer: ArchiveWriter) -> dict[str, Any]:
        writer.tally = tally = Tally()
        excluded = frozenset([identity(self._job.repository.path)])
        tree = FileTree(root=source, prefix=component.member, excluded=excluded, tally=tally)
        writer.add_items(tree.items())
        self._warnings += _warnings(tally)
        return {
            "bytes": tally.content_bytes,
            "files": tally.files,
            "root": "directory" if source.is_dir() else "file",
        }

    def _describe(self, moment: datetime, writer: ArchiveWriter) -> Manifest:
        manifest = Manifest(
            backup_id=str(self._backup_id),
            type=self._backup_id.type.value,
            timestamp=timestamp(moment),
            components=self._components,
            hostname=socket.gethostname(),
            db_name=self._config.db_name if Component.DATABASE in self._components else "",
            details=self._details,
            warnings=tuple(self._warnings),
            warnings_total=len(self._warnings),
        )
        for warning in self._warnings:
            log.warning("source_unsteady", detail=warning)
        while not writer.manifest_fits(manifest.encode()):
            manifest = replace(manifest, warnings=manifest.warnings[: len(manifest.warnings) // 2])
        return manifest


def create_backup_job(
    local_path: PathLike | None = None,
    db_host: str | None = None,
    db_name: str | None = None,
    media_path: PathLike | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    **others: Any,
) -> BackupJob:
    """A job as the environment describes it; what is given here wins over the environment.

    Arguments:
        environ: the variables to read instead of the process's own.
        others: any other argument of `BackupConfig`.

    Raises:
        ConfigurationError: the environment or an argument makes no sense.
    """
    config = BackupConfig.from_settings(load_settings(os.environ if environ is None else environ, read_text))
    given = {"local_path": local_path, "db_host": db_host, "db_name": db_name, "media_path": media_path, **others}
    return BackupJob(replace(config, **{name: value for name, value in given.items() if value is not None}))


def read_text(path: str) -> str:
    """Read the file that holds a secret."""
    return Path(path).read_text("utf-8")


@contextmanager
def _phase(event: str, component: Component | None = None) -> Iterator[dict[str, Any]]:
    """Log the end of a phase with its duration and what the caller puts into the dictionary."""
    started = time.monotonic()
    facts: dict[str, Any] = {"component": component.value} if component else {}
    yield facts
    log.info(event, **facts, seconds=round(time.monotonic() - started, 3))


def _log_result(result: BackupResult) -> None:
    seconds = round(result.duration_seconds, 3)
    if result.success:
        log.info("archive_published", path=result.destination_path, bytes=result.size_bytes, seconds=seconds)
    else:
        log.error("backup_failed", seconds=seconds, error=result.error)


def _warnings(tally: Tally) -> list[str]:
    return [
        *(f"{path} vanished before it could be read" for path in tally.vanished),
        *(f"{path} changed each time it was read; what was read last is in the archive" for path in tally.changed),
        *(f"{path} is a socket, a FIFO or a device and was left out" for path in tally.special),
    ]


def _listed(archive: ArchiveFile) -> dict[str, Any]:
    try:
        checksum = read_sidecar(archive.path)
    except OpsError:
        checksum = None
    return {
        "path": str(archive.path),
        "name": archive.path.name,
        "backup_id": archive.name,
        "type": archive.backup_id.type.value if archive.backup_id else None,
        "timestamp": timestamp(archive.moment),
        "size_bytes": archive.size,
        "modified": timestamp(archive.modified),
        "checksum": checksum,
    }
