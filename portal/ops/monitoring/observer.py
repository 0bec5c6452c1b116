"""The observer of all jobs: writes metrics, sends alerts, and calls the dead-man's URL after each operation.

It never raises, and takes a limited time. Front ends pass it to the jobs; the engine's jobs know only its interface.
Modules for alerts and metrics are imported only if they are used: that takes longer than a small backup.
"""

from __future__ import annotations

import re
import socket
import time
from functools import cached_property
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from portal.ops.errors import OpsError
from portal.ops.model import BackupId, BackupType
from portal.ops.monitoring import send
from portal.ops.repository.access_log import Action
from portal.ops.runtime.environment import SECRET_NAME
from portal.ops.runtime.logs import engine_log
from portal.ops.runtime.progress import Clock, utc_now
from portal.ops.settings.database_url import Secret

if TYPE_CHECKING:
    from collections.abc import Iterator

    from portal.ops.monitoring.alerts import AlertSender
    from portal.ops.monitoring.model import Status
    from portal.ops.repository.access_log import AccessEntry
    from portal.ops.settings.load import Settings

log = engine_log("portal.ops.monitoring.observer")

_HIDDEN: Final = "********"
_USER_INFO: Final = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_SHORTEST_SECRET: Final = 4
"""A shorter secret is not masked: it would turn plain words into asterisks."""

_AT_MOST_EVERY: Final = 60.0
_SERIES: Final = frozenset({Action.VERIFY, Action.OFFSITE_COPY, Action.OFFSITE_VERIFY})
"""Actions that one operation does with many archives."""


class Observers:
    """Writes metrics, sends alerts, and calls the dead-man's URL; called with each entry of the access log.

    Arguments:
        settings: where metrics go, who gets alerts, which URL to call, and which values are secret.
        clock: returns the current time.
    """

    def __init__(self, settings: Settings, *, clock: Clock = utc_now) -> None:
        self._settings = settings
        self._clock = clock
        self._secrets = sorted(secret_words(settings), key=len, reverse=True)
        self._refreshed = -_AT_MOST_EVERY
        self._is_behind = False

    def __call__(self, entry: AccessEntry) -> None:
        """An operation has ended.

        In a series (verifications, copies, removals) the status is not read after each; `settle` ends it.
        """
        is_part = entry.action in _SERIES or "archives" in entry.details
        try:
            self._ping(entry)
            self._is_behind = is_part and not self._is_due
            self._follow(entry, None if self._is_behind else self._read())
        except Exception as error:
            log.warning("observer_failed", reason=type(error).__name__)

    def settle(self) -> None:
        """A series has ended: show the status after its last part."""
        try:
            if self._is_behind:
                self._is_behind = False
                self._follow(None, self._read())
        except Exception as error:
            log.warning("observer_failed", reason=type(error).__name__)

    def refresh(self, status: Status | None = None) -> None:
        """Time has passed, so targets may be missed. Called too often, it does nothing.

        Arguments:
            status: the status, if it was read already.
        """
        try:
            if status or self._is_due:
                self._follow(None, status or self._read())
        except Exception as error:
            log.warning("observer_failed", reason=type(error).__name__)

    @cached_property
    def _alerts(self) -> AlertSender:
        from portal.ops.monitoring.alerts import AlertSender

        return AlertSender(self._settings.local_path, host=socket.gethostname(), tell=self._tell, clock=self._clock)

    @property
    def _is_due(self) -> bool:
        return time.monotonic() - self._refreshed >= _AT_MOST_EVERY

    def _follow(self, entry: AccessEntry | None, status: Status | None) -> None:
        targets = self._settings.targets
        if status and targets.metrics_file:
            from portal.ops.monitoring.metrics import write_metrics

            try:
                write_metrics(status, targets.metrics_file)
            except OpsError as error:
                log.warning("metrics_unwritten", error=str(error))
        if targets.notify_urls:
            self._alerts.after(entry, status.misses if status else None)

    def _read(self) -> Status | None:
        """The status, if it is needed and can be read."""
        targets = self._settings.targets
        if not (targets.metrics_file or targets.notify_urls):
            return None
        from portal.ops.monitoring.facts import read_status

        self._refreshed = time.monotonic()
        try:
            return read_status(self._settings, self._clock())
        except OpsError as error:
            log.warning("status_unreadable", error=str(error))
            return None

    def _ping(self, entry: AccessEntry) -> None:
        url = self._settings.targets.ping_url
        if not url or entry.action is not Action.BACKUP:
            return
        from portal.ops.monitoring.failures import is_failure

        backup_id = BackupId.parse(entry.subject)
        if backup_id and backup_id.type is BackupType.FULL:
            send.ping(url, failed=is_failure(entry))

    def _tell(self, title: str, text: str) -> bool:
        urls = self._settings.targets.notify_urls
        return urls is not None and send.notify(urls, self._scrubbed(title), self._scrubbed(text))

    def _scrubbed(self, text: str) -> str:
        """The text with all secrets masked, in case another program's error contains one."""
        for word in self._secrets:
            text = text.replace(word, _HIDDEN)
        return _USER_INFO.sub(_HIDDEN, text)


def secret_words(settings: Settings) -> set[str]:
    """All values to be masked: the secrets, and also passwords within URLs."""
    worker, targets = settings.worker, settings.targets
    given: list[Secret | None] = [
        settings.database.password,
        worker.broker_url,
        worker.result_backend,
        worker.flower_password,
        targets.notify_urls,
        targets.ping_url,
        settings.replication.password,
        settings.offsite.password,
        settings.portal.credential_key,
        *(Secret(value) for name, value in settings.store_variables.items() if SECRET_NAME.search(name)),
    ]
    found = {word for secret in given if secret for word in _words(secret.reveal())}
    return {word for word in found if len(word) >= _SHORTEST_SECRET}


def _words(secret: str) -> Iterator[str]:
    yield secret
    for url in secret.split():
        yield url
        try:
            password = urlsplit(url).password
        except ValueError:
            continue
        if password:
            yield from (password, unquote(password))
