"""Opens the store of a destination."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from portal.ops.errors import ConfigurationError
from portal.ops.settings.destination import Destination, Scheme

if TYPE_CHECKING:
    from collections.abc import Mapping

    from portal.ops.settings.database_url import Secret
    from portal.ops.storage.backend import Backend


def open_backend(
    destination: Destination, environ: Mapping[str, str], *, lock_days: int = 0, password: Secret | None = None
) -> Backend:
    """Open the store of a destination, and import only the library that it needs.

    Arguments:
        environ: variables with the store's credentials.
        lock_days: days to lock new objects, if the store can.
        password: for an SFTP server without key authentication.

    Raises:
        ConfigurationError: the credentials are invalid, or the store cannot lock.
        StorageError: the store cannot be used.
    """
    if destination.scheme in (Scheme.FILE, Scheme.SFTP) and lock_days:
        raise ConfigurationError(
            f"{destination.shown} cannot lock new objects",
            hint="Unset BACKUP_OFFSITE_LOCK, or use an S3 bucket with object lock.",
        )
    if destination.scheme is Scheme.FILE:
        from portal.ops.storage.directory import DirectoryBackend

        return DirectoryBackend(Path(destination.prefix))
    if destination.scheme is Scheme.SFTP:
        from portal.ops.storage.sftp import SftpBackend

        return SftpBackend(destination, password)
    from portal.ops.storage.object_store import ObjectStoreBackend

    return ObjectStoreBackend(destination, environ, lock_days=lock_days)
