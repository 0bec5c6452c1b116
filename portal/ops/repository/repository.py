"""The repository: a directory of archives, and the only record of what has been backed up.

An archive exists if and only if its final name does. It is written under a hidden name, put on the disk, hashed; then
its sidecar is put in place; then the rename makes it an archive. Who writes one holds a lock on its hidden file, so
that the remains of a crash can be told from work in progress: nobody holds theirs.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shlex
import signal
import stat
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final

from portal.ops.archive.output_file import OutFile
from portal.ops.errors import ArchiveAbsentError, BusyError, DiskFullError, NotIntactError, RepositoryError
from portal.ops.model import SIDECAR_SUFFIX, SUFFIX, BackupId, BackupType

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

PARTIAL_SUFFIX: Final = ".partial"
LOCK_NAME: Final = ".lock"
CHAIN_LOCK_NAME: Final = ".chain.lock"

_SIDECAR: Final = re.compile(r"([0-9a-f]{64})[ \t]+\*?([^\n]+)\n?")
_UNFINISHED: Final = re.compile(r"\..+\.\d+\.tmp")
_POLL_SECONDS: Final = 0.05
_READ_BYTES: Final = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ArchiveFile:
    """An archive in the repository, by what its name and its directory entry say.

    Arguments:
        path: the file.
        size: bytes.
        modified: when it was written.
        backup_id: its id; nothing where the name is not one of ours.
    """

    path: Path
    size: int
    modified: datetime
    backup_id: BackupId | None

    @property
    def name(self) -> str:
        """The name without the suffix, which is the id."""
        return self.path.name.removesuffix(SUFFIX)

    @property
    def moment(self) -> datetime:
        """When the backup was made, by its id; by its file where it has none."""
        return self.backup_id.moment if self.backup_id else self.modified


class Repository:
    """The directory of archives.

    Arguments:
        path: the directory; it need not exist yet.
        lock_timeout: seconds to wait for a lock before giving up.
    """

    def __init__(self, path: Path, *, lock_timeout: float = 60) -> None:
        self.path = path
        self._lock_timeout = lock_timeout

    def prepare(self) -> None:
        """Make sure that the directory exists and can be written.

        Raises:
            RepositoryError: it cannot.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise _trouble(error, "cannot create", self.path, denied=_hint(_MAKE_HINT, self.path)) from error
        if not os.access(self.path, os.W_OK | os.X_OK):
            reason = errno.EROFS if os.statvfs(self.path).f_flag & os.ST_RDONLY else errno.EACCES
            raise _trouble(OSError(reason, ""), "cannot write to", self.path)

    def archive_path(self, backup_id: BackupId) -> Path:
        """Where the archive of a backup is, or will be."""
        return self.path / f"{backup_id}{SUFFIX}"

    # -- reading ----------------------------------------------------------------------------------------------------

    def archives(self) -> list[ArchiveFile]:
        """All archives, newest first.

        Raises:
            RepositoryError: the directory cannot be read.
        """
        try:
            with os.scandir(self.path) as entries:
                names = [entry.name for entry in entries]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _trouble(error, "cannot read", self.path) from error
        paths = [self.path / name for name in names if name.endswith(SUFFIX) and not name.startswith(".")]
        found = [archive for path in paths if (archive := _look_at(path))]
        return sorted(found, key=lambda archive: (archive.moment, archive.modified, archive.name), reverse=True)

    def find(
        self, name: str | os.PathLike[str], *, latest_of: Collection[BackupType] = tuple(BackupType)
    ) -> ArchiveFile:
        """The archive of that path, file name, id or unambiguous start of an id; ``latest`` is the newest.

        Arguments:
            latest_of: the types that ``latest`` is chosen from; files whose names are no ids only where there is none.

        Raises:
            ArchiveAbsentError: there is none, or more than one.
            RepositoryError: it may not be looked at.
        """
        text = os.fspath(name).removesuffix(SIDECAR_SUFFIX)
        if text == "latest":
            archives = self.archives()
            wanted = [archive for archive in archives if archive.backup_id and archive.backup_id.type in latest_of]
            hits = (wanted or archives)[:1]
        else:
            for candidate in (Path(text), self.path / text, self.path / f"{text}{SUFFIX}"):
                if archive := _look_at(candidate):
                    return archive
            hits = [archive for archive in self.archives() if text and archive.name.startswith(text)]
        if len(hits) == 1:
            return hits[0]
        raise _absent(text, hits, self.path)

    # -- writing ----------------------------------------------------------------------------------------------------

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Hold off a prune; any number of backups and verifications can do so at once.

        Raises:
            BusyError: a prune did not end in time.
        """
        with self._locked(fcntl.LOCK_SH):
            yield

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold off everybody else.

        Raises:
            BusyError: somebody holds the lock, shared or not, and did not end in time.
        """
        with self._locked(fcntl.LOCK_EX):
            yield

    @contextmanager
    def chain(self) -> Iterator[None]:
        """Hold off other incremental backups, so that two never follow the same archive.

        Raises:
            BusyError: another one did not end in time.
        """
        with self._locked(fcntl.LOCK_EX, CHAIN_LOCK_NAME):
            yield

    @contextmanager
    def draft(self, backup_id: BackupId) -> Iterator[Draft | None]:
        """The archive of a backup, to be written and committed; nothing where it exists already.

        Waits for another process that is writing the same one. Where what follows fails, nothing is left of the draft.

        Raises:
            BusyError: the other process did not end in time.
            RepositoryError: the directory cannot be written.
        """
        final = self.archive_path(backup_id)
        deadline = time.monotonic() + self._lock_timeout
        draft = None
        try:
            while draft is None and not final.exists():
                with _signals_held_back():
                    draft = self._begin(final)
                if draft is None and time.monotonic() >= deadline:
                    raise BusyError(
                        f"{backup_id} is being written by another process", hint="Wait for it, then try again."
                    )
                if draft is None:
                    time.sleep(_POLL_SECONDS)
            yield draft
        except BaseException:
            if draft is not None:
                draft.discard()
            raise
        finally:
            if draft is not None:
                draft.out.close()

    def _begin(self, final: Path) -> Draft | None:
        """A draft; nothing where another process has one, or has just finished."""
        partial = _partial(final)
        try:
            descriptor = _open_locked(partial)
        except OSError as error:
            raise _trouble(error, "cannot write to", self.path) from error
        if descriptor is None:
            return None
        if final.exists():  # its writer finished between our two looks
            partial.unlink()
            os.close(descriptor)
            return None
        os.ftruncate(descriptor, 0)
        return Draft(final, descriptor)

    @contextmanager
    def vacated(self, name: str) -> Iterator[bool]:
        """Keep others from writing an archive of that name; whether it is not there, and nobody is at it.

        Where there is no room for the hidden file that is locked, nobody else has room for one either.
        """
        final = self.path / f"{name}{SUFFIX}"
        partial, descriptor = _partial(final), None
        try:
            try:
                descriptor = _open_locked(partial)
                is_ours = descriptor is not None
            except OSError as error:
                is_ours = error.errno in (errno.ENOSPC, errno.EDQUOT)
            yield is_ours and not os.path.lexists(final)
        finally:
            if descriptor is not None:
                partial.unlink(missing_ok=True)
                os.close(descriptor)

    def sweep(self) -> list[str]:
        """Remove what backups that were killed have left; the names of what was removed.

        What this user may not open is left for the one who may.
        """
        swept = []
        for partial in sorted(self.path.glob(f".*{SUFFIX}{PARTIAL_SUFFIX}")):
            if BackupId.parse(_final(partial).name.removesuffix(SUFFIX)) is None:
                continue
            with suppress(FileNotFoundError, PermissionError):
                descriptor = _open_locked(partial, create=False)
                if descriptor is None:
                    continue
                _remove_remains(partial)
                os.close(descriptor)
                swept.append(partial.name)
        return swept

    @contextmanager
    def _locked(self, kind: int, name: str = LOCK_NAME) -> Iterator[None]:
        lock = self.path / name
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise _trouble(error, "cannot open", lock, denied=_hint(_OWNER_HINT, self.path)) from error
        try:
            give_to_owner(descriptor, self.path)
            deadline = time.monotonic() + self._lock_timeout
            while not try_lock(descriptor, kind):
                if time.monotonic() >= deadline:
                    raise BusyError(
                        f"the repository {self.path} is locked by another process",
                        hint="Wait for it to end, then try again; BACKUP_LOCK_TIMEOUT sets how long to wait.",
                    )
                time.sleep(_POLL_SECONDS)
            yield
        finally:
            os.close(descriptor)


