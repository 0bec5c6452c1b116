"""Loads the settings from the environment and a file, checks them, and converts them to values.

Only the given mappings are read; the file of a ``*_FILE`` variable is read by a function of the caller. An empty value
counts as not set, with one exception: an empty ``PORTAL_UPLOAD_DIR`` excludes the media.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from portal.ops.errors import SettingsError, UnsupportedError
from portal.ops.model import LogFormat
from portal.ops.settings.database_url import DatabaseTarget, Secret
from portal.ops.settings.destination import DestinationError
from portal.ops.settings.entry import GROUP, SETTING, WatchMode
from portal.ops.settings.env_file import EnvFile
from portal.ops.settings.parsers import OFF, Setting, UnusableError, own_numbers
from portal.ops.settings.schedule_table import ScheduleSettings
from portal.ops.settings.table import (
    SETTINGS,
    DatabaseSettings,
    OffsiteSettings,
    RetentionSettings,
    Settings,
    TargetSettings,
    WatchSettings,
    WorkerSettings,
)
from portal.ops.units import system_reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

__all__ = [
    "ENV_FILE",
    "SETTINGS",
    "DatabaseTarget",
    "EffectiveSetting",
    "EnvFile",
    "LogFormat",
    "OffsiteSettings",
    "RetentionSettings",
    "ScheduleSettings",
    "Secret",
    "Setting",
    "Settings",
    "TargetSettings",
    "WatchMode",
    "WatchSettings",
    "WorkerSettings",
    "effective_settings",
    "foreign_names",
    "load_settings",
    "refuse_unbuilt",
    "unbuilt_settings",
    "unknown_settings",
]

T = TypeVar("T")

ENV_FILE: Final = "BACKUP_ENV_FILE"
"""The variable with the path of the settings file; no setting itself, since it cannot be in that file."""

_FAMILIES: Final = ("BACKUP_", "DD_DATABASE_", "PORTAL_", "CELERY_")
_OWN_FAMILIES: Final = ("BACKUP_", "DD_DATABASE_", "PORTAL_UPLOAD", "PORTAL_AUDIT")
_STORES: Final = ("AWS_", "AZURE_", "GOOGLE_")
_TYPO_LIKENESS: Final = 0.9
_LIKENESS: Final = 0.75

_S3: Final = "BACKUP_S3_"
_ENCRYPTION: Final = "BACKUP_ENCRYPTION"
_NO: Final = frozenset({"0", "false", "no", OFF})
_NO_FILE: Final = EnvFile(path="")
_URL_PARTS: Final = {
    "host": "DD_DATABASE_HOST",
    "port": "DD_DATABASE_PORT",
    "name": "DD_DATABASE_NAME",
    "user": "DD_DATABASE_USER",
    "password": "DD_DATABASE_PASSWORD",
}


@dataclass(frozen=True, kw_only=True)
class EffectiveSetting:
    """The present value of a setting, for people.

    Arguments:
        setting: the setting.
        shown: the text; asterisks for a secret, empty if it is not set.
        origin: ``default``, ``environment``, or the file and line.
        fault: why the value is invalid, in which case the default is used.
    """

    setting: Setting[object]
    shown: str
    origin: str
    fault: str = ""


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A setting's variable, its text, and where it was found, in words."""

    name: str
    text: str
    origin: str


