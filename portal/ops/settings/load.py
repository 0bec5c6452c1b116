"""The settings: what the environment says, checked once and turned into values.

Nothing is read here but the mapping that is passed in; the file of a ``*_FILE`` variable is read by the caller's
function. A value that is empty counts as not set, but for one: an empty ``PORTAL_UPLOAD_DIR`` leaves the media out.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, TypeVar

from portal.ops.errors import ConfigurationError, UnsupportedError
from portal.ops.model import LogFormat
from portal.ops.settings import table as variables
from portal.ops.settings.database_url import DatabaseTarget, Secret
from portal.ops.settings.parsers import OFF, Setting, UnusableError, own_numbers
from portal.ops.settings.table import SETTINGS, WatchMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import timedelta
    from pathlib import Path
    from zoneinfo import ZoneInfo

__all__ = [
    "SETTINGS",
    "DatabaseTarget",
    "LogFormat",
    "Secret",
    "Setting",
    "Settings",
    "WatchMode",
    "load_settings",
    "refuse_unbuilt",
    "unbuilt_settings",
    "unknown_settings",
]

T = TypeVar("T")

_FAMILIES: Final = ("BACKUP_", "DD_DATABASE_", "PORTAL_")
_TYPO_LIKENESS: Final = 0.9

_DESTINATION: Final = "BACKUP_DESTINATION"
_LOCAL: Final = "local"
_S3: Final = "BACKUP_S3_"
_ENCRYPTION: Final = "BACKUP_ENCRYPTION"
_SWITCHES: Final = (_ENCRYPTION, f"{_ENCRYPTION}_ENABLED")
_NO: Final = frozenset({"0", "false", "no", OFF})


@dataclass(frozen=True, kw_only=True)
class RetentionSettings:
    """How long archives are kept.

    Arguments:
        days: an archive is kept so long.
        count: so many are kept whatever their age.
        hourly: the last one of each of so many hours is kept, and likewise for the longer periods.
        rules: for types of backups that have one of their own, by the type's name: its numbers by their names.
    """

    days: int
    count: int
    hourly: int
    daily: int
    weekly: int
    monthly: int
    yearly: int
    rules: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """How work is handed to workers, and how they behave.

    Arguments:
        broker_url: where tasks are queued; nothing where commands do the work themselves.
        result_backend: where results are kept; nothing means the broker.
        allowed_paths: directories beside the repository that a task may name.
        task_timeout: seconds that a task may take.
        attempts: how often a task is started at the most.
        shutdown_grace: seconds that a task has to end when its worker has to.
    """

    broker_url: Secret | None
    result_backend: Secret | None
    allowed_paths: tuple[Path, ...]
    task_timeout: int
    attempts: int
    shutdown_grace: int
    flower_password: Secret | None


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """When what starts by itself: cron expressions in one time zone; nothing is never."""

    full: str | None
    database: str | None
    verify: str | None
    prune: str | None
    drill: str | None
    base: str | None = None
    time_zone: ZoneInfo


@dataclass(frozen=True, kw_only=True)
class PitrSettings:
    """Recovery to a point in time.

    Arguments:
        wal: whether WAL is received.
        replication: the server as the role that may replicate.
        days: how far back a recovery to any second reaches.
    """

    wal: bool
    replication: DatabaseTarget
    days: int


@dataclass(frozen=True, kw_only=True)
class WatchSettings:
    """How the uploads are watched.

    Arguments:
        quiet: how long nothing may have changed before a backup.
        latest: how long a change waits at the most.
        scan: how often the whole tree is looked at.
    """

    quiet: timedelta
    latest: timedelta
    scan: timedelta
    mode: WatchMode


@dataclass(frozen=True, kw_only=True)
class TargetSettings:
    """What is expected of the backups, and who is told.

    Arguments:
        rpo_database: the age that the newest backup may have; likewise for the other components.
        verified_age: the age that the newest one known to be intact may have.
        drill_age: the age that the last successful drill may have.
        notify_urls: URLs of Apprise, separated by spaces.
        ping_url: called after a full backup.
    """

    rpo_database: timedelta
    rpo_media: timedelta
    rpo_audit_logs: timedelta
    verified_age: timedelta
    drill_age: timedelta
    metrics_file: Path | None
    metrics_port: int | None
    notify_urls: Secret | None
    ping_url: Secret | None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every setting, valid.

    Arguments:
        local_path: the repository.
        upload_dir: the media; ``None`` leaves them out.
        audit_dir: the directory of the audit log, or the log itself; ``None`` leaves it out.
        retention: how long archives are kept.
        chain_length: incrementals that a chain has at the most.
        chain_percent: their size together, in percent of the base, at the most.
        rollback_days: days that what takes a restore back is kept.
        pg_bin_dir: where the PostgreSQL client programs are; ``None`` chooses by the server's version.
        dump_timeout: seconds that pg_dump may take.
        lock_timeout: seconds to wait for a lock.
        jobs: processes and threads; ``None`` is one for each core that may be used.
        unbuilt: what the environment asks for and this release does not have; see `refuse_unbuilt`.
    """

    database: DatabaseTarget
    local_path: Path
    upload_dir: Path | None
    audit_dir: Path | None
    retention: RetentionSettings
    chain_length: int
    chain_percent: int
    rollback_days: int
    pg_bin_dir: Path | None
    dump_timeout: int
    lock_timeout: int
    jobs: int | None
    log_format: LogFormat
    worker: WorkerSettings
    schedules: ScheduleSettings
    watch: WatchSettings
    targets: TargetSettings
    pitr: PitrSettings
    unbuilt: tuple[str, ...] = ()


