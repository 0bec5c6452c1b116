"""Single objects off-site, as WAL needs them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from portal.ops.errors import ConfigurationError, IdentityError, NotIntactError
from portal.ops.runtime.progress import read_text
from portal.ops.settings.load import load_settings
from portal.ops.storage.age_keys import generate
from portal.ops.storage.objects import ObjectWriter, identities_of, open_destination, read_object

if TYPE_CHECKING:
    from pathlib import Path

    from portal.ops.settings.load import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A destination on another disk, with a key."""
    (tmp_path / "disk").mkdir()
    made = generate(tmp_path / "identity")
    environ = {
        "BACKUP_OFFSITE_URLS": f"file://{tmp_path}/disk",
        "BACKUP_ENCRYPTION_RECIPIENTS": made.recipient,
        "BACKUP_ENCRYPTION_IDENTITY_FILE": str(made.path),
    }
    return load_settings(environ, read_text)


def test_an_object_comes_back(settings: Settings, tmp_path: Path) -> None:
    """What is stored comes back as it was, and is encrypted meanwhile; the second time nothing is sent."""
    (place,) = settings.offsite.destinations()
    content = b"WAL" + os.urandom(100_000)
    with ObjectWriter.of(settings, place) as writer:
        first = writer.store("wal/000000010000000000000001.abc.age", content)
        second = writer.store("wal/000000010000000000000001.abc.age", content)
    assert (first.is_new, second.is_new, second.size) == (True, False, 0)
    assert b"WAL" not in (tmp_path / "disk/wal/000000010000000000000001.abc.age").read_bytes()[:3]
    backend = open_destination(place, settings.offsite, {}, is_writing=False)
    assert read_object(backend, first.name, identities_of(settings.offsite)) == content


def test_an_object_that_was_changed(settings: Settings, tmp_path: Path) -> None:
    """An object that was changed is damaged, and named."""
    (place,) = settings.offsite.destinations()
    with ObjectWriter.of(settings, place) as writer:
        writer.store("wal/a.age", b"content")
    path = tmp_path / "disk/wal/a.age"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    backend = open_destination(place, settings.offsite, {}, is_writing=False)
    with pytest.raises(NotIntactError, match=r"wal/a\.age"):
        read_object(backend, "wal/a.age", identities_of(settings.offsite))


def test_nothing_leaves_without_a_recipient(tmp_path: Path) -> None:
    """Without a recipient nothing is stored, unless encryption is switched off in so many words."""
    (tmp_path / "disk").mkdir()
    environ = {"BACKUP_OFFSITE_URLS": f"file://{tmp_path}/disk"}
    settings = load_settings(environ, read_text)
    with pytest.raises(ConfigurationError, match="nothing leaves"):
        ObjectWriter.of(settings, settings.offsite.destinations()[0])
    settings = load_settings({**environ, "BACKUP_OFFSITE_ENCRYPTION": "off"}, read_text)
    with ObjectWriter.of(settings, settings.offsite.destinations()[0]) as writer:
        writer.store("wal/a", b"content")
    assert (tmp_path / "disk/wal/a").read_bytes() == b"content"


def test_an_identity_that_is_not_there(settings: Settings, tmp_path: Path) -> None:
    """A file of keys that cannot be read is named."""
    (tmp_path / "identity").unlink()
    with pytest.raises(IdentityError, match="identity"):
        identities_of(settings.offsite)
