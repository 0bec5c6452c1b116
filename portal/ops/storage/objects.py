"""Single off-site objects, such as WAL segments: encrypted, stored once, read back.

The name of an object must depend on its content, as in ``wal/<segment>.<start of its SHA-256>.age``. Then an existing
object is the same one, and storing it again after a crash needs no record of the first time.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple, Self

from portal.ops.errors import ConfigurationError, NotIntactError, ObjectExistsError
from portal.ops.storage.age_format import StreamDecryptor
from portal.ops.storage.age_keys import read_identities
from portal.ops.storage.backend import read_all
from portal.ops.storage.open import open_backend

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from portal.ops.settings.destination import Destination
    from portal.ops.settings.load import OffsiteSettings, Settings
    from portal.ops.storage.age_keys import Identity
    from portal.ops.storage.backend import Backend

MOST_BYTES = 1 << 28
"""The largest single object, in bytes."""


class Stored(NamedTuple):
    """A stored object.

    Arguments:
        name: the name relative to the destination.
        size: the bytes sent; 0 if it existed already.
        is_new: whether this call stored it.
    """

    name: str
    size: int
    is_new: bool


def open_destination(
    destination: Destination, offsite: OffsiteSettings, environ: Mapping[str, str], *, is_writing: bool = True
) -> Backend:
    """Open the store of a destination with the settings' options.

    Arguments:
        environ: the stores' variables, from `Settings.store_variables`.
        is_writing: lock new objects if the settings say so.
    """
    lock_days = offsite.lock_days if is_writing else 0
    return open_backend(destination, environ, lock_days=lock_days, password=offsite.password)


def recipients_of(offsite: OffsiteSettings) -> tuple[str, ...]:
    """The public keys to encrypt for; empty if encryption is switched off.

    Raises:
        ConfigurationError: there are none, and encryption is not switched off.
    """
    if offsite.encryption and not offsite.recipients:
        raise ConfigurationError(
            "there is no recipient to encrypt off-site copies for, so nothing leaves this machine",
            hint="Make a key with 'keygen', and set BACKUP_ENCRYPTION_RECIPIENTS to its public part.",
        )
    return offsite.recipients


class ObjectWriter:
    """Stores single objects in one destination; a context manager that keeps one encrypting process.

    Arguments:
        backend: the store, closed with this object.
        recipients: age public keys; if empty, objects are stored unencrypted.
    """

    def __init__(self, backend: Backend, recipients: Sequence[str]) -> None:
        from portal.ops.storage.encryption import Encryptor  # imported late: reading needs no helper process

        self._backend = backend
        self._encryptor = Encryptor(recipients) if recipients else None

    @classmethod
    def of(cls, settings: Settings, destination: Destination) -> Self:
        """Open a destination with the settings' options.

        Raises:
            ConfigurationError: there is no recipient.
            StorageError: the store cannot be used.
        """
        recipients = recipients_of(settings.offsite)
        return cls(open_destination(destination, settings.offsite, settings.store_variables), recipients)

    def __enter__(self) -> Self:
        if self._encryptor is not None:
            self._encryptor.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._encryptor is not None:
            self._encryptor.__exit__()
        self._backend.close()

    def names(self, prefix: str) -> list[str]:
        """The names of the objects below a prefix.

        Raises:
            StorageError: the store cannot be listed.
        """
        return [one.name for one in self._backend.list(prefix)]

    def store(self, name: str, content: bytes) -> Stored:
        """Store an object under a name that depends on its content; an existing object is not sent again.

        Arguments:
            name: the name relative to the destination, such as ``wal/…``.

        Raises:
            StorageError: storing failed; if the error is retryable, a later call may succeed.
        """
        try:
            if self._encryptor is None:
                self._backend.put(name, content, sha256(content).hexdigest())
                return Stored(name, len(content), is_new=True)
            self._encryptor.begin(0, self._encryptor.load(content), 0)
            with self._encryptor.sealed(0) as sealed:
                self._backend.put(name, sealed.data, sealed.sha256)
                return Stored(name, len(sealed.data), is_new=True)
        except ObjectExistsError:
            return Stored(name, 0, is_new=False)


def identities_of(offsite: OffsiteSettings) -> tuple[Identity, ...]:
    """The identities for decrypting; none if no file is configured.

    Raises:
        IdentityError: the file cannot be read.
    """
    return read_identities(offsite.identity_file) if offsite.identity_file else ()


def read_object(backend: Backend, name: str, identities: Sequence[Identity]) -> bytes:
    """Read and decrypt a single object.

    Arguments:
        identities: empty if objects are stored unencrypted.

    Raises:
        IdentityError: the object is encrypted for none of the identities.
        NotIntactError: it was changed.
        ObjectAbsentError: the object does not exist.
    """
    data = read_all(backend, name, MOST_BYTES)
    if not identities:
        return data
    decryptor = StreamDecryptor(identities)
    try:
        return b"".join((*decryptor.feed(data), decryptor.finish()))
    except NotIntactError as error:
        raise NotIntactError(f"{backend.shown}/{name}: {error.message}", hint=error.hint) from error