class _Reader:
    """Reads settings one by one, with the default for invalid ones.

    Arguments:
        environ: the variables.
        read_text: reads the file of a ``*_FILE`` variable.
        env_file: settings with lower priority than the environment.
    """

    def __init__(self, environ: Mapping[str, str], read_text: Callable[[str], str], env_file: EnvFile) -> None:
        self._environ = environ
        self._read_text = read_text
        self._env_file = env_file
        self.faults: list[str] = []

    def __call__(self, setting: Setting[T]) -> T:
        """Read a setting, and record what is wrong with it."""
        found = self.find(setting)
        try:
            if "\0" in found.text:
                raise UnusableError("has a NUL character in it")
            return setting.parse(found.text)
        except UnusableError as error:
            value = "the value" if setting.secret else repr(found.text)
            self.faults.append(f"{self._at(found.name, found.origin)}: {value} {error}")
            return setting.parse(setting.default)

    def find(self, setting: Setting[object]) -> _Found:
        """Find a setting's variable, its text and its origin.

        The environment has priority as a whole: a secret given there as a file hides one given directly in the settings
        file.
        """
        for origin, variables in (("environment", self._environ), (self._env_file.path, self._env_file.values)):
            if found := self._find_in(variables, origin, setting):
                return found
        return _Found(name=setting.name, text=setting.default, origin="default")

    def is_in_environment(self, name: str) -> bool:
        """True if the environment has a setting, directly or as a file."""
        return bool(self._environ.get(name) or self._environ.get(f"{name}_FILE"))

    def _find_in(self, variables: Mapping[str, str], origin: str, setting: Setting[object]) -> _Found | None:
        text = variables.get(setting.name)
        file_name = f"{setting.name}_FILE"
        if setting.secret and variables.get(file_name):
            if text:
                at = self._at(file_name, origin)
                self.faults.append(f"{at}: {setting.name} is set too; expected one of the two")
            return _Found(name=file_name, text=self._read_file(variables[file_name], file_name, origin), origin=origin)
        if text or (text is not None and setting.empty_counts):
            return _Found(name=setting.name, text=text, origin=origin)
        return None

    def _read_file(self, path: str, name: str, origin: str) -> str:
        """Read a variable's file without its last line end. The path is not shown: it may be the secret."""
        try:
            return self._read_text(path).removesuffix("\n").removesuffix("\r")
        except OSError as error:
            reason = system_reason(error) if error.strerror else type(error).__name__
        except ValueError:
            reason = "it is not text"
        self.faults.append(
            f"{self._at(name, origin)}: the file cannot be read ({reason}); expected one that holds the secret"
        )
        return ""

    def _at(self, name: str, origin: str) -> str:
        return f"{name} ({self.place(name, origin)})" if origin == self._env_file.path else name

    def place(self, name: str, origin: str) -> str:
        """The place of a variable, in words."""
        return f"{origin}, line {self._env_file.lines[name]}" if origin == self._env_file.path else origin


def load_settings(
    environ: Mapping[str, str], read_text: Callable[[str], str], env_file: EnvFile = _NO_FILE
) -> Settings:
    """Read and check every setting.

    Arguments:
        environ: the variables, such as `os.environ`.
        read_text: reads the file named by a ``*_FILE`` variable; its `OSError` becomes a fault.
        env_file: settings from a file, with lower priority than the environment.

    Raises:
        SettingsError: it names every invalid variable, and shows nothing of a secret.
    """
    read = _Reader(environ, read_text, env_file)
    settings: Settings = _fill(Settings, read)
    _check_rules(settings.retention, read)
    _check_offsite(settings.offsite, read)
    if read.faults:
        raise SettingsError(read.faults, hint="correct them where they are set; docs/settings.md describes the values")
    both = {**env_file.values, **environ}
    of_stores = {name: text for name, text in both.items() if name.startswith(_STORES)}
    schedules = settings.schedules if settings.pitr.wal else replace(settings.schedules, base=None)
    if not settings.offsite.destinations():  # off-site schedules need a destination
        schedules = replace(schedules, offsite=None, offsite_verify=None, offsite_prune=None)
    return replace(settings, schedules=schedules, unbuilt=unbuilt_settings(both), store_variables=of_stores)


def effective_settings(
    environ: Mapping[str, str], read_text: Callable[[str], str], env_file: EnvFile = _NO_FILE
) -> Iterator[EffectiveSetting]:
    """The present value and origin of every setting, with secrets masked. Arguments as for `load_settings`."""
    for setting in SETTINGS:
        read = _Reader(environ, read_text, env_file)
        found = read.find(setting)
        read.faults.clear()
        read(setting)
        origin = read.place(found.name, found.origin)
        if found.name != setting.name:
            origin += f" ({found.name})"
        shown = str(Secret("")) if setting.secret and found.text else found.text
        yield EffectiveSetting(setting=setting, shown=shown, origin=origin, fault="; ".join(read.faults))


def _fill(kind: type[Any], read: _Reader) -> Any:
    """Read all fields of a group."""
    values: dict[str, object] = {}
    for each in fields(kind):
        if SETTING in each.metadata:
            values[each.name] = read(each.metadata[SETTING])
        elif GROUP in each.metadata:
            values[each.name] = _fill(each.metadata[GROUP], read)
    return _target(values, read) if kind is DatabaseSettings else kind(**values)


def _target(values: dict[str, Any], read: _Reader) -> DatabaseTarget:
    """Build the database from its settings; a URL overrides single variables, except those with higher priority."""
    url = next(setting for setting in SETTINGS if setting.name == "DD_DATABASE_URL")
    if not read.is_in_environment(url.name):
        values["url"] = {
            part: value for part, value in values["url"].items() if not read.is_in_environment(_URL_PARTS.get(part, ""))
        }
    return DatabaseSettings(**values).target()


