"""The repository: a directory of archives, and the only record of what was backed up.

An archive exists if and only if its final name does. It is written under a hidden name, synced and hashed; then its
sidecar is written; then the rename publishes it. The writer holds a lock on the hidden file, which distinguishes work
in progress from remains of a crash.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from portal.ops.errors import ArchiveAbsentError, BusyError
from portal.ops.hints import Advice
from portal.ops.model import SIDECAR_SUFFIX, SUFFIX, BackupId, BackupType, file_time
from portal.ops.repository.durable import make_directories
from portal.ops.repository.faults import explain, is_full, make_hint
from portal.ops.repository.identity import (
    STAND_IN_NAME,
    check_id,
    check_known,
    give_id,
    note_stand_in,
    repository_id,
)
from portal.ops.repository.known import known_id, remember
from portal.ops.repository.locks import locked_file, wait_for
from portal.ops.repository.pending import (
    PARTIAL_SUFFIX,
    PendingArchive,
    _final,
    _open_locked,
    _partial,
    _remove_remains,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from datetime import datetime

LOCK_NAME: Final = ".lock"
CHAIN_LOCK_NAME: Final = ".chain.lock"

_WAIT_LONGER: Final = "Wait for it to end, then try again; BACKUP_LOCK_TIMEOUT sets how long to wait."


@dataclass(frozen=True, kw_only=True)
class ArchiveFile:
    """An archive in the repository, known by its name and directory entry.

    Arguments:
        path: the file.
        size: bytes.
        modified: when it was written.
        backup_id: the parsed id; None if the name is no backup id.
    """

    path: Path
    size: int
    modified: datetime
    backup_id: BackupId | None

    @property
    def name(self) -> str:
        """The name without suffix, usually the id."""
        return self.path.name.removesuffix(SUFFIX)

    @property
    def moment(self) -> datetime:
        """The time in the id; or the file's, if the name is no id."""
        return self.backup_id.moment if self.backup_id else self.modified


