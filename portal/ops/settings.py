"""The settings: what the environment says, checked once and turned into values.

Nothing is read here but the mapping that is passed in; the file of a ``*_FILE`` variable is read by the caller's
function. A value that is empty counts as not set, but for one: an empty ``PORTAL_UPLOAD_DIR`` leaves the media out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from portal.ops.errors import ConfigurationError
from portal.ops.target import DatabaseTarget, DatabaseUrlError, Secret, UrlParts, parse_database_url

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "SETTINGS",
    "DatabaseTarget",
    "LogFormat",
    "Secret",
    "Setting",
    "Settings",
    "load_settings",
    "unknown_settings",
]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_MOST: Final = 999_999_999
_HUNDRED_YEARS: Final = 36_500

_FAMILIES: Final = ("BACKUP_", "DD_DATABASE_", "PORTAL_")
_TYPO_LIKENESS: Final = 0.9


class LogFormat(StrEnum):
    """How log lines look."""

    AUTO = "auto"
    JSON = "json"
    CONSOLE = "console"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every setting, valid.

    Arguments:
        local_path: the repository.
        upload_dir: the media; ``None`` leaves them out.
        audit_dir: the directory of the audit log, or the log itself; ``None`` leaves it out.
        retention_days: days that an archive is kept.
        retention_count: archives that are kept whatever their age.
        rollback_days: days that what takes a restore back is kept.
        pg_bin_dir: where the PostgreSQL client programs are; ``None`` chooses by the server's version.
        dump_timeout: seconds that pg_dump may take.
        lock_timeout: seconds to wait for a lock.
        jobs: processes and threads; ``None`` is one for each core that may be used.
    """

    database: DatabaseTarget
    local_path: Path
    upload_dir: Path | None
    audit_dir: Path | None
    retention_days: int
    retention_count: int
    rollback_days: int
    pg_bin_dir: Path | None
    dump_timeout: int
    lock_timeout: int
    jobs: int | None
    log_format: LogFormat


class _UnusableError(ValueError):
    """A value cannot be used. The message goes on after "the value" and holds nothing of a secret one."""


def _text(text: str) -> str:
    return text


def _secret(text: str) -> Secret | None:
    return Secret(text) if text else None


def _whole_number(low: int, high: int = _MOST) -> Callable[[str], int]:
    """Make a parser of whole numbers from `low` to `high`."""

    def parse(text: str) -> int:
        digits = text.strip()
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 9 and low <= int(digits) <= high):
            limits = f"from {low} to {high}" if high < _MOST else f"of {low} or more"
            raise _UnusableError(f"is not a whole number {limits}")
        return int(digits)

    return parse


def _jobs(text: str) -> int | None:
    return _whole_number(1, 1024)(text) if text else None


def _directory(text: str) -> Path:
    """Take an absolute path: a relative one would be another place for cron than for a person."""
    if not text.startswith("/"):
        raise _UnusableError("is not an absolute path")
    return Path(text)


def _optional_directory(text: str) -> Path | None:
    return _directory(text) if text else None


def _log_format(text: str) -> LogFormat:
    try:
        return LogFormat(text.strip().lower())
    except ValueError:
        raise _UnusableError(f"is none of {', '.join(LogFormat)}") from None


def _database_url(text: str) -> UrlParts:
    try:
        return parse_database_url(text) if text else {}
    except DatabaseUrlError as error:
        raise _UnusableError(str(error)) from None


@dataclass(frozen=True, kw_only=True)
class Setting(Generic[T_co]):
    """One variable of the environment.

    Arguments:
        meaning: what the table of the documentation says.
        parse: turns the text into a value, or raises `_UnusableError`.
        default: the text that counts where none is set.
        without: what the table says where there is no default.
        secret: its value is never shown, and can be given as a file by the variable with ``_FILE`` behind its name.
        empty_counts: an empty text is a value, not a variable that is not set.
    """

    name: str
    meaning: str
    parse: Callable[[str], T_co]
    default: str = ""
    without: str = "(optional)"
    secret: bool = False
    empty_counts: bool = False


