"""Checks a restored portal beyond its data: files that rows refer to, the credential key, the portal's own command.

An exactly restored archive may still not give a working portal. Such a problem is not damage to the archive: the drill
has failed, and the archive remains intact.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from portal.ops.drill.credentials import try_credentials
from portal.ops.drill.references import check_references
from portal.ops.errors import ConfigurationError
from portal.ops.postgres.credential_key import fingerprint_of, is_key_of
from portal.ops.runtime.commands import CommandResult, command_environment, database_environment, run_command
from portal.ops.settings.file_columns import FileColumns
from portal.ops.units import exact_duration

if TYPE_CHECKING:
    from pathlib import Path

    from portal.ops.manifest import Manifest
    from portal.ops.runtime.process import ProcessRunner
    from portal.ops.settings.database_url import DatabaseTarget, Secret
    from portal.ops.settings.table import Settings

DRILL_COMMAND: Final = "BACKUP_DRILL_COMMAND"
KEY: Final = "DD_CREDENTIAL_AES_256_KEY"


@dataclass(frozen=True, kw_only=True)
class PortalCheckConfig:
    """The checks of a restored portal.

    Arguments:
        command: the portal's own check; empty for none.
        timeout_seconds: the time limit of the command, in seconds.
        file_columns: further columns that refer to uploads.
        credential_key: the portal's present key.
    """

    command: tuple[str, ...] = ()
    timeout_seconds: float = 600.0
    file_columns: FileColumns = field(default_factory=FileColumns)
    credential_key: Secret | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> PortalCheckConfig:
        """Make the configuration from the settings."""
        portal = settings.portal
        return cls(
            command=portal.drill_command,
            timeout_seconds=portal.command_timeout.total_seconds(),
            file_columns=portal.file_columns,
            credential_key=portal.credential_key,
        )


@dataclass(kw_only=True)
class PortalChecks:
    """Runs the checks, and collects problems of the restored portal.

    Arguments:
        database: the restored database; None if the archive has none.
        uploads: the restored uploads; None if the archive has none.
        live_uploads: the directory of the live uploads.
    """

    config: PortalCheckConfig
    manifest: Manifest
    database: DatabaseTarget | None = None
    uploads: Path | None = None
    live_uploads: str = ""
    checks: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    command: CommandResult | None = None

    def run(self, runner: ProcessRunner, facts: dict[str, str]) -> None:
        """Run all checks, the portal's own command last: it may change the restored data.

        Arguments:
            facts: further variables for the command.

        Raises:
            SourceError: the server cannot be queried.
        """
        if self.database is not None:
            self._references(self.database)
            self._key(self.database)
        if self.config.command:
            self._ask_the_portal(runner, facts)

    def _references(self, database: DatabaseTarget) -> None:
        if not self.config.file_columns.checked or self.uploads is None:
            return
        configured = self.config.file_columns.columns
        found = check_references(database, self.uploads, configured, media_root=self.live_uploads)
        self.problems += found.problems()
        if found.elsewhere:
            self.warnings.append(
                f"{found.elsewhere:,} paths in {', '.join(found.columns)} are outside the uploads, so the backup does "
                "not have these files"
            )
        if found.columns:
            self.checks.append(
                f"{_files(found.count)} referred to in {', '.join(found.columns)}, {found.missing:,} of them missing; "
                f"{_files(found.orphans)} that no row refers to"
            )

    def _key(self, database: DatabaseTarget) -> None:
        key = self.config.credential_key
        if key is None:
            if fingerprint_of(self.manifest):
                self.warnings.append(f"{KEY} is not set, so it was not checked whether it is the one of this backup")
            return
        is_the_one = is_key_of(self.manifest, key)
        if is_the_one is False:
            self.problems.append(f"{KEY} is not the key that the portal had when this backup was made")
        found = try_credentials(database, key)
        if found.closed:
            self.problems.append(
                f"{KEY} does not open {found.tried - found.opened} of {found.tried} stored credentials "
                f"({', '.join(found.closed)}); the portal would show them as empty"
            )
        if is_the_one or found.opened:
            noted = "it is the one of this backup" if is_the_one else "the backup does not say which one it needs"
            opened = f"{found.opened} of {found.tried} stored credentials opened" if found.tried else "nothing to open"
            self.checks.append(f"{KEY}: {noted}; {opened}")

    def _ask_the_portal(self, runner: ProcessRunner, facts: dict[str, str]) -> None:
        key = self.config.credential_key
        uploads = str(self.uploads) if self.uploads else ""
        database = database_environment(self.database) if self.database else {}
        environment = command_environment(
            {
                **database,
                "PORTAL_UPLOAD_DIR": uploads,
                "DD_MEDIA_ROOT": uploads,
                **({KEY: key.reveal()} if key else {}),
                **facts,
            }
        )
        try:
            self.command = run_command(
                runner,
                self.config.command,
                environment=environment,
                timeout_seconds=self.config.timeout_seconds,
                secrets=[key, self.database.password if self.database else None],
            )
        except ConfigurationError as error:
            self.problems.append(f"{DRILL_COMMAND}: {error.message}")
            return
        if self.command.succeeded:
            self.checks.append(f"{DRILL_COMMAND} ended with 0 after {exact_duration(self.command.seconds)}")
        else:
            self.problems.append(f"{DRILL_COMMAND} {self.command.failure()}")


def _files(count: int) -> str:
    return f"{count:,} file{'' if count == 1 else 's'}"