class _Reader:
    """Reads one setting after another, and goes on with the default where a value cannot be used.

    Arguments:
        environ: the variables.
        read_text: reads the file of a ``*_FILE`` variable.
    """

    def __init__(self, environ: Mapping[str, str], read_text: Callable[[str], str]) -> None:
        self._environ = environ
        self._read_text = read_text
        self.faults: list[str] = []

    def __call__(self, setting: Setting[T]) -> T:
        """Read a setting, and note what is wrong with it."""
        name, text = self._find(setting)
        try:
            if "\0" in text:
                raise UnusableError("has a NUL character in it")
            return setting.parse(text)
        except UnusableError as error:
            self.faults.append(f"{name}: {'the value' if setting.secret else repr(text)} {error}")
            return setting.parse(setting.default)

    def _find(self, setting: Setting[object]) -> tuple[str, str]:
        """Say which variable gives the setting, and its text."""
        text = self._environ.get(setting.name)
        file_name = f"{setting.name}_FILE"
        if setting.secret and self._environ.get(file_name):
            if text:
                self.faults.append(f"{file_name}: {setting.name} is set too; expected one of the two")
            return file_name, self._read_file(file_name)
        if text is None or (text == "" and not setting.empty_counts):
            text = setting.default
        return setting.name, text

    def _read_file(self, name: str) -> str:
        """Read the file that a variable names, less one line end. The name is not shown: it may be the secret."""
        try:
            return self._read_text(self._environ[name]).removesuffix("\n").removesuffix("\r")
        except OSError as error:
            reason = error.strerror or type(error).__name__
        except ValueError:
            reason = "it is not text"
        self.faults.append(f"{name}: the file cannot be read ({reason}); expected one that holds the secret")
        return ""


def load_settings(environ: Mapping[str, str], read_text: Callable[[str], str]) -> Settings:
    """Read and check every setting.

    Arguments:
        environ: the variables, such as `os.environ`.
        read_text: reads the file that a ``*_FILE`` variable names; its `OSError` becomes a fault.

    Raises:
        ConfigurationError: names every variable that cannot be used, and shows nothing of a secret.
    """
    read = _Reader(environ, read_text)
    database = _read_database(read)
    settings = Settings(
        database=database,
        local_path=read(variables.LOCAL_PATH),
        upload_dir=read(variables.UPLOAD_DIR),
        audit_dir=read(variables.AUDIT_DIR),
        retention=_read_retention(read),
        chain_length=read(variables.CHAIN_LENGTH),
        chain_percent=read(variables.CHAIN_PERCENT),
        rollback_days=read(variables.ROLLBACK_DAYS),
        pg_bin_dir=read(variables.PG_BIN_DIR),
        dump_timeout=read(variables.DUMP_TIMEOUT),
        lock_timeout=read(variables.LOCK_TIMEOUT),
        jobs=read(variables.JOBS),
        log_format=read(variables.LOG_FORMAT),
        worker=_read_worker(read),
        schedules=_read_schedules(read),
        watch=_read_watch(read),
        targets=_read_targets(read),
        pitr=_read_pitr(read, database),
        unbuilt=unbuilt_settings(environ),
    )
    if read.faults:
        raise ConfigurationError(
            "\n  ".join(["the environment has settings that cannot be used:", *read.faults]),
            hint="correct them where they are set; docs/settings.md says what each one takes",
        )
    return settings


def _read_database(read: _Reader) -> DatabaseTarget:
    """Read the single variables, and put the parts of the URL over them."""
    single = DatabaseTarget(
        host=read(variables.DATABASE_HOST),
        port=read(variables.DATABASE_PORT),
        name=read(variables.DATABASE_NAME),
        user=read(variables.DATABASE_USER),
        password=read(variables.DATABASE_PASSWORD),
    )
    return replace(single, **read(variables.DATABASE_URL))


