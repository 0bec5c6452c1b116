"""Restores to a moment: the database from a base backup and WAL, the uploads from archives of that time.

The uploads come from the newest archive that was complete at the moment, plus files of later archives that existed by
then: an upload is backed up some seconds after it was written.
"""

from __future__ import annotations

from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from portal.ops.archive.damage import is_below
from portal.ops.archive.index import MemberType
from portal.ops.archive.reader import ArchiveReader, Layer, is_indexed
from portal.ops.chains.reader import open_tree
from portal.ops.errors import ConfigurationError, NotIntactError
from portal.ops.manifest import Manifest
from portal.ops.model import SUFFIX, BackupType, Component, timestamp
from portal.ops.pitr.moment import parse_moment, shown
from portal.ops.pitr.plan import OutsideWindowError, clock_offset, plan_recovery, with_last_transaction
from portal.ops.pitr.wal_archive import WalArchive
from portal.ops.repository.catalogue import Catalogue
from portal.ops.restore.config import RestoreScope
from portal.ops.runtime.logs import engine_log

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from portal.ops.archive.index import Contents, Member
    from portal.ops.archive.protocol import Archive, IndexedArchive
    from portal.ops.pitr.plan import RecoveryPlan
    from portal.ops.repository.entry import Entry
    from portal.ops.repository.repository import Repository
    from portal.ops.restore.config import RestoreConfig
    from portal.ops.runtime.process import ProcessRunner

log = engine_log("portal.ops.restore.moment")

_MEDIA: Final = Component.MEDIA.member
_WRITTEN: Final = timedelta(seconds=1)
"""A file belongs to a moment if its ctime is at most this much later."""


@dataclass(frozen=True, kw_only=True)
class MomentChoice:
    """The sources of a restore to a moment.

    Arguments:
        text: the moment as given.
        moment: the moment by the database server's clock.
        ahead: how far that clock is ahead of ours, by which files have their times.
        recovery: how to recover the database; None if it is not wanted.
        media: the archive of the uploads; None if they are not wanted.
        later: the archives after it, up to the first that was begun after the moment.
        media_complete: when that archive was complete.
        with_audit: whether there is an audit log, which a restore to a moment leaves unchanged.
        zone: the time zone for showing moments.
    """

    text: str
    moment: datetime
    ahead: timedelta
    recovery: RecoveryPlan | None
    media: Path | None = None
    later: tuple[Path, ...] = ()
    media_complete: datetime | None = None
    with_audit: bool = False
    zone: tzinfo = UTC

    @property
    def needed(self) -> tuple[Path, ...]:
        """The archives to be read, without the chain of the uploads' archive."""
        base = tuple(reversed(self.recovery.line)) if self.recovery else ()
        return (*base, *((self.media,) if self.media else ()), *self.later)

    def lines(self) -> list[str]:
        """Where the uploads come from and what happens to the audit log, in plain words."""
        lines = []
        if self.media and self.media_complete:
            name = self.media.name.removesuffix(SUFFIX)
            lines.append(f"Uploads: those of {name}, complete at {shown(self.media_complete, self.zone)}")
            if self.later:
                names = ", ".join(path.name.removesuffix(SUFFIX) for path in self.later)
                lines.append(f"And those that existed by the moment from {names}")
        if self.with_audit:
            lines.append("The audit log stays as it is: it only grows, and what came after the moment is evidence")
        return lines

    @property
    def name(self) -> str:
        """The name of the source in records and messages."""
        return f"{self.moment:%Y-%m-%d %H:%M:%S} UTC"


def choose_moment(
    repository: Repository,
    config: RestoreConfig,
    scope: RestoreScope,
    text: str,
    now: datetime,
    runner: ProcessRunner | None = None,
) -> MomentChoice:
    """Find the sources for a moment; changes nothing.

    Arguments:
        text: the moment as given by a person.
        runner: starts pg_waldump; without it, the last transaction is not looked up.

    Raises:
        ConfigurationError: the text is no moment, or the moment cannot be restored.
        RepositoryError: the repository cannot be read, or is not the one that was used here.
    """
    repository.refuse_absent()
    if scope is RestoreScope.AUDIT_LOGS:
        raise ConfigurationError(
            "an audit log is not restored to a moment: it only grows", hint="Restore it from an archive."
        )
    ahead = clock_offset(WalArchive.current(repository))
    wanted = parse_moment(text, now + ahead, config.time_zone)
    recovery = plan_recovery(repository, wanted, config.time_zone) if scope is not RestoreScope.MEDIA else None
    if recovery and runner:
        bin_dir = Path(config.pg_bin_dir) if config.pg_bin_dir else None
        recovery = with_last_transaction(recovery, runner=runner, bin_dir=bin_dir)
    moment = recovery.reached if recovery else wanted or now.astimezone(UTC)
    if scope is RestoreScope.DATABASE or config.media_path is None:
        if scope is RestoreScope.MEDIA:
            raise ConfigurationError("there is no place for uploads", hint="Set PORTAL_UPLOAD_DIR or give --media-dir.")
        return MomentChoice(text=text, moment=moment, ahead=ahead, recovery=recovery, zone=config.time_zone)
    media, later = _choose_media(Catalogue(repository).entries(), None if wanted is None else moment - ahead)
    paths = [repository.path / f"{entry.name}{SUFFIX}" for entry in (media, *later)]
    return MomentChoice(
        text=text,
        moment=moment,
        ahead=ahead,
        recovery=recovery,
        media=paths[0],
        later=tuple(paths[1:]),
        media_complete=media.modified,
        with_audit=scope is RestoreScope.FULL and config.audit_log_path is not None,
        zone=config.time_zone,
    )