def _check_rules(retention: RetentionSettings, read: _Reader) -> None:
    """Report rules for single types that keep nothing; the prune reports the general one."""
    for kind, numbers in retention.rules.items():
        if not any(own_numbers(numbers, days=retention.days, count=retention.count).values()):
            read.faults.append(
                f"BACKUP_RETENTION_RULES: the rule for {kind} keeps nothing: every number in it is 0; "
                "expected one that is more than 0"
            )


def _check_offsite(offsite: OffsiteSettings, read: _Reader) -> None:
    """Report contradictions, so that nobody relies on a copy or on encryption that does not exist."""
    try:
        offsite.destinations()
    except DestinationError as error:
        read.faults.append(f"BACKUP_DESTINATION, BACKUP_S3_…: the environment {error}")
    if offsite.encryption_enabled and not offsite.recipients:
        read.faults.append("BACKUP_ENCRYPTION_ENABLED: it is on, but BACKUP_ENCRYPTION_RECIPIENTS names no public key")
    if offsite.encryption_enabled is False and offsite.recipients:
        read.faults.append("BACKUP_ENCRYPTION_ENABLED: it is off, but BACKUP_ENCRYPTION_RECIPIENTS names public keys")
    if not offsite.encryption and offsite.recipients:
        read.faults.append("BACKUP_OFFSITE_ENCRYPTION: it is off, but BACKUP_ENCRYPTION_RECIPIENTS names public keys")


def unknown_settings(environ: Mapping[str, str]) -> list[str]:
    """Find variables that may be misspelled settings.

    They cause a warning, not an error: another program or a later release may use such names.

    Returns:
        one sentence for each.
    """
    from difflib import get_close_matches

    known = {setting.name for setting in SETTINGS} | {f"{setting.name}_FILE" for setting in SETTINGS if setting.secret}
    strangers = sorted(name for name in environ.keys() - known if name.startswith(_FAMILIES))
    return [
        f"{name} is not a setting; did you mean {match}?"
        for name in strangers
        for match in get_close_matches(name, known, n=1, cutoff=_TYPO_LIKENESS)
    ]


def foreign_names(environ: Mapping[str, str], env_file: EnvFile) -> list[str]:
    """Find names that are no settings: with our prefixes in the environment, and any in the file.

    Returns:
        one sentence for each, with the most similar setting if there is one.
    """
    from difflib import get_close_matches

    known = {setting.name for setting in SETTINGS} | {f"{setting.name}_FILE" for setting in SETTINGS if setting.secret}
    ours = {ENV_FILE} | {name for names in _unbuilt_names(environ).values() for name in names}
    places = {name: "environment" for name in environ if name.startswith(_OWN_FAMILIES)}
    places |= {name: f"{env_file.path}, line {number}" for name, number in env_file.lines.items()}
    told = []
    for name in sorted(places.keys() - known - ours):
        if name.startswith(_STORES):
            continue
        near = get_close_matches(name, known, n=1, cutoff=_LIKENESS)
        told.append(f"{name} ({places[name]}) is not a setting" + (f"; did you mean {near[0]}?" if near else ""))
    return told


def unbuilt_settings(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Settings in the environment that this release does not support, such as encryption of archives.

    Every command but a backup works nevertheless. A backup would not be what was asked for: see `refuse_unbuilt`.

    Returns:
        a few words for each, with the variables' names and never a value.
    """
    return tuple(f"{what} ({', '.join(names)})" for what, names in _unbuilt_names(environ).items() if names)


def _unbuilt_names(environ: Mapping[str, str]) -> dict[str, list[str]]:
    known = {setting.name for setting in SETTINGS}
    given = {name: text.strip().lower() for name, text in environ.items() if text.strip() and name not in known}
    s3 = sorted(name for name in given if name.startswith(_S3))
    encryption = sorted(name for name in given if name.startswith(_ENCRYPTION))
    switch = environ.get(f"{_ENCRYPTION}_ENABLED", "").strip().lower()
    if given.get(_ENCRYPTION) in _NO or switch in _NO:
        encryption = []
    return {"S3": s3, "encryption": encryption}


def refuse_unbuilt(wanted: Iterable[str]) -> None:
    """Raise an error if unsupported features are requested.

    Arguments:
        wanted: the requested features, a few words each.

    Raises:
        UnsupportedError: there are any.
    """
    if unbuilt := list(wanted):
        raise UnsupportedError(
            f"this release does not have {' and '.join(unbuilt)}",
            hint="Leave it out. Archives are always compressed; copies off-site are encrypted (docs/settings.md).",
        )
