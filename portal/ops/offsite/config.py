"""The configuration of off-site copies."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from portal.ops.errors import ConfigurationError
from portal.ops.storage.objects import open_destination

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from portal.ops.settings.destination import Destination
    from portal.ops.settings.load import OffsiteSettings, Settings
    from portal.ops.storage.backend import Backend


@dataclass(frozen=True, kw_only=True)
class OffsiteConfig:
    """The configuration of off-site copies for one repository.

    Arguments:
        local_path: the repository.
        destinations: the stores for copies.
        settings: recipients, identity, rate and lock.
        environ: the stores' variables.
        lock_timeout: seconds to wait for a lock.
    """

    local_path: Path
    destinations: tuple[Destination, ...]
    settings: OffsiteSettings
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    lock_timeout: float = 60
    jobs: int | None = None
    pg_bin_dir: Path | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> OffsiteConfig:
        """Make the configuration from the settings."""
        return cls(
            local_path=settings.local_path,
            destinations=settings.offsite.destinations(),
            settings=settings.offsite,
            environ=settings.store_variables,
            lock_timeout=settings.lock_timeout,
            jobs=settings.jobs,
            pg_bin_dir=settings.pg_bin_dir,
        )

    def require_destinations(self) -> tuple[Destination, ...]:
        """The destinations, of which there must be at least one.

        Raises:
            ConfigurationError: there are none.
        """
        if not self.destinations:
            raise ConfigurationError(
                "there is no destination of off-site copies",
                hint="Set BACKUP_OFFSITE_URLS, such as s3://bucket/prefix or file:///mnt/nas/kekkai.",
            )
        return self.destinations

    def open(self, destination: Destination, *, is_writing: bool = False) -> Backend:
        """Open the store of a destination.

        Raises:
            StorageError: it cannot be used.
        """
        return open_destination(destination, self.settings, self.environ, is_writing=is_writing)

    def includes(self, kind: str | None) -> bool:
        """True if archives of a type are copied."""
        return kind is not None and (not self.settings.types or kind in self.settings.types)
