"""Signs commits, to tell copies made by this repository from those of others who can write to the store.

Recipients are public and a store's credentials can be stolen, so encryption does not show who made an archive. Each
repository has an Ed25519 key in `.keys/offsite.key`; its public half is the **signer** in every commit. If that key
exists, or BACKUP_OFFSITE_SIGNERS names trusted signers, other copies are listed as foreign and never used (ADR 174).
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from portal.ops.errors import RepositoryError
from portal.ops.filesystem.temporary import temporary_name
from portal.ops.offsite.ledger import Ledger
from portal.ops.repository.durable import make_hidden, sync_directory, write_whole
from portal.ops.repository.repository import Repository
from portal.ops.storage.signature import SigningKey
from portal.ops.units import system_reason

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from portal.ops.offsite.commit import Commit
    from portal.ops.offsite.config import OffsiteConfig
    from portal.ops.offsite.layout import Stem
    from portal.ops.offsite.ledger import CopyRecord
    from portal.ops.settings.destination import Destination

ANY: Final = "any"
"""In place of signers: accept every copy."""

_DIRECTORY: Final = ".keys"
_NAME: Final = "offsite.key"
_KEY_BYTES: Final = 32


def find_key(repository: Repository) -> SigningKey | None:
    """The key of a repository, or None if it has made no copy yet.

    Raises:
        RepositoryError: the key exists and cannot be read.
    """
    path = _path(repository)
    try:
        secret = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unusable(path, system_reason(error)) from error
    if len(secret) != _KEY_BYTES:
        raise _unusable(path, "it is no key")
    return SigningKey(secret)


def own_key(repository: Repository) -> SigningKey:
    """The key of a repository, created by the first call.

    Raises:
        RepositoryError: it can neither be read nor created, or the repository used here before is absent.
    """
    if found := find_key(repository):
        return found
    repository.refuse_absent()
    path = _path(repository)
    temporary = path.with_name(temporary_name(_NAME))
    try:
        make_hidden(path.parent)
        write_whole(temporary, os.urandom(_KEY_BYTES))
        with suppress(FileExistsError):  # two at once: the first one's key counts
            os.link(temporary, path)
        temporary.unlink()
        sync_directory(path.parent)
    except OSError as error:
        raise _unusable(path, system_reason(error)) from error
    found = find_key(repository)
    assert found is not None
    return found


def _path(repository: Repository) -> Path:
    return repository.path / _DIRECTORY / _NAME


def _unusable(path: Path, why: str | None) -> RepositoryError:
    return RepositoryError(
        f"the key that signs off-site copies, {path}, cannot be used: {(why or '').lower()}",
        hint="Run this as the user that the backups belong to; without the key, older copies count as foreign.",
    )


def trusted_signers(repository: Repository, given: Collection[str]) -> frozenset[str] | None:
    """The signers whose copies are accepted; None to accept every copy.

    Arguments:
        given: the signers of the settings.

    Raises:
        RepositoryError: the repository's own key cannot be read.
    """
    own = find_key(repository)
    if ANY in given or not (own or given):
        return None
    return frozenset((*given, *((own.signer,) if own else ())))


@dataclass(frozen=True, kw_only=True)
class Trust:
    """Decides whose copies to accept.

    Arguments:
        signers: trusted public keys; None to accept every copy.
        known: copies made from here, by the repository's record.
    """

    signers: frozenset[str] | None = None
    known: Mapping[Stem, CopyRecord]

    @classmethod
    def of(cls, config: OffsiteConfig, destination: Destination) -> Trust:
        """The decision that settings and repository imply.

        Raises:
            RepositoryError: the key or the record of copies cannot be read.
        """
        repository = Repository(config.local_path)
        known = Ledger(repository, destination).copies()
        return cls(signers=trusted_signers(repository, config.settings.signers), known=known)

    def accepts(self, commit: Commit) -> bool:
        """True if a copy has a trusted signer, or is an older one that the repository knows."""
        if self.signers is None or commit.signer in self.signers:
            return True
        record = self.known.get(commit.stem)
        return record is not None and record.archive_sha256 == commit.archive_sha256