class Draft:
    """An archive that is being written: `commit` makes it one, `discard` leaves nothing of it."""

    def __init__(self, final: Path, descriptor: int) -> None:
        self.final = final
        self.partial = _partial(final)
        self.out = OutFile(descriptor)

    def commit(self, digest: str) -> Path:
        """Publish the archive; everything in it must be on the disk, and `digest` be its SHA-256."""
        sidecar = sidecar_of(self.final)
        write_durably(sidecar, f"{digest}  {self.final.name}\n".encode())
        self.partial.rename(self.final)  # the commit
        sync_directory(self.final.parent)
        return self.final

    def discard(self) -> None:
        """Remove what was written; an archive that was committed stays."""
        with suppress(FileNotFoundError):
            _remove_remains(self.partial)


def sidecar_of(archive: Path) -> Path:
    """Where the digest of an archive is kept."""
    return archive.with_name(archive.name + SIDECAR_SUFFIX)


def read_sidecar(archive: Path) -> str | None:
    """The SHA-256 that an archive should have, in hexadecimal; nothing where it has no sidecar.

    Raises:
        NotIntactError: the sidecar is not what `sha256sum` writes, or is another file's.
    """
    try:
        text = sidecar_of(archive).read_text("utf-8", "replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _trouble(error, "cannot read", sidecar_of(archive)) from error
    found = _SIDECAR.fullmatch(text)
    if not found or Path(found[2]).name != archive.name:
        raise NotIntactError(
            f"the checksum file {sidecar_of(archive).name} is damaged, or another archive's",
            hint="Transfer the archive and its .sha256 file again from where they were made.",
        )
    return found[1]


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal.

    Raises:
        RepositoryError: it cannot be read.
    """
    digest, buffer = sha256(), bytearray(_READ_BYTES)
    view = memoryview(buffer)
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(view[:count])
    except OSError as error:
        raise _trouble(error, "cannot read", path) from error
    return digest.hexdigest()


def write_durably(path: Path, data: bytes) -> None:
    """Write a small file so that it is there whole or not at all, whatever happens."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            give_to_owner(descriptor, path.parent)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def give_to_owner(descriptor: int, directory: Path) -> None:
    """Give what root has made in a directory to whom the directory belongs, who could not use it otherwise.

    A file that has other names is left alone: it may have been put there for root to give away.
    """
    if os.geteuid() != 0:
        return
    found, owner = os.fstat(descriptor), os.stat(directory)
    if found.st_uid == 0 != owner.st_uid and (found.st_nlink == 1 or stat.S_ISDIR(found.st_mode)):
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def make_hidden(path: Path) -> None:
    """Make a directory of records in a repository, unless it is there: its owner's, and nobody else's.

    Raises:
        OSError: it cannot be made.
    """
    path.mkdir(mode=0o700, exist_ok=True)
    if os.geteuid() == 0:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            give_to_owner(descriptor, path.parent)
        finally:
            os.close(descriptor)


def unfinished(directory: Path) -> list[Path]:
    """The hidden files of writes that have not come to their end, or never will."""
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, PermissionError):
        return []
    return [directory / name for name in sorted(names) if _UNFINISHED.fullmatch(name)]


