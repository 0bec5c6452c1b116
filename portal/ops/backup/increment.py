"""Finds the parent of an incremental backup of the uploads, and the changes since.

    line    the newest base with uploads, and its chain
    state   what these archives hold, by path; a cache in the repository makes that fast
    delta   the changes since then, in the given paths or in the whole tree

Without a parent, the backup becomes a base itself, and the error here says why.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from portal.ops.archive.reader import ArchiveReader
from portal.ops.backup.changes import Delta, TooMuchError, parts_of
from portal.ops.backup.search import Search
from portal.ops.backup.walk import identity
from portal.ops.chains.graph import Chains, Link
from portal.ops.chains.lineage import Ancestor, line_of, read_manifest
from portal.ops.chains.state_cache import Content, MediaState, Totals
from portal.ops.errors import ArchiveAbsentError, OpsError, RepositoryError
from portal.ops.model import CHAINED_VERSION, SIDECAR_SUFFIX, SUFFIX, BackupType, Component
from portal.ops.repository.durable import make_hidden, open_own
from portal.ops.repository.locks import archive_lock
from portal.ops.repository.sidecar import read_sidecar
from portal.ops.repository.verifications import Verifications
from portal.ops.runtime.logs import engine_log
from portal.ops.units import system_reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    from portal.ops.archive.writer import Tally
    from portal.ops.backup.config import BackupConfig
    from portal.ops.filesystem.tree import Tree
    from portal.ops.manifest import Manifest
    from portal.ops.repository.repository import ArchiveFile, Repository

log = engine_log("portal.ops.backup.increment")

CACHE: Final = Path(".cache/media-state.sqlite")
"""The cache of the state in the repository, which can be removed at any time."""

_HOLDING: Final = (BackupType.FULL, BackupType.MEDIA)

SMALL_CHAIN: Final = 4 << 20
"""A chain's incrementals may have this many bytes in any case, however small its base is."""


class BaseNeededError(Exception):
    """Raised if there is no archive to follow; the message says why.

    Arguments:
        is_fault: whether there should have been one.
    """

    def __init__(self, reason: str, *, is_fault: bool = False) -> None:
        super().__init__(reason)
        self.is_fault = is_fault


@dataclass(frozen=True, kw_only=True)
class Increment:
    """The parent of an incremental, and the changes since; to be closed.

    Arguments:
        line: the archives that it needs, the base first and its parent last.
        state: the recorded state after these archives.
        delta: the differences from that state.
        before: the totals of the tree before.
        place: the cache file; None if the state is in memory.
        tree: the uploads in which the differences were found.
    """

    line: tuple[Ancestor, ...]
    state: MediaState
    delta: Delta
    before: Totals
    place: Path | None
    tree: Tree

    @property
    def parent(self) -> Ancestor:
        """The archive that it follows."""
        return self.line[-1]

    def lose(self, tally: Tally) -> None:
        """Note an entry that could not be read any more.

        Raises:
            RepositoryError: the state is damaged.
            UnsteadyError: the entries read no longer form a consistent tree.
        """
        try:
            self.delta.lose(tally, self.state)
        except sqlite3.Error as error:
            _drop(self.place, error)
            raise RepositoryError(
                f"the state of the uploads is damaged: {error}",
                hint="Start the backup again: the state is built again from the archives.",
            ) from error

    def tree_after(self, taken: Totals) -> Totals:
        """The totals of the tree after the backup."""
        return self.before.less(self.delta.leaving).plus(taken)

    def settle(self) -> None:
        """Record that nothing has changed."""
        with _forgiven():
            self.state.confirm(self.delta.confirmed)
            self.state.settle()

    def publish(self, content: Content, sha256: str) -> None:
        """Record the published archive; a cache that cannot be updated is removed.

        Arguments:
            content: the archive's contents.
        """
        try:
            self.state.confirm(self.delta.confirmed)
            self.state.take(content, sha256)
        except (sqlite3.Error, OSError, OpsError) as error:
            _drop(self.place, error)

    def close(self) -> None:
        """Close the state, and the uploads."""
        self.state.close()
        self.tree.close()