DATABASE_HOST: Final = Setting(
    name="DD_DATABASE_HOST",
    meaning="PostgreSQL host, or the directory of its socket",
    default="localhost",
    parse=_text,
)
DATABASE_PORT: Final = Setting(
    name="DD_DATABASE_PORT", meaning="PostgreSQL port", default="5432", parse=_whole_number(1, 65535)
)
DATABASE_NAME: Final = Setting(name="DD_DATABASE_NAME", meaning="Database name", default="defectdojo", parse=_text)
DATABASE_USER: Final = Setting(name="DD_DATABASE_USER", meaning="Database user", default="defectdojo", parse=_text)
DATABASE_PASSWORD: Final = Setting(
    name="DD_DATABASE_PASSWORD", meaning="Database password", without="(required)", parse=_secret, secret=True
)
DATABASE_URL: Final = Setting(
    name="DD_DATABASE_URL",
    meaning="All of these as `postgres://user:password@host:port/name?sslmode=require`",
    parse=_database_url,
    secret=True,
)
LOCAL_PATH: Final = Setting(
    name="BACKUP_LOCAL_PATH",
    meaning="Backup storage directory",
    default="/var/lib/kekkai-portal/backups",
    parse=_directory,
)
UPLOAD_DIR: Final = Setting(
    name="PORTAL_UPLOAD_DIR",
    meaning="Media uploads directory; set to nothing, it leaves the media out",
    default="/var/lib/kekkai-portal/uploads",
    parse=_optional_directory,
    empty_counts=True,
)
AUDIT_DIR: Final = Setting(
    name="PORTAL_AUDIT_DIR", meaning="Audit logs directory, or the log file itself", parse=_optional_directory
)
RETENTION_DAYS: Final = Setting(
    name="BACKUP_RETENTION_DAYS",
    meaning="Days to keep backups",
    default="30",
    parse=_whole_number(0, _HUNDRED_YEARS),
)
RETENTION_COUNT: Final = Setting(
    name="BACKUP_RETENTION_COUNT", meaning="Minimum backups to keep", default="10", parse=_whole_number(0)
)
ROLLBACK_DAYS: Final = Setting(
    name="BACKUP_ROLLBACK_DAYS",
    meaning="Days to keep what takes a restore back, once a later one has succeeded",
    default="7",
    parse=_whole_number(0, _HUNDRED_YEARS),
)
PG_BIN_DIR: Final = Setting(
    name="BACKUP_PG_BIN_DIR",
    meaning="Where the PostgreSQL client programs are",
    without="(chosen by the server's version)",
    parse=_optional_directory,
)
DUMP_TIMEOUT: Final = Setting(
    name="BACKUP_DUMP_TIMEOUT",
    meaning="Seconds that `pg_dump` may take",
    default="21600",
    parse=_whole_number(1),
)
LOCK_TIMEOUT: Final = Setting(
    name="BACKUP_LOCK_TIMEOUT",
    meaning="Seconds to wait for a lock before giving up as busy",
    default="60",
    parse=_whole_number(0),
)
JOBS: Final = Setting(
    name="BACKUP_JOBS",
    meaning="Processes and threads that work at once",
    without="(the cores this process may use)",
    parse=_jobs,
)
LOG_FORMAT: Final = Setting(
    name="BACKUP_LOG_FORMAT",
    meaning="`json`, `console`, or `auto`: JSON unless standard error is a terminal",
    default="auto",
    parse=_log_format,
)

SETTINGS: Final[tuple[Setting[object], ...]] = (
    DATABASE_HOST,
    DATABASE_PORT,
    DATABASE_NAME,
    DATABASE_USER,
    DATABASE_PASSWORD,
    DATABASE_URL,
    LOCAL_PATH,
    UPLOAD_DIR,
    AUDIT_DIR,
    RETENTION_DAYS,
    RETENTION_COUNT,
    ROLLBACK_DAYS,
    PG_BIN_DIR,
    DUMP_TIMEOUT,
    LOCK_TIMEOUT,
    JOBS,
    LOG_FORMAT,
)


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
                raise _UnusableError("has a NUL character in it")
            return setting.parse(text)
        except _UnusableError as error:
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
    settings = Settings(
        database=_read_database(read),
        local_path=read(LOCAL_PATH),
        upload_dir=read(UPLOAD_DIR),
        audit_dir=read(AUDIT_DIR),
        retention_days=read(RETENTION_DAYS),
        retention_count=read(RETENTION_COUNT),
        rollback_days=read(ROLLBACK_DAYS),
        pg_bin_dir=read(PG_BIN_DIR),
        dump_timeout=read(DUMP_TIMEOUT),
        lock_timeout=read(LOCK_TIMEOUT),
        jobs=read(JOBS),
        log_format=read(LOG_FORMAT),
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
        host=read(DATABASE_HOST),
        port=read(DATABASE_PORT),
        name=read(DATABASE_NAME),
        user=read(DATABASE_USER),
        password=read(DATABASE_PASSWORD),
    )
    return replace(single, **read(DATABASE_URL))


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
