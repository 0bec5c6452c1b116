"""The repository: a directory of archives, and the only record of what has been backed up.

An archive exists if and only if its final name does. It is written under a hidden name, put on the disk, hashed; then
its sidecar is put in place; then the rename makes it an archive. Who writes one holds a lock on its hidden file, so
that the remains of a crash can be told from work in progress: nobody holds theirs.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from portal.ops.errors import ArchiveAbsentError, BusyError
from portal.ops.hints import Advice
from portal.ops.model import SIDECAR_SUFFIX, SUFFIX, BackupId, BackupType
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

LOCK_NAME: Final = ".lock"
CHAIN_LOCK_NAME: Final = ".chain.lock"

_WAIT_LONGER: Final = "Wait for it to end, then try again; BACKUP_LOCK_TIMEOUT sets how long to wait."


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
        """The time of the backup, by its id; by its file if it has none."""
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
        """Make sure that the directory exists and can be written, and that the repository has an id.

        Raises:
            RepositoryError: it cannot, or the repository that was used here before is not there.
        """
        self.refuse_absent()
        self._make()
        if self._is_stand_in:
            return
        had_id = bool(self.id)  # one that is known, and has archives but no id, was copied without its hidden files
        give_id(self.path / LOCK_NAME)
        if not (had_id and known_id(self.path)):
            remember(self.path, self.id)

    def prepare_for_backup(self, wanted_id: str = "", *, is_confirmed: bool = False) -> None:
        """As `prepare`, and refuse any other repository than the one that is meant.

        Arguments:
            wanted_id: the id of that one; where that is empty, it is the one that was used at this path before, or
                where none was, any one, also a new one.
            is_confirmed: whether a person has said that another one is meant from now on.

        Raises:
            RepositoryError: it cannot be written, or it is another one.
        """
        check_id(self.path / LOCK_NAME, wanted_id)
        if not (wanted_id or is_confirmed):
            self.refuse_another()
        self._make()
        give_id(self.path / LOCK_NAME)
        remember(self.path, self.id)
        with suppress(OSError):  # it says nothing any more
            (self.path / STAND_IN_NAME).unlink()

    def prepare_for_restore(self) -> None:
        """Make sure that the directory exists and can be written: that must work when everything else is gone.

        Where another repository was used before, it gets no id, and a note if it is empty: so no backup takes it, and
        what is brought there, for that one.

        Raises:
            RepositoryError: it cannot.
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
        """Refuse to call a repository empty that is not there, although it was used at this path before.

        Raises:
            RepositoryError: it is not there.
        """
        if not self.id and (known := known_id(self.path)):
            check_known(self.path / LOCK_NAME, known, is_empty=not self._archives())

    def refuse_another(self) -> None:
        """Refuse to add to, or to remove from, another repository than the one that was used at this path before.

        Raises:
            RepositoryError: it is another one, or none.
        """
        if (known := known_id(self.path)) and known != self.id:
            check_known(self.path / LOCK_NAME, known, is_empty=self._is_stand_in or not self._archives())

    @property
    def _is_stand_in(self) -> bool:
        """True if it took the place of another one for a restore, and no backup was made to it since."""
        return not self.id and os.path.lexists(self.path / STAND_IN_NAME)

    @property
    def id(self) -> str:
        """The repository's unique id; empty if it has none yet."""
        return repository_id(self.path / LOCK_NAME)

    def archive_path(self, backup_id: BackupId) -> Path:
        """The path of a backup's archive, present or future."""
        return self.path / f"{backup_id}{SUFFIX}"

    # -- reading ----------------------------------------------------------------------------------------------------

    def archives(self) -> list[ArchiveFile]:
        """All archives, newest first.

        Raises:
            RepositoryError: the directory cannot be read, or the repository that was used here is not there.
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

    def shared(self) -> AbstractContextManager[None]:
        """Hold off a prune; any number of backups and verifications can do so at once.

        Raises:
            BusyError: a prune did not end in time.
        """
        return self._locked(fcntl.LOCK_SH)

    def exclusive(self) -> AbstractContextManager[None]:
        """Hold off everybody else.

        Raises:
            BusyError: somebody holds the lock, shared or not, and did not end in time.
        """
        return self._locked(fcntl.LOCK_EX)

    def chain(self) -> AbstractContextManager[None]:
        """Hold off other incremental backups, so that two never follow the same archive.

        Raises:
            BusyError: another one did not end in time.
        """
        return self._locked(fcntl.LOCK_EX, CHAIN_LOCK_NAME)

    @contextmanager
    def pending(self, backup_id: BackupId) -> Iterator[PendingArchive | None]:
        """The archive of a backup, to be written and committed; nothing where it exists already.

        Waits for another process that is writing the same one. Where what follows fails, nothing is left of it.

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
        """A pending archive; nothing where another process has one, or has just finished."""
        partial = _partial(final)
        try:
            descriptor = _open_locked(partial)
        except OSError as error:
            raise explain(error, "cannot write to", self.path) from error
        if descriptor is None:
            return None
        if final.exists():  # its writer finished between our two looks
            partial.unlink()
            os.close(descriptor)
            return None
        os.ftruncate(descriptor, 0)
        return PendingArchive(final, descriptor)

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
                is_ours = is_full(error)
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

    def _locked(self, kind: int, name: str = LOCK_NAME) -> AbstractContextManager[None]:
        what = f"the repository {self.path}"
        return locked_file(self.path / name, kind, self._lock_timeout, what=what, hint=_WAIT_LONGER)


_NOT_THERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})


def _look_at(path: Path) -> ArchiveFile | None:
    """The archive at a path; nothing where no file is, or can be."""
    try:
        found = path.stat()
    except ValueError:  # a NUL in it
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
        modified=datetime.fromtimestamp(found.st_mtime, UTC),
        backup_id=BackupId.parse(path.name.removesuffix(SUFFIX)),
    )


def _absent(text: str, hits: list[ArchiveFile], path: Path) -> ArchiveAbsentError:
    hint = f"{Advice.LIST_ARCHIVES} lists the archives; BACKUP_LOCAL_PATH names their directory."
    if hits:
        return ArchiveAbsentError(f"{text!r} could be any of {', '.join(hit.name for hit in hits[:5])}", hint=hint)
    if text == "latest":
        return ArchiveAbsentError(
            f"archive not found: there is none in {path}", hint=f"{Advice.BACK_UP_FULL} makes the first one."
        )
    return ArchiveAbsentError(f"archive not found: {text!r} is neither a path nor in {path}", hint=hint)


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Let no signal's handler raise anything between the making of a file and the note that it is ours to remove."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
