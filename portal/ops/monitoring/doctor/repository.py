"""Checks the repository: existence, owner, permissions, and free space."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from portal.ops.errors import RepositoryError
from portal.ops.hints import Advice
from portal.ops.model import SUFFIX, BackupType
from portal.ops.monitoring.doctor.check import Check, Finding, fault, ok, this_user, user_name, warning
from portal.ops.repository.identity import check_id
from portal.ops.repository.known import STATE, known_id
from portal.ops.repository.locks import holders, is_locked_alone
from portal.ops.repository.pending import PARTIAL_SUFFIX
from portal.ops.repository.repository import LOCK_NAME, Repository
from portal.ops.restore.journal import DIRECTORY as RESTORES
from portal.ops.restore.journal import RestoreRecords
from portal.ops.units import human_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from portal.ops.repository.repository import ArchiveFile
    from portal.ops.runtime.progress import Clock

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_LOOKED_AT: Final = 50
_NAMED: Final = 3
_AHEAD: Final = timedelta(minutes=5)
_COMFORT: Final = 3
_RESERVE: Final = 64 << 20
_ABSENT: Final = "there is no repository yet"


class RepositoryChecks:
    """The checks of one repository.

    Arguments:
        data: directories of data that should be on another disk, by description.
        clock: returns the current time.
        wanted_id: the configured id; empty for none.
    """

    def __init__(self, repository: Repository, *, data: dict[str, Path], clock: Clock, wanted_id: str = "") -> None:
        self._wanted_id = wanted_id
        self._repository = repository
        self._path = repository.path
        self._data = data
        self._clock = clock

    def all(self) -> list[Check]:
        """All checks."""
        looks = {
            "repository": self._directory,
            "permissions": self._permissions,
            "separate disk": self._disk,
            "space": self._space,
            "dates": self._dates,
            "locks": self._locks,
            "remains": self._remains,
        }
        return [Check(name=name, look=look) for name, look in looks.items()]

    def _directory(self) -> Finding:
        path, quoted = self._path, shlex.quote(str(self._path))
        try:
            if self._wanted_id:
                check_id(self._path / LOCK_NAME, self._wanted_id)
            else:
                self._repository.refuse_another()
        except RepositoryError as error:
            return fault(error.message, error.hint)
        make = f"Make it once, as root: install -d -m 700 -o {this_user()} {quoted}"
        if not path.exists():
            parent = next(place for place in path.parents if place.exists())
            if os.access(parent, os.W_OK | os.X_OK):
                return warning(f"{path} is not there; the first backup makes it", make)
            return fault(f"{path} is not there, and user {this_user()} may not make it in {parent}", make)
        if not path.is_dir():
            return fault(f"{path} is no directory", "Move it away, or correct BACKUP_LOCAL_PATH.")
        owner = user_name(path.stat().st_uid)
        if os.statvfs(path).f_flag & os.ST_RDONLY:
            return fault(
                f"{path} is on a disk that is mounted read-only", "Look at the disk, and mount it for writing."
            )
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            return fault(
                f"user {this_user()} may not read and write {path}, which belongs to {owner}",
                f"Run this as {owner}, or: chown -R {this_user()} {quoted}",
            )
        if path.stat().st_uid != os.geteuid() != 0:  # what root creates there is given to its owner
            return warning(
                f"{path} belongs to {owner}, and this is {this_user()}: what it writes, {owner} cannot read",
                f"Run backups as {owner}: sudo -u {owner} {Advice.RUN_DOCTOR.line()}",
            )
        known = f"; its id is {identity}" if (identity := self._repository.id) else ""
        return ok(f"{path} can be written, and belongs to {owner}{known}{self._memory()}")

    def _memory(self) -> str:
        """Check that the repository would be missed if it were absent."""
        if self._wanted_id or not self._repository.id or known_id(self._path) == self._repository.id:
            return ""
        return (
            "; there is no note of it elsewhere, so nobody would notice if its volume were not mounted: back up as a "
            f"user with a home, create {STATE} for that user, or set BACKUP_REPOSITORY_ID"
        )

    def _permissions(self) -> Finding:
        if not self._path.is_dir():
            return ok(_ABSENT)
        if self._path.stat().st_mode & _OTHERS:
            mode = stat.S_IMODE(self._path.stat().st_mode)
            return warning(
                f"others may look into {self._path} (mode {mode:04o})", f"chmod 700 {shlex.quote(str(self._path))}"
            )
        open_ones = [archive for archive in self._archives()[:_LOOKED_AT] if archive.path.stat().st_mode & _OTHERS]
        if open_ones:
            names = ", ".join(archive.path.name for archive in open_ones[:_NAMED])
            return warning(
                f"others may read {len(open_ones)} of the newest archives: {names}",
                f"chmod 600 {shlex.quote(str(self._path))}/*{SUFFIX}",
            )
        return ok("nobody else may look into the repository")

    def _disk(self) -> Finding:
        if not self._path.is_dir():
            return ok(_ABSENT)
        device = self._path.stat().st_dev
        shared = [what for what, path in self._data.items() if path.exists() and path.stat().st_dev == device]
        if shared:
            return warning(
                f"the repository is on the same disk as {' and '.join(shared)}: both would be lost together",
                "Move BACKUP_LOCAL_PATH to another disk, or copy the archives elsewhere every day.",
            )
        return ok("the repository is on a disk of its own, as far as can be seen from here")

    def _space(self) -> Finding:
        if not self._path.is_dir():
            return ok(_ABSENT)
        free = shutil.disk_usage(self._path).free
        newest = {kind: self._newest_size(kind) for kind in BackupType}
        needed = _RESERVE + max(newest.values())
        what = f"{human_bytes(free)} free, and the next backup takes about {human_bytes(needed)}"
        mend = f"{Advice.PRUNE} removes old archives; or move BACKUP_LOCAL_PATH to a larger disk."
        if free < needed:
            return fault(what, mend)
        return warning(what, mend) if free < _COMFORT * needed else ok(what)

    def _newest_size(self, kind: BackupType) -> int:
        found = (archive.size for archive in self._archives() if archive.backup_id and archive.backup_id.type is kind)
        return next(found, 0)

    def _dates(self) -> Finding:
        limit = self._clock() + _AHEAD
        ahead = [archive.name for archive in self._archives() if archive.moment > limit]
        if ahead:
            return warning(
                f"{len(ahead)} archives are from the future: {', '.join(ahead[:_NAMED])}",
                "Set the clock; if it was wrong when they were made, they count as the newest until then.",
            )
        return ok("no archive is from the future")

    def _locks(self) -> Finding:
        whose = {self._path / LOCK_NAME: "the repository", self._path / RESTORES / LOCK_NAME: "the restores"}
        seen = holders(whose)
        held = [f"{whose[path]}: held by {', '.join(who[:_NAMED])}" for path, who in seen.items()]
        held += [
            f"{what}: held, by whom cannot be seen"
            for path, what in whose.items()
            if path not in seen and is_locked_alone(path)
        ]
        return ok("; ".join(held) or "nobody holds one")

    def _remains(self) -> Finding:
        partials = list(self._path.glob(f".*{SUFFIX}{PARTIAL_SUFFIX}"))
        left = [path.name for path in partials if not is_locked_alone(path)]
        records = RestoreRecords(self._repository)
        cut_off = [record.restore_id for record in records.all() if not record.state.is_settled]
        if cut_off and not records.are_locked():
            return warning(
                f"restores were interrupted: {', '.join(cut_off[:_NAMED])}",
                f"{Advice.PLAN_RESTORE} says what becomes of them; a restore or rollback settles them.",
            )
        if left:
            return warning(
                f"{len(left)} backups were interrupted: {', '.join(left[:_NAMED])}", "The next backup sweeps that up."
            )
        return ok("no backup or restore was interrupted")

    def _archives(self) -> list[ArchiveFile]:
        return self._repository.archives()