def _read_retention(read: _Reader) -> RetentionSettings:
    """Read numbers and rules. A type's rule that keeps nothing is a fault; of the general one, the prune tells."""
    settings = RetentionSettings(
        days=read(variables.RETENTION_DAYS),
        count=read(variables.RETENTION_COUNT),
        hourly=read(variables.KEEP_HOURLY),
        daily=read(variables.KEEP_DAILY),
        weekly=read(variables.KEEP_WEEKLY),
        monthly=read(variables.KEEP_MONTHLY),
        yearly=read(variables.KEEP_YEARLY),
        rules=read(variables.RETENTION_RULES),
    )
    for kind, numbers in settings.rules.items():
        if not any(own_numbers(numbers, days=settings.days, count=settings.count).values()):
            read.faults.append(
                f"{variables.RETENTION_RULES.name}: the rule for {kind} keeps nothing: every number in it is 0; "
                "expected one that is more than 0"
            )
    return settings


def _read_worker(read: _Reader) -> WorkerSettings:
    return WorkerSettings(
        broker_url=read(variables.BROKER_URL),
        result_backend=read(variables.RESULT_BACKEND),
        allowed_paths=read(variables.ALLOWED_PATHS),
        task_timeout=read(variables.TASK_TIMEOUT),
        attempts=read(variables.TASK_ATTEMPTS),
        shutdown_grace=read(variables.SHUTDOWN_GRACE),
        flower_password=read(variables.FLOWER_PASSWORD),
    )


def _read_schedules(read: _Reader) -> ScheduleSettings:
    return ScheduleSettings(
        full=read(variables.SCHEDULE_FULL),
        database=read(variables.SCHEDULE_DATABASE),
        verify=read(variables.SCHEDULE_VERIFY),
        prune=read(variables.SCHEDULE_PRUNE),
        drill=read(variables.SCHEDULE_DRILL),
        base=read(variables.SCHEDULE_BASE),
        time_zone=read(variables.TIME_ZONE),
    )


def _read_pitr(read: _Reader, database: DatabaseTarget) -> PitrSettings:
    """Read what point-in-time recovery needs; what the URL does not say is as for the database."""
    replication = replace(database, **read(variables.REPLICATION_URL))
    return PitrSettings(wal=read(variables.WAL), replication=replication, days=read(variables.PITR_DAYS))


def _read_watch(read: _Reader) -> WatchSettings:
    return WatchSettings(
        quiet=read(variables.WATCH_QUIET),
        latest=read(variables.WATCH_LATEST),
        scan=read(variables.WATCH_SCAN),
        mode=read(variables.WATCH_MODE),
    )


def _read_targets(read: _Reader) -> TargetSettings:
    return TargetSettings(
        rpo_database=read(variables.RPO_DATABASE),
        rpo_media=read(variables.RPO_MEDIA),
        rpo_audit_logs=read(variables.RPO_AUDIT_LOGS),
        verified_age=read(variables.VERIFIED_AGE),
        drill_age=read(variables.DRILL_AGE),
        metrics_file=read(variables.METRICS_FILE),
        metrics_port=read(variables.METRICS_PORT),
        notify_urls=read(variables.NOTIFY_URLS),
        ping_url=read(variables.PING_URL),
    )


def unknown_settings(environ: Mapping[str, str]) -> list[str]:
    """Find variables that look like a mistyped setting.

    They are for a warning, not a fault: another program, or a later release, may have a use for such a name.

    Returns:
        a sentence for each.
    """
    from difflib import get_close_matches

    known = {setting.name for setting in SETTINGS} | {f"{setting.name}_FILE" for setting in SETTINGS if setting.secret}
    strangers = sorted(name for name in environ.keys() - known if name.startswith(_FAMILIES))
    return [
        f"{name} is not a setting; did you mean {match}?"
        for name in strangers
        for match in get_close_matches(name, known, n=1, cutoff=_TYPO_LIKENESS)
    ]


def unbuilt_settings(environ: Mapping[str, str]) -> tuple[str, ...]:
    """What the environment asks for and this release does not have: encryption, or a copy on S3.

    Every command but a backup can do without it. A backup would be taken for what it is not: see `refuse_unbuilt`.

    Returns:
        for each a few words with the variables' names, never a value.
    """
    given = {name: text.strip().lower() for name, text in environ.items() if text.strip()}
    s3 = sorted(name for name in given if name.startswith(_S3))
    if given.get(_DESTINATION, _LOCAL) != _LOCAL:
        s3.insert(0, _DESTINATION)
    encryption = sorted(name for name in given if name.startswith(_ENCRYPTION))
    if any(given.get(switch) in _NO for switch in _SWITCHES):
        encryption = []
    wanted = {"a destination elsewhere, such as S3": s3, "encryption": encryption}
    return tuple(f"{what} ({', '.join(names)})" for what, names in wanted.items() if names)


def refuse_unbuilt(wanted: Iterable[str]) -> None:
    """Refuse what this release does not have.

    Arguments:
        wanted: what was asked for, a few words each.

    Raises:
        UnsupportedError: there is something.
    """
    if unbuilt := list(wanted):
        raise UnsupportedError(
            f"this release does not have {' and '.join(unbuilt)}",
            hint="Leave it out; copy archives and their .sha256 files away with a tool of your own until then.",
        )
