"""Makes the engine's jobs from the settings, in the name of the person who started the command."""

from __future__ import annotations

import atexit
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from portal.ops.backup.job import BackupJob
    from portal.ops.repository.repository import Repository
    from portal.ops.restore.job import RestoreJob
    from portal.ops.restore.plan import RestorePlan
    from portal.ops.runtime.progress import Step
    from portal.ops.settings.load import Settings


def person() -> str | None:
    """The user who called sudo, if any."""
    from portal.ops.repository.access_log import sudo_user

    return sudo_user()


def known(settings: Settings) -> dict[str, Any]:
    """The common arguments of every job: the actor and the observer."""
    from portal.ops.monitoring.observer import Observers

    observer = Observers(settings)
    atexit.register(observer.settle)
    return {"actor": person(), "observer": observer}


def repository(settings: Settings) -> Repository:
    """The configured repository."""
    from portal.ops.repository.repository import Repository

    return Repository(settings.local_path, lock_timeout=settings.lock_timeout)


def backup_job(settings: Settings, show: Callable[[Step], None], **given: Any) -> BackupJob:
    """A job for backups and archives; `given` are arguments of `BackupConfig`."""
    from portal.ops.backup.job import BackupConfig, BackupJob

    config = replace(BackupConfig.from_settings(settings), **given)
    return BackupJob(config, progress=show, **known(settings))


def restore_job(
    settings: Settings,
    show: Callable[[Step], None] | None = None,
    confirm: Callable[[RestorePlan], bool] | None = None,
    **given: Any,
) -> RestoreJob:
    """A job for restores and rollbacks; `given` are arguments of `RestoreConfig`."""
    from portal.ops.restore.job import RestoreConfig, RestoreJob

    return RestoreJob(
        RestoreConfig.from_settings(settings, **given),
        confirm=confirm,
        progress=show,
        **known(settings),
    )


def archive_at_hand(settings: Settings, show: Callable[[Step], None], archive: str) -> str:
    """The archive that a command names, fetched from off-site if the name requests that."""
    if not archive.startswith("offsite:"):
        return archive
    from portal.ops.offsite.local import local_archive

    return local_archive(settings, archive, progress=show, **known(settings))