def _choose_media(entries: Sequence[Entry], moment: datetime | None) -> tuple[Entry, list[Entry]]:
    """The newest archive of uploads that was complete at a moment, and the ones after it, oldest first.

    Raises:
        OutsideWindowError: no archive is old enough.
    """
    held = [entry for entry in entries if Component.MEDIA in entry.components and not entry.fault]
    held.sort(key=lambda entry: entry.modified)
    before = [entry for entry in held if moment is None or entry.modified <= moment]
    if not before:
        since = f"; the oldest one is of {held[0].modified:%Y-%m-%d %H:%M:%S} UTC" if held else ""
        raise OutsideWindowError(
            f"no archive of the uploads is as old as that moment{since}",
            hint="--database-only restores the database to that moment and leaves the uploads as they are.",
        )
    later: list[Entry] = []
    for entry in held[held.index(before[-1]) + 1 :] if moment else ():
        later.append(entry)
        if moment and entry.moment > moment:
            break
    return before[-1], later


class MomentArchive:
    """Presents the sources for a moment as one archive, which holds the uploads and not the database.

    Arguments:
        choice: the sources.
    """

    def __init__(self, choice: MomentChoice) -> None:
        self._choice = choice
        self._opened = ExitStack()
        self._tree: Archive | None = None
        self._more: list[tuple[ArchiveReader, frozenset[str]]] = []
        self.backup_id = choice.name
        self.path = choice.needed[0]
        try:
            if choice.media:
                self._tree = self._opened.enter_context(closing(open_tree(choice.media)))
                self._find_more(self._tree)
        except BaseException:
            self.close()
            raise

    @property
    def has_index(self) -> bool:
        """True if single files can be read."""
        return self._tree is None or self._tree.has_index

    def close(self) -> None:
        """Close all archives."""
        self._opened.close()

    def manifest(self) -> Manifest:
        """A manifest for this combination."""
        tree = self._tree.manifest() if self._tree else None
        components: tuple[Component, ...] = (Component.DATABASE,) if self._choice.recovery else ()
        details: dict[str, Mapping[str, Any]] = {}
        if tree:
            components = (*components, Component.MEDIA)
            files = int(tree.details.get(Component.MEDIA.value, {}).get("files", 0))
            more = sum(1 for _, member in self._more_members() if member.type is MemberType.FILE)
            details[Component.MEDIA.value] = {**tree.details.get(Component.MEDIA.value, {}), "files": files + more}
        return Manifest(
            backup_id=self.backup_id,
            type=BackupType.FULL.value,
            timestamp=timestamp(self._choice.moment),
            components=components,
            hostname="",
            db_name="",
            details=details,
        )

    def members(self) -> Iterator[Member]:
        """The uploads."""
        if self._tree:
            for member in self._tree.members():
                if is_below(member.path, _MEDIA):
                    yield member
            for _, member in self._more_members():
                yield member

    def contents(self, jobs: int, *, below: str | None = None) -> Contents:
        """The uploads with their content."""
        if self._tree:
            yield from self._tree.contents(jobs, below=below or _MEDIA)
            for reader, names in self._more:
                for member, content in reader.contents(jobs, below=_MEDIA):
                    if member.path in names and (below is None or is_below(member.path, below)):
                        yield member, content

    def find(self, path: str) -> Member | None:
        """The member of that path."""
        found = self._indexed().find(path) if self._tree else None
        return found or next((member for _, member in self._more_members() if member.path == path), None)

    def extract(self, member: Member) -> Iterator[memoryview]:
        """The content of one file."""
        for reader, names in self._more:
            if member.path in names:
                return reader.extract(member)
        return self._indexed().extract(member)

    def layers(self) -> Iterator[Layer]:
        """The archives that hold the uploads."""
        if self._tree:
            yield from self._indexed().layers()
            for reader, names in self._more:
                yield Layer(reader, len(names), names.__contains__, nullcontext)

    def _indexed(self) -> IndexedArchive:
        from portal.ops.archive.protocol import is_indexed_archive

        assert self._tree is not None
        if not is_indexed_archive(self._tree):
            raise NotIntactError(f"{self._tree.path.name} has no index", hint="Restore that archive by itself.")
        return self._tree

    def _find_more(self, tree: Archive) -> None:
        """Look in later archives for files that existed at the moment."""
        if not tree.has_index:
            return
        begun = int(tree.manifest().details.get(Component.MEDIA.value, {}).get("read_from_ns", 0))
        latest = int((self._choice.moment - self._choice.ahead + _WRITTEN).timestamp() * 1_000_000_000)
        known: set[str] = set()
        for path in self._choice.later:
            if not is_indexed(path):  # tar and gzip do not write when a file came
                continue
            reader = self._opened.enter_context(closing(ArchiveReader(path)))
            names = {
                member.path
                for member in reader.members()
                if is_below(member.path, _MEDIA)
                and begun <= member.ctime_ns <= latest
                and member.path not in known
                and self._indexed().find(member.path) is None
            }
            known |= names
            if names:
                self._more.append((reader, frozenset(names)))

    def _more_members(self) -> Iterator[tuple[ArchiveReader, Member]]:
        for reader, names in self._more:
            for member in reader.members():
                if member.path in names:
                    yield reader, member