def plan_increment(
    repository: Repository,
    config: BackupConfig,
    *,
    changed: Sequence[str] | None,
    begun: float,
    advance: Callable[[int], None],
    base_since: datetime | None = None,
    closely: bool = False,
) -> Increment:
    """Find the parent and the changes of an incremental.

    Arguments:
        changed: the only paths to examine, relative to the uploads; None for the whole tree. If the last backup
            followed another chain, or that is unknown, the whole tree is examined in any case: paths named until then
            may only be in that other chain.
        begun: the start of this backup, by the clock of the repository's file system.
        advance: called with the number of bytes after each file is read for comparison.
        base_since: the earliest permitted time of the chain's base; None for any.
        closely: also open each archive of the chain, so that no truncated one is followed.

    Raises:
        BaseNeededError: there is no archive to follow.
        ConfigurationError: a path is invalid.
        RepositoryError: the archives or their verifications cannot be read.
        SourceError: the uploads cannot be read.
    """
    named = None if changed is None else [parts_of(path) for path in changed]
    line, is_all_read = _line(repository, config, begun)
    _check_age(line[0], base_since)
    if closely:
        _check_ends(line)
    before = _tree(line[-1])
    for place in (repository.path / CACHE, repository.path / CACHE, None):
        if (state := _opened(place)) is None:
            continue
        with ExitStack() as opened:
            opened.callback(state.close)
            try:
                was_compared = _follow(state, line) and is_all_read
                search = _search(repository, config, state, advance)
                opened.callback(search.tree.close)
                delta = search.of(named) if named is not None and was_compared else search.everything()
                opened.pop_all()
                return Increment(line=line, state=state, delta=delta, before=before, place=place, tree=search.tree)
            except sqlite3.Error as error:
                _drop(place, error)
            except TooMuchError as error:
                raise BaseNeededError(str(error)) from error
    raise OpsError("the state of the uploads cannot be kept, not even in memory", hint="Look at the machine's memory.")


def _search(repository: Repository, config: BackupConfig, state: MediaState, advance: Callable[[int], None]) -> Search:
    assert config.media_path is not None
    excluded = frozenset([identity(repository.path)])
    return Search(root=Path(config.media_path), state=state, excluded=excluded, advance=advance)


