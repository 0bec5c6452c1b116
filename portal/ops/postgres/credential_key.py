"""The key for credentials in the database: a backup records which key it needs, without storing it.

DefectDojo encrypts stored credentials with ``DD_CREDENTIAL_AES_256_KEY``, and silently shows an empty string if the key
has changed. So the manifest has a fingerprint of the key: HMAC-SHA256 with the key over the backup's id. With the key
one can tell whether it is the same; without it one learns nothing, not even whether two backups use the same key.
"""

from __future__ import annotations

import hmac
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from portal.ops.model import Component
from portal.ops.settings.database_url import Secret

if TYPE_CHECKING:
    from portal.ops.manifest import Manifest

DETAIL: Final = "credential_key"
"""The fingerprint's name in the database's details."""

_PURPOSE: Final = b"kekkai-backup credential key\0"


def fingerprint(key: Secret, backup_id: str) -> str:
    """The fingerprint of a key for one backup, in hexadecimal."""
    return hmac.new(key.reveal().encode(), _PURPOSE + backup_id.encode(), sha256).hexdigest()


def credential_detail(key: Secret | str | None, backup_id: str) -> dict[str, str]:
    """The manifest's facts about the key; empty if no key is set."""
    return {DETAIL: fingerprint(key, backup_id)} if isinstance(key, Secret) else {}


def fingerprint_of(manifest: Manifest) -> str | None:
    """The fingerprint in a manifest."""
    found = manifest.details.get(Component.DATABASE.value, {}).get(DETAIL)
    return found if isinstance(found, str) else None


def is_key_of(manifest: Manifest, key: Secret | None) -> bool | None:
    """True if a key is the one that a backup needs; None if that is unknown: no fingerprint, or no key."""
    noted = fingerprint_of(manifest)
    if noted is None or key is None:
        return None
    return hmac.compare_digest(noted, fingerprint(key, manifest.backup_id))


def key_warnings(manifest: Manifest, key: Secret | None) -> tuple[str, ...]:
    """Warnings about the key, for a restore of the database."""
    if is_key_of(manifest, key) is False:
        return (
            "DD_CREDENTIAL_AES_256_KEY is not the key that this backup needs: the credentials in the restored database "
            "would show as empty",
        )
    if fingerprint_of(manifest) is not None and key is None:
        return (
            "this backup needs the portal's DD_CREDENTIAL_AES_256_KEY; it is not set here, so it could not be compared",
        )
    return ()
