"""Lists the copies in a destination; nothing but the store is needed for that."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from portal.ops.errors import (
    ArchiveAbsentError,
    ConfigurationError,
    NotIntactError,
    ObjectAbsentError,
    StorageError,
    StoreUnreachableError,
)
from portal.ops.model import BackupId, timestamp
from portal.ops.offsite.commit import MOST_BYTES, Commit
from portal.ops.offsite.layout import Stem, parse_stem, stem_of_commit
from portal.ops.runtime.logs import engine_log
from portal.ops.storage.backend import read_all

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from portal.ops.offsite.signing import Trust
    from portal.ops.storage.backend import Backend

log = engine_log("portal.ops.offsite.listing")

PREFIX = "offsite:"
"""The prefix of an archive's name that requests its copy."""

LATEST = "latest"

FOREIGN: Final = "it was not made by this repository: its signature is missing or another's"
_CHANGED: Final = "its commit is invalid, or was changed after it was signed"
_SIGNER_HINT: Final = "If you know who made it, name the signer in BACKUP_OFFSITE_SIGNERS; otherwise do not use it."
_OTHER_HINT: Final = (
    "Take another copy; the list shows them. If the bucket keeps versions, an administrator can list and fetch copies "
    "as of a time before, with --as-of."
)


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The copies in one destination, newest archive first.

    Arguments:
        shown: the destination's name.
        commits: one for each copy; several copies of an archive are sorted newest first.
        damaged: stems with commits that are invalid or cannot be read, each with the reason.
        foreign: stems of copies by others, which are not among the commits.
    """

    shown: str
    commits: tuple[Commit, ...]
    damaged: Mapping[str, str] = field(default_factory=dict)
    foreign: tuple[str, ...] = ()

    def newest(self) -> dict[str, Commit]:
        """The newest copy of each archive."""
        found: dict[str, Commit] = {}
        for commit in self.commits:
            found.setdefault(commit.backup_id, commit)
        return found

    def find(self, name: str) -> Commit:
        """Find a copy by id, an unambiguous start of an id, or stem; ``latest`` is the newest full archive.

        Raises:
            ConfigurationError: there is none, or more than one.
        """
        newest = self.newest()
        if name == LATEST:
            full = [commit for commit in newest.values() if commit.type == "full"]
            hits = (full or list(newest.values()))[:1]
        else:
            stem = parse_stem(name.removesuffix(".0"))
            exact = [commit for commit in self.commits if commit.stem == stem]
            if stem is not None and not stem.generation and not name.endswith(".0") and stem.backup_id in newest:
                exact = [newest[stem.backup_id]]
            hits = exact or [commit for key, commit in newest.items() if name and key.startswith(name)]
        if len(hits) == 1:
            return hits[0]
        if hits:
            names = ", ".join(commit.backup_id for commit in hits[:5])
            raise ConfigurationError(f"{name!r} could be any of {names} in {self.shown}", hint="Give more of the id.")
        self._refuse_bad(name)
        raise ConfigurationError(
            f"there is no copy {name!r} in {self.shown}" if name != LATEST else f"there is no copy in {self.shown}",
            hint="'offsite list' shows the copies; BACKUP_OFFSITE_URLS says where they are looked for.",
        )

    def _refuse_bad(self, name: str) -> None:
        """Raise an error if the only such copies are damaged or foreign."""
        bad = {**self.damaged, **dict.fromkeys(self.foreign, FOREIGN)}
        for stems, hint in ((self.foreign, _SIGNER_HINT), (self.damaged, _OTHER_HINT)):
            if found := [stem for stem in stems if name == LATEST or (name and stem.startswith(name))]:
                raise NotIntactError(f"the copy {found[0]} in {self.shown} is not used: {bad[found[0]]}", hint=hint)

    def line_of(self, commit: Commit) -> tuple[Commit, ...]:
        """The copies that an archive needs, its base first and its own last.

        Raises:
            NotIntactError: a copy is missing.
        """
        newest, line = self.newest(), [commit]
        while (parent := line[-1].parent) is not None:
            if parent not in newest or len(line) > len(newest):
                raise NotIntactError(
                    f"{commit.backup_id} needs {parent}, of which there is no copy in {self.shown}",
                    hint="Take an older archive, or another destination.",
                )
            line.append(newest[parent])
        return tuple(reversed(line))

    @staticmethod
    def chain_fault(commit: Commit, newest: Mapping[str, Commit]) -> str:
        """Why an archive with an intact copy cannot be restored from copies; empty if it can.

        Arguments:
            newest: the newest copy of each archive.
        """
        seen = {commit.backup_id}
        while commit.parent is not None:
            parent = newest.get(commit.parent)
            if parent is None:
                return f"it needs {commit.parent}, of which there is no copy"
            if commit.parent_sha256 not in (None, parent.archive_sha256) or parent.backup_id in seen:
                return f"the copy of {commit.parent} is not of the archive that {commit.backup_id} was made on"
            seen.add(parent.backup_id)
            commit = parent
        return ""


def list_copies(backend: Backend, name: str | None = None, trust: Trust | None = None) -> Listing:
    """List the copies in a destination.

    Arguments:
        name: the requested archive; of others, only as many commits are read as necessary.
        trust: whose copies to use; by default everyone's.

    Raises:
        StorageError: the store cannot be listed, or no commit can be read.
    """
    stems = list(commit_stems(backend))
    wanted = _wanted_ids(stems, name)
    commits = _Commits(backend, trust)
    read: set[str] = set()
    while wanted:
        ids, wanted = wanted - read, set()
        for stem in (stem for stem in stems if stem.backup_id in ids):
            commit = commits.read(stem)
            if commit and commit.parent and commit.parent not in read | ids:
                wanted.add(commit.parent)
        read |= ids
        if name == LATEST and not (commits.found or commits.damaged or wanted):
            wanted = {stem.backup_id for stem in stems} - read  # the newest is foreign: ``latest`` is another one
    return commits.listing()


class _Commits:
    """Reads the commits of a destination, and sorts out those that cannot be used."""

    def __init__(self, backend: Backend, trust: Trust | None) -> None:
        self._backend = backend
        self._trust = trust
        self.found: list[Commit] = []
        self.damaged: dict[str, str] = {}
        self._foreign: list[str] = []
        self._refusals: list[StorageError] = []

    def read(self, stem: Stem) -> Commit | None:
        """Read a commit; None if it cannot be used, or was removed meanwhile."""
        try:
            commit = _read(self._backend, stem)
        except ObjectAbsentError:
            return None
        except NotIntactError as error:
            log.warning("offsite_commit_damaged", stem=str(stem), error=error.message)
            self.damaged[str(stem)] = _CHANGED
            return None
        except StoreUnreachableError:
            raise
        except StorageError as error:  # such as one in a storage class from which it must be restored first
            log.warning("offsite_commit_unreadable", stem=str(stem), error=error.message)
            self.damaged[str(stem)] = f"its commit cannot be read: {error.message}"
            self._refusals.append(error)
            return None
        if self._trust is not None and not self._trust.accepts(commit):
            log.warning("offsite_copy_foreign", stem=str(stem), signer=commit.signer)
            self._foreign.append(str(stem))
            return None
        self.found.append(commit)
        return commit

    def listing(self) -> Listing:
        """Everything that was read.

        Raises:
            StorageError: the store refused every commit.
        """
        if self._refusals and not self.found and not self._foreign:
            raise self._refusals[0]
        commits = sorted(self.found, key=lambda one: (one.moment, one.copied, one.backup_id), reverse=True)
        return Listing(
            shown=self._backend.shown, commits=tuple(commits), damaged=self.damaged, foreign=tuple(self._foreign)
        )


def _wanted_ids(stems: Sequence[Stem], name: str | None) -> set[str]:
    """The archives whose commits are to be read: all, or those of an exact id, or of the newest full archive."""
    ids = {stem.backup_id for stem in stems}
    if name is None:
        return ids
    if name == LATEST:
        full = [one for one in ids if one.startswith("full_")]
        return {max(full or ids, key=_moment_of)} if ids else set()
    exact = parse_stem(name.removesuffix(".0"))
    return {exact.backup_id} if exact is not None and exact.backup_id in ids else ids


def _moment_of(backup_id: str) -> datetime:
    found = BackupId.parse(backup_id)
    assert found is not None  # stems contain an id
    return found.moment


def commit_stems(backend: Backend) -> Iterable[Stem]:
    """The stems of all commits, by object names."""
    return (stem for one in backend.list_top() if (stem := stem_of_commit(one.name)))


def count_copies(backend: Backend, trust: Trust) -> tuple[int, tuple[str, ...]]:
    """Our copies, and the stems of foreign ones; only unknown commits are read.

    Raises:
        StorageError: the store cannot be listed.
    """
    own, foreign = 0, []
    for stem in commit_stems(backend):
        commit = None if stem in trust.known else read_commit(backend, stem)
        if stem in trust.known or (commit is not None and trust.accepts(commit)):
            own += 1
        elif commit is not None:
            foreign.append(str(stem))
    return own, tuple(foreign)


def read_commit(backend: Backend, stem: Stem) -> Commit | None:
    """Read a commit; None if it does not exist or is invalid."""
    try:
        return _read(backend, stem)
    except (NotIntactError, ObjectAbsentError):
        return None


@contextmanager
def unless_removed(backend: Backend, commit: Commit) -> Iterator[None]:
    """Tell damage of a copy from its removal while it is read, such as by a prune, which removes the commit first.

    Raises:
        ArchiveAbsentError: something of it is missing, and its commit too.
    """
    try:
        yield
    except (NotIntactError, ObjectAbsentError) as error:
        if is_removed(backend, commit):
            raise ArchiveAbsentError(
                f"the copy {commit.stem} in {backend.shown} has just been removed",
                hint="'offsite list' shows the others.",
            ) from error
        raise


def is_removed(backend: Backend, commit: Commit) -> bool:
    """True if the commit of a copy is no longer there.

    Raises:
        StorageError: the store failed.
    """
    try:
        for _ in backend.read(commit.stem.commit, 0, 1):
            return False
    except ObjectAbsentError:
        return True
    return False


def _read(backend: Backend, stem: Stem) -> Commit:
    return Commit.decode(read_all(backend, stem.commit, MOST_BYTES), stem)


def listed(commit: Commit, destination: str) -> dict[str, Any]:
    """A copy as types of JSON."""
    identifier = BackupId.parse(commit.backup_id)
    return {
        "destination": destination,
        "backup_id": commit.backup_id,
        "copy": str(commit.stem),
        "type": identifier.type.value if identifier else None,
        "timestamp": timestamp(commit.moment),
        "copied": timestamp(commit.copied),
        "size_bytes": commit.archive_size,
        "stored_bytes": commit.stored_bytes,
        "segments": len(commit.segments),
        "checksum": commit.archive_sha256,
        "parent": commit.parent,
        "base": commit.base,
        "encrypted": commit.is_encrypted,
        "recipients": list(commit.recipients),
        "signer": commit.signer,
    }