class Repository:
    """The directory of archives.

    Arguments:
        path: the directory, which need not exist yet.
        lock_timeout: seconds to wait for a lock.
    """

    def __init__(self, path: Path, *, lock_timeout: float = 60) -> None:
        self.path = path
        self._lock_timeout = lock_timeout

    def prepare(self) -> None:
        """Make sure that the directory exists, can be written, and has an id.

        Raises:
            RepositoryError: that is impossible, or another repository was used here before.
        """
        self.refuse_absent()
        self._make()
        if self._is_stand_in:
            return
        had_id = bool(self.id)  # a known repository with archives and no id was copied without its hidden files
        give_id(self.path / LOCK_NAME)
        if not (had_id and known_id(self.path)):
            remember(self.path, self.id)

    def prepare_for_backup(self, wanted_id: str = "", *, is_confirmed: bool = False) -> None:
        """Like `prepare`, but refuse any repository other than the intended one.

        Arguments:
            wanted_id: the configured id; if empty, the repository used at this path before is intended, or any if there
                was none.
            is_confirmed: whether a person has confirmed another repository.

        Raises:
            RepositoryError: it cannot be written, or is another one.
        """
        check_id(self.path / LOCK_NAME, wanted_id)
        if not (wanted_id or is_confirmed):
            self.refuse_another()
        self._make()
        give_id(self.path / LOCK_NAME)
        remember(self.path, self.id)
        with suppress(OSError):  # the note is no longer true
            (self.path / STAND_IN_NAME).unlink()

    def prepare_for_restore(self) -> None:
        """Make sure that the directory exists and can be written, even if the original repository is lost.

        If another repository was used here before, this one gets no id and, if empty, a note: then no backup mistakes
        it, or the archives fetched into it, for the original.

        Raises:
            RepositoryError: it cannot be created or written.
        """
        is_known = bool(known_id(self.path))
        is_new = is_known and not self.id and not self._archives()
        self._make()
        if not is_known:
            give_id(self.path / LOCK_NAME)
        elif is_new and not self._is_stand_in:
            try:
                note_stand_in(self.path)
            except OSError as error:
                raise explain(error, "cannot write to", self.path) from error

    def _make(self) -> None:
        try:
            make_directories(self.path)
        except OSError as error:
            raise explain(error, "cannot create", self.path, denied=make_hint(self.path)) from error
        if not os.access(self.path, os.W_OK | os.X_OK):
            reason = errno.EROFS if os.statvfs(self.path).f_flag & os.ST_RDONLY else errno.EACCES
            raise explain(OSError(reason, ""), "cannot write to", self.path)

    def refuse_absent(self) -> None:
        """Raise an error instead of showing an empty repository, if a repository used here before is absent.

        Raises:
            RepositoryError: it is absent.
        """
        if not self.id and (known := known_id(self.path)):
            check_known(self.path / LOCK_NAME, known, is_empty=not self._archives())

    def refuse_another(self) -> None:
        """Refuse to change a repository other than the one used at this path before.

        Raises:
            RepositoryError: it is another one, or absent.
        """
        if (known := known_id(self.path)) and known != self.id:
            check_known(self.path / LOCK_NAME, known, is_empty=self._is_stand_in or not self._archives())

    @property
    def _is_stand_in(self) -> bool:
        """True if it replaced another repository for a restore, and no backup was made to it since."""
        return not self.id and os.path.lexists(self.path / STAND_IN_NAME)

    @property
    def id(self) -> str:
        """The repository's id; empty if it has none yet."""
        return repository_id(self.path / LOCK_NAME)

    def archive_path(self, backup_id: BackupId) -> Path:
        """The path for a backup's archive, whether it exists or not."""
        return self.path / f"{backup_id}{SUFFIX}"

    # -- reading ----------------------------------------------------------------------------------------------------

    def archives(self) -> list[ArchiveFile]:
        """All archives, newest first.

        Raises:
            RepositoryError: the directory cannot be read, or the repository used here before is absent.
        """
        found = self._archives()
        if not found:
            self.refuse_absent()
        return found

    def _archives(self) -> list[ArchiveFile]:
        try:
            with os.scandir(self.path) as entries:
                names = [entry.name for entry in entries]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise explain(error, "cannot read", self.path) from error
        paths = [self.path / name for name in names if name.endswith(SUFFIX) and not name.startswith(".")]
        found = [archive for path in paths if (archive := _look_at(path))]
        return sorted(found, key=lambda archive: (archive.moment, archive.modified, archive.name), reverse=True)

    def find(
        self, name: str | os.PathLike[str], *, latest_of: Collection[BackupType] = tuple(BackupType)
    ) -> ArchiveFile:
        """Find an archive by path, file name, id or an unambiguous start of an id; ``latest`` is the newest.

        Arguments:
            latest_of: the types that ``latest`` can choose; files with other names only if there are none of these.

        Raises:
            ArchiveAbsentError: there is none, or more than one.
            RepositoryError: it cannot be examined.
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

    def shared(self) -> AbstractContextManager[None]:
        """Keep a prune waiting; several holders can share this.

        Raises:
            BusyError: a prune did not end in time.
        """
        return self._locked(fcntl.LOCK_SH)

    def exclusive(self) -> AbstractContextManager[None]:
        """Keep everyone else waiting.

        Raises:
            BusyError: another process held the lock for too long.
        """
        return self._locked(fcntl.LOCK_EX)

    def chain(self) -> AbstractContextManager[None]:
        """Keep other incremental backups waiting, so that no two follow the same archive.

        Raises:
            BusyError: another one did not end in time.
        """
        return self._locked(fcntl.LOCK_EX, CHAIN_LOCK_NAME)

    @contextmanager
    def pending(self, backup_id: BackupId) -> Iterator[PendingArchive | None]:
        """Create the pending archive of a backup, to be written and committed; None if the archive exists.

        Waits for another process that is writing the same archive. If the context fails, the pending archive is
        removed.

        Raises:
            BusyError: the other process did not end in time.
            RepositoryError: the directory cannot be written.
        """
        final = self.archive_path(backup_id)
        pending = None

        def begin() -> bool | None:
            nonlocal pending
            if final.exists():
                return False
            with _signals_held_back():
                pending = self._begin(final)
            return None if pending is None else True

        try:
            if wait_for(begin, self._lock_timeout) is None:
                raise BusyError(f"{backup_id} is being written by another process", hint="Wait for it, then try again.")
            yield pending
        except BaseException:
            if pending is not None:
                pending.discard()
            raise
        finally:
            if pending is not None:
                pending.out.close()

    def _begin(self, final: Path) -> PendingArchive | None:
        """A pending archive, or None if another process has one or has just finished."""
        partial = _partial(final)
        try:
            descriptor = _open_locked(partial)
        except OSError as error:
            raise explain(error, "cannot write to", self.path) from error
        if descriptor is None:
            return None
        if final.exists():  # its writer finished between our two checks
            partial.unlink()
            os.close(descriptor)
            return None
        os.ftruncate(descriptor, 0)
        return PendingArchive(final, descriptor)

    @contextmanager
    def vacated(self, name: str) -> Iterator[bool]:
        """Reserve an archive's name; True if there is no such archive, and nobody is writing it.

        If there is no room for the hidden lock file, nobody else has room for one either.
        """
        final = self.path / f"{name}{SUFFIX}"
        partial, descriptor = _partial(final), None
        try:
            try:
                descriptor = _open_locked(partial)
                is_ours = descriptor is not None
            except OSError as error:
                is_ours = is_full(error)
            yield is_ours and not os.path.lexists(final)
        finally:
            if descriptor is not None:
                partial.unlink(missing_ok=True)
                os.close(descriptor)

    def sweep(self) -> list[str]:
        """Remove remains of killed backups; return their names.

        Files that this user cannot open are left for another user.
        """
        swept = []
        for partial in sorted(self.path.glob(f".*{SUFFIX}{PARTIAL_SUFFIX}")):
            if BackupId.parse(_final(partial).name.removesuffix(SUFFIX)) is None:
                continue
            with suppress(FileNotFoundError, PermissionError):
                descriptor = _open_locked(partial, create=False)
                if descriptor is None:
                    continue
                try:
                    _remove_remains(partial)
                finally:
                    os.close(descriptor)
                swept.append(partial.name)
        return swept

    def _locked(self, kind: int, name: str = LOCK_NAME) -> AbstractContextManager[None]:
        what = f"the repository {self.path}"
        return locked_file(self.path / name, kind, self._lock_timeout, what=what, hint=_WAIT_LONGER)


_NOT_THERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})


def _look_at(path: Path) -> ArchiveFile | None:
    """The archive at a path, or None if there is none."""
    try:
        found = path.stat()
    except ValueError:  # the path contains a NUL
        return None
    except OSError as error:
        if error.errno in _NOT_THERE:
            return None
        raise explain(error, "cannot read", path) from error
    if not stat.S_ISREG(found.st_mode):
        return None
    return ArchiveFile(
        path=path,
        size=found.st_size,
        modified=file_time(found.st_mtime),
        backup_id=BackupId.parse(path.name.removesuffix(SUFFIX)),
    )


def _absent(text: str, hits: list[ArchiveFile], path: Path) -> ArchiveAbsentError:
    hint = f"{Advice.LIST_ARCHIVES} lists the archives; BACKUP_LOCAL_PATH names their directory."
    if hits:
        return ArchiveAbsentError(f"{text!r} could be any of {', '.join(hit.name for hit in hits[:5])}", hint=hint)
    if text == "latest":
        return ArchiveAbsentError(
            f"archive not found: there is none in {path}",
            hint="If there should be one, BACKUP_LOCAL_PATH names another directory, or its disk is not mounted; "
            f"'offsite:latest' is a copy elsewhere. {Advice.BACK_UP_FULL} makes the first archive.",
        )
    return ArchiveAbsentError(f"archive not found: {text!r} is neither a path nor in {path}", hint=hint)


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Delay signal handlers' exceptions between creating a file and recording that it must be removed."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
