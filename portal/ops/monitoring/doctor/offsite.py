"""Checks off-site stores: reachable, readable with an identity, and protected from deletion and overwriting."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from portal.ops.errors import ConfigurationError, OpsError
from portal.ops.monitoring.doctor.check import Check, Finding, fault, ok, warning
from portal.ops.offsite.config import OffsiteConfig
from portal.ops.offsite.ledger import Ledger
from portal.ops.offsite.listing import count_copies
from portal.ops.offsite.signing import Trust
from portal.ops.repository.repository import Repository
from portal.ops.settings.destination import Scheme
from portal.ops.storage.age_keys import check_recipients

if TYPE_CHECKING:
    from portal.ops.settings.destination import Destination
    from portal.ops.settings.load import Settings

_NAMED: Final = 3


class OffsiteChecks:
    """The checks of all destinations; none without destinations."""

    def __init__(self, settings: Settings) -> None:
        self._config = OffsiteConfig.from_settings(settings)
        self._repository = Repository(settings.local_path)

    def checks(self) -> list[Check]:
        """All checks."""
        if not self._config.destinations:
            return []
        found = [
            Check(name="off-site recipients", look=self._recipients),
            Check(name="off-site identity", look=self._identity),
        ]
        for destination in self._config.destinations:
            found.append(Check(name=f"off-site {destination.shown}", look=partial(self._store, destination)))
            if destination.scheme is Scheme.S3:
                found.append(Check(name=f"off-site lock {destination.shown}", look=partial(self._lock, destination)))
        return found

    def _recipients(self) -> Finding:
        recipients = self._config.settings.recipients
        if not self._config.settings.encryption:
            return warning(
                "copies are not encrypted", "Set BACKUP_ENCRYPTION_RECIPIENTS, and BACKUP_OFFSITE_ENCRYPTION to on."
            )
        if not recipients:
            return fault(
                "there is no recipient, so nothing is copied",
                "Make a key: 'keygen' says how to use it.",
            )
        check_recipients(recipients)
        if len(recipients) == 1:
            return warning("there is one recipient; who loses its key loses the copies", "Add a second one.")
        if not any(self._is_proven(destination) for destination in self._config.destinations):
            return warning(
                f"{len(recipients)} recipients, which no drill has proven yet",
                "Run 'drill offsite:latest' where an identity is: only that shows that the copies can be read.",
            )
        return ok(f"{len(recipients)} recipients, proven by a drill")

    def _is_proven(self, destination: Destination) -> bool:
        drilled: dict[str, Any] = Ledger(self._repository, destination).proof().get("drilled", {})
        recipients = set(self._config.settings.recipients)
        return bool(drilled.get("success")) and recipients <= set(drilled.get("recipients", ()))

    def _identity(self) -> Finding:
        path = self._config.settings.identity_file
        if path is None:
            return ok("no identity is configured here: this machine cannot read the copies")
        if not path.exists():
            return fault(f"the identity file {path} is not there", "Put it there, or unset the setting.")
        if path.stat().st_mode & 0o077:
            return fault(f"{path} may be read by others", f"chmod 600 {path}")
        return warning(
            f"an identity lies on this machine ({path}): an attacker who takes it over can read every copy",
            "Keep it elsewhere, and bring it here for a restore or an off-site drill only.",
        )

    def _store(self, destination: Destination) -> Finding:
        backend = self._config.open(destination)
        try:
            count, foreign = count_copies(backend, Trust.of(self._config, destination))
        finally:
            backend.close()
        what = f"it answers, and has {count} {'copy' if count == 1 else 'copies'}"
        if not foreign:
            return ok(what)
        return warning(
            f"{what}; besides, {len(foreign)} not made by this repository: {', '.join(foreign[:_NAMED])}",
            "They are never used. Name whoever made them in BACKUP_OFFSITE_SIGNERS, or find out who can write there.",
        )

    def _lock(self, destination: Destination) -> Finding:
        """The versioning and locks of a bucket, if `boto3` is installed and the credentials permit the query."""
        from portal.ops.storage.versions import bucket_protection

        try:
            has_versions, lock = bucket_protection(destination, self._config.environ)
        except (ConfigurationError, OpsError) as error:
            return warning(
                f"versions and lock cannot be looked at: {error.message}",
                f"An administrator can do it. {error.hint}",
            )
        if lock:
            return ok(f"the bucket has versions and object lock ({lock})")
        if has_versions:
            return warning(
                "the bucket has versions but no object lock", "With object lock, nobody can remove what was copied."
            )
        return warning(
            "the bucket has neither versions nor object lock, so this machine's credentials can overwrite copies",
            "Switch versions on; docs/offsite.md has the commands.",
        )
