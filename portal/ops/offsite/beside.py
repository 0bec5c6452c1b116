"""Fetches an off-site archive to a temporary place, to verify it or to copy it again."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from portal.ops.archive.output_file import OutputFile
from portal.ops.errors import IdentityError
from portal.ops.model import SUFFIX
from portal.ops.offsite.ledger import DIRECTORY
from portal.ops.offsite.place import check_space, own_place, unwritable
from portal.ops.offsite.receiving import blame, receive
from portal.ops.repository.sidecar import sidecar_of
from portal.ops.storage.objects import identities_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from portal.ops.offsite.commit import Commit
    from portal.ops.offsite.config import OffsiteConfig
    from portal.ops.repository.repository import Repository
    from portal.ops.runtime.progress import Advance
    from portal.ops.storage.backend import Backend


@contextmanager
def archive_beside(
    config: OffsiteConfig, repository: Repository, backend: Backend, commit: Commit, advance: Advance
) -> Iterator[Path]:
    """The decrypted archive of a copy, with its sidecar; removed when the context ends.

    Raises:
        IdentityError: it is encrypted, and no identity fits.
        NotIntactError: the copy is damaged.
        StorageError: the store failed.
        DiskFullError: there is not enough room.
    """
    identities = identities_of(config.settings) if commit.is_encrypted else ()
    if commit.is_encrypted and not identities:
        raise IdentityError(
            f"the copy of {commit.backup_id} is encrypted, and there is no identity to open it",
            hint="Name the file with the secret key in BACKUP_ENCRYPTION_IDENTITY_FILE.",
        )
    repository.prepare()
    with ExitStack() as held:
        try:
            place = held.enter_context(own_place(repository.path / DIRECTORY))
            check_space(repository, commit.archive_size)
            path = place / f"{commit.backup_id}{SUFFIX}"
            out = OutputFile(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
            try:
                receive(backend, commit, identities, out, advance)
                if out.finish() != commit.archive_sha256:
                    raise blame(backend, commit)
            finally:
                out.close()
            sidecar_of(path).write_text(f"{commit.archive_sha256}  {path.name}\n")
        except OSError as error:
            raise unwritable(repository, error) from error
        yield path