@contextmanager
def parent_locked(increment: Increment, timeout: float) -> Iterator[None]:
    """Keep the parent, and with it everything it needs, from being pruned.

    Arguments:
        timeout: seconds to wait for a prune that is running.

    Raises:
        BaseNeededError: the parent was removed meanwhile.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(archive_lock(increment.parent.path, timeout))
        except ArchiveAbsentError as error:
            raise BaseNeededError(f"{increment.parent.name} has just been removed", is_fault=True) from error
        yield


def remember(repository: Repository, content: Content, sha256: str) -> None:
    """Fill the cache from a new base, so that the next incremental need not; other incrementals wait.

    Arguments:
        content: the archive's contents.
        sha256: its digest.
    """
    with _forgiven():
        state = _opened(repository.path / CACHE)
        if state is not None:
            with closing(state):
                state.restart(content, sha256)


def _line(repository: Repository, config: BackupConfig, begun: float) -> tuple[tuple[Ancestor, ...], bool]:
    """The chain of the newest base with media, and whether all newer archives could be read.

    Raises:
        BaseNeededError: there is none, or it must not be followed.
        RepositoryError: the verifications cannot be read.
    """
    archives = [one for one in repository.archives() if one.backup_id and one.backup_id.type in _HOLDING]
    archives.sort(key=lambda one: (one.modified, one.moment, one.name), reverse=True)
    later: list[Manifest] = []
    is_all_read = True
    for archive in archives:
        manifest = _manifest(archive)
        if manifest is None:
            is_all_read = False
        elif manifest.parent is not None:
            later.append(manifest)
        elif Component.MEDIA in manifest.components and archive.modified.timestamp() <= begun:
            return _checked(repository, config, manifest.backup_id, later), is_all_read
    if later or not is_all_read:
        raise BaseNeededError("the base of the uploads' chain is missing or cannot be read", is_fault=True)
    raise BaseNeededError("no archive holds the uploads yet")


def _checked(repository: Repository, config: BackupConfig, base: str, later: list[Manifest]) -> tuple[Ancestor, ...]:
    chains = Chains(Link(backup_id=one.backup_id, parent=one.parent) for one in later)
    followers = chains.dependents(base)
    if astray := [one.backup_id for one in later if one.base == base and one.backup_id not in followers]:
        raise BaseNeededError(f"the chain of {base} is broken: what {astray[0]} needs is not there", is_fault=True)
    try:
        line = line_of(repository.path / f"{chains.head(base)}{SUFFIX}")
    except OpsError as error:
        raise BaseNeededError(f"the chain of {base} is damaged: {error.message}", is_fault=True) from error
    found = Verifications(repository)
    found.names()  # if no verification can be read, neither a new base nor the one after it would help
    if bad := next((one.name for one in line if _is_known_damaged(found, one.name)), None):
        reason = f"a verification has found a damage in {bad}, or its result cannot be read"
        raise BaseNeededError(reason, is_fault=True)
    size, *others = map(_upload_bytes, line)
    if len(others) >= config.chain_length:
        raise BaseNeededError(f"the chain of {base} has {len(others)} incrementals")
    if sum(others) > max(SMALL_CHAIN, size * config.chain_percent // 100):
        raise BaseNeededError(f"the incrementals of {base} have {sum(others):,} bytes together, the base {size:,}")
    return line


def _upload_bytes(ancestor: Ancestor) -> int:
    """The size of an archive or, for a chained full backup, of its uploads."""
    size = ancestor.path.stat().st_size
    details = ancestor.manifest.details.get(Component.MEDIA, {})
    is_chained = ancestor.manifest.format_version == CHAINED_VERSION
    return min(size, int(details.get("bytes", size))) if is_chained else size


def _check_age(base: Ancestor, since: datetime | None) -> None:
    """Make sure that a base is not too old."""
    read_from = base.manifest.details.get(Component.MEDIA, {}).get("read_from_ns", 0)
    if since is not None and read_from < since.timestamp() * 1_000_000_000:
        raise BaseNeededError(f"a complete backup is due since {since:%Y-%m-%d %H:%M} UTC")


def _check_ends(line: Sequence[Ancestor]) -> None:
    """Make sure that each archive has its sidecar, its end and its table of frames; verifications check the rest."""
    for ancestor in line:
        try:
            if read_sidecar(ancestor.path) is None:  # it counts as incomplete, and so would its children
                raise BaseNeededError(f"{ancestor.name} has no {SIDECAR_SUFFIX} beside it", is_fault=True)
            ArchiveReader(ancestor.path).close()
        except OpsError as error:
            raise BaseNeededError(f"{ancestor.name} is damaged: {error.message}", is_fault=True) from error
        except OSError as error:
            raise BaseNeededError(f"{ancestor.name} cannot be read: {system_reason(error)}", is_fault=True) from error


def _tree(parent: Ancestor) -> Totals:
    """The totals of the tree in an archive's manifest."""
    details = parent.manifest.details.get(Component.MEDIA, {})
    try:
        tree = details.get("tree", details)
        return Totals(int(tree["files"]), int(tree["bytes"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BaseNeededError(f"{parent.name} does not say how much it holds", is_fault=True) from error


def _manifest(archive: ArchiveFile) -> Manifest | None:
    try:
        return read_manifest(archive.path)
    except OpsError as error:
        log.warning("archive_skipped", name=archive.name, error=error.message)
        return None


def _is_known_damaged(found: Verifications, backup_id: str) -> bool:
    """True if a verification has found damage, or might have: an unreadable record counts."""
    try:
        record = found.of(backup_id)
    except OpsError as error:
        log.warning("verification_unreadable", name=backup_id, error=error.message)
        return True
    return record is not None and not record.intact


def _follow(state: MediaState, line: Sequence[Ancestor]) -> bool:
    try:
        return state.follow(line)
    except OpsError as error:
        raise BaseNeededError(f"the chain of {line[0].name} is damaged: {error.message}", is_fault=True) from error


def _opened(place: Path | None) -> MediaState | None:
    """The state in a file or in memory; None if the file cannot be used."""
    try:
        if place is not None:
            make_hidden(place.parent)
            os.close(open_own(place))
        return MediaState(place)
    except (sqlite3.Error, OSError) as error:
        _drop(place, error)
        return None


def _drop(place: Path | None, error: Exception) -> None:
    """Remove a useless cache."""
    log.warning("cache_dropped", path=str(place), error=str(error))
    if place is not None:
        for path in (place, place.with_name(f"{place.name}-journal")):
            with suppress(OSError):
                path.unlink()


@contextmanager
def _forgiven() -> Iterator[None]:
    """Ignore errors in writing the cache, which is then merely outdated."""
    try:
        yield
    except (sqlite3.Error, OSError, OpsError) as error:
        log.warning("cache_outdated", error=str(error))
