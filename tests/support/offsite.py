"""A repository with archives, and a destination for their copies."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.offsite.config import OffsiteConfig
from portal.ops.offsite.copy import CopyJob, CopyResult
from portal.ops.offsite.fetch import FetchJob
from portal.ops.offsite.prune import OffsitePruneJob
from portal.ops.offsite.verify import OffsiteVerifyJob
from portal.ops.retention.policy import RetentionPolicy, RetentionRule
from portal.ops.runtime.progress import read_text
from portal.ops.settings.load import load_settings
from portal.ops.storage.age_keys import generate
from tests.support.incrementals import Uploads

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from portal.ops.settings.destination import Destination
    from portal.ops.settings.load import Settings
    from portal.ops.storage.backend import Backend

SEGMENT_BYTES = 200_000


@dataclass(frozen=True, kw_only=True)
class Offsite:
    """A repository of uploads, with a destination, and a key.

    Arguments:
        uploads: what is backed up.
        environ: the settings of a machine that may do everything.
    """

    directory: Path
    uploads: Uploads
    environ: dict[str, str]

    def settings(self, **changes: str) -> Settings:
        """The settings, with some of them changed."""
        return load_settings({**self.environ, **changes}, read_text)

    def config(self, **changes: str) -> OffsiteConfig:
        """What is copied where."""
        return replace(OffsiteConfig.from_settings(self.settings(**changes)), lock_timeout=0.5)

    def through(self, wrap: Callable[[Backend], Backend], **changes: str) -> OffsiteConfig:
        """What is copied where, with another store in front of the real one."""

        class Config(OffsiteConfig):
            def open(self, destination: Destination, *, is_writing: bool = False) -> Backend:
                return wrap(super().open(destination, is_writing=is_writing))

        given = self.config(**changes)
        return Config(**{name: getattr(given, name) for name in given.__dataclass_fields__})

    def copy(self, archive: str | None = None, *, again: bool = False, **changes: str) -> CopyResult:
        """Copy what is missing; the result, whatever it is."""
        return CopyJob(self.config(**changes), policy()).run(archive, again=again)

    def copied(self, archive: str | None = None, **changes: str) -> CopyResult:
        """Copy what is missing, which must not fail."""
        result = self.copy(archive, again=False, **changes)
        assert result.error is None, result.error
        return result

    def elsewhere(self, name: str = "elsewhere", **changes: str) -> Offsite:
        """Another machine with an empty repository, and the same destination."""
        environ = {**self.environ, "BACKUP_LOCAL_PATH": str(self.directory / name / "archives"), **changes}
        uploads = Uploads(directory=self.directory / name)
        return Offsite(directory=self.directory, uploads=uploads, environ=environ)

    def fetch(self, name: str, **changes: str) -> Path:
        """Fetch an archive; where it is."""
        return FetchJob(self.config(**changes)).run(name).path

    def verify(self, **changes: str) -> OffsiteVerifyJob:
        """What verifies copies."""
        return OffsiteVerifyJob(self.config(**changes))

    def prune(self, rule: RetentionRule | None = None, **changes: str) -> OffsitePruneJob:
        """What prunes copies."""
        return OffsitePruneJob(self.config(**changes), policy(rule))

    def backend(self) -> Backend:
        """The store of the first destination."""
        config = self.config()
        return config.open(config.destinations[0])

    def names(self) -> list[str]:
        """Every object there is."""
        return [one.name for one in self.backend().list("")]


def policy(rule: RetentionRule | None = None) -> RetentionPolicy:
    """A policy of the repository."""
    return RetentionPolicy(rule=rule or RetentionRule())


def small_archives(uploads: Uploads, *, kilobytes: int = 700, seed: int = 1) -> None:
    """Uploads that do not compress, so that their archive has a few segments."""
    content = random.Random(seed)
    for number in range(4):
        uploads.write(f"tenant-{number % 2}/scan-{number}.sarif", content.randbytes(kilobytes << 8))


def offsite_at(directory: Path, url: str, **environ: str) -> Offsite:
    """A repository with a destination, and a key of its own."""
    uploads = Uploads(directory=directory)
    made = generate(directory / "identity")
    given: dict[str, Any] = {
        "BACKUP_LOCAL_PATH": str(uploads.archives),
        "PORTAL_UPLOAD_DIR": str(uploads.root),
        "BACKUP_OFFSITE_URLS": url,
        "BACKUP_ENCRYPTION_RECIPIENTS": made.recipient,
        "BACKUP_ENCRYPTION_IDENTITY_FILE": str(made.path),
        "BACKUP_LOCK_TIMEOUT": "1",
        **{name: value for name, value in os.environ.items() if name.startswith("AWS_") and "BUNDLE" not in name},
    }
    return Offsite(directory=directory, uploads=uploads, environ={**given, **environ})


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of 200 kB, so that small archives have several."""
    monkeypatch.setattr("portal.ops.offsite.layout.SEGMENT_BYTES", SEGMENT_BYTES)


@pytest.fixture
def offsite(tmp_path: Path, small_segments: None) -> Offsite:
    """A repository with one archive, and a directory as its destination."""
    (tmp_path / "disk").mkdir()
    world = offsite_at(tmp_path, f"file://{tmp_path}/disk")
    small_archives(world.uploads)
    world.uploads.base()
    return world