def sync_directory(path: Path) -> None:
    """Put the names in a directory on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_OWNER_HINT: Final = (
    "Run this as the user that the backups belong to, or give them to the user that runs it: "
    "chown -R kekkai:kekkai {path}"
)
_MAKE_HINT: Final = "Make it once, as root: install -d -m 700 -o kekkai -g kekkai {path}"
_NOT_THERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})


def _trouble(error: OSError, doing: str, path: Path, *, denied: str = "") -> RepositoryError:
    reason = os.strerror(error.errno or 0).lower()
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(path)
    if error.errno in (errno.EACCES, errno.EPERM):
        return RepositoryError(f"{doing} {path}: {reason}", hint=denied or _hint(_OWNER_HINT, path))
    return RepositoryError(
        f"{doing} {path}: {reason}", hint="Look at the disk and its mount; BACKUP_LOCAL_PATH names it."
    )


def _hint(text: str, path: Path) -> str:
    return text.format(path=shlex.quote(str(path)))


def disk_full(path: Path) -> DiskFullError:
    """The error for a repository that has no room left."""
    return DiskFullError(
        f"no space left for the archive in {path}",
        hint="Remove old archives, or move BACKUP_LOCAL_PATH to a larger disk; what was written of this one is gone.",
    )


def _look_at(path: Path) -> ArchiveFile | None:
    """The archive at a path; nothing where no file is, or can be."""
    try:
        found = path.stat()
    except ValueError:  # a NUL in it
        return None
    except OSError as error:
        if error.errno in _NOT_THERE:
            return None
        raise _trouble(error, "cannot read", path) from error
    if not stat.S_ISREG(found.st_mode):
        return None
    return ArchiveFile(
        path=path,
        size=found.st_size,
        modified=datetime.fromtimestamp(found.st_mtime, UTC),
        backup_id=BackupId.parse(path.name.removesuffix(SUFFIX)),
    )


def _absent(text: str, hits: list[ArchiveFile], path: Path) -> ArchiveAbsentError:
    hint = "'./tools/backup.sh list' shows what there is; BACKUP_LOCAL_PATH says where it is looked for."
    if hits:
        return ArchiveAbsentError(f"{text!r} could be any of {', '.join(hit.name for hit in hits[:5])}", hint=hint)
    if text == "latest":
        return ArchiveAbsentError(
            f"there is no archive in {path}", hint="'./tools/backup.sh full' makes the first one."
        )
    return ArchiveAbsentError(f"there is no archive {text!r}, neither as a path nor in {path}", hint=hint)


def _partial(final: Path) -> Path:
    return final.with_name(f".{final.name}{PARTIAL_SUFFIX}")


def _final(partial: Path) -> Path:
    return partial.with_name(partial.name.removeprefix(".").removesuffix(PARTIAL_SUFFIX))


def _remove_remains(partial: Path) -> None:
    """Remove a hidden file that we hold the lock of, and the sidecar of an archive that never came to be."""
    final = _final(partial)
    if not final.exists():
        sidecar_of(final).unlink(missing_ok=True)
    for temporary in final.parent.glob(f".{sidecar_of(final).name}.*.tmp"):
        temporary.unlink(missing_ok=True)
    partial.unlink()


def _open_locked(partial: Path, *, create: bool = True) -> int | None:
    """Open and lock a hidden file; nothing where somebody else holds the lock, or took the name away meanwhile."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
    descriptor = os.open(partial, flags, 0o600)
    try:
        if try_lock(descriptor, fcntl.LOCK_EX) and os.path.samestat(os.fstat(descriptor), partial.stat()):
            return descriptor
    except FileNotFoundError:
        pass
    os.close(descriptor)
    return None


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Let no signal's handler raise anything between the making of a file and the note that it is ours to remove."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def locked_alone(directory: Path, busy: str) -> Iterator[None]:
    """Lock a directory itself, without waiting and without writing anything.

    Arguments:
        busy: what is said where another process has locked it.

    Raises:
        BusyError: another one has.
        OSError: there is no such directory, or it may not be read.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not try_lock(descriptor, fcntl.LOCK_EX):
            raise BusyError(busy, hint="Wait for it to end, then try again.")
        yield
    finally:
        os.close(descriptor)


def try_lock(descriptor: int, kind: int) -> bool:
    """Lock an open file, without waiting; whether that was possible.

    Arguments:
        kind: `fcntl.LOCK_SH` or `fcntl.LOCK_EX`.
    """
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
