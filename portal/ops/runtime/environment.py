"""The settings of this process, from its environment and the settings file.

cron, systemd and shells have different environments; a common file gives them the same settings.
"""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING, Final

from portal.ops.errors import ConfigurationError
from portal.ops.runtime.progress import read_text
from portal.ops.settings.env_file import EnvFile, EnvFileError
from portal.ops.settings.load import ENV_FILE, SETTINGS, Settings, load_settings
from portal.ops.units import system_reason

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_ENV_FILE: Final = "/etc/kekkai-backup/backup.env"
_NO_FILE: Final = EnvFile(path="")
SECRET_NAME: Final = re.compile(r"(PASSWORD|SECRET|TOKEN|KEY)\w*(?<!_FILE)$")
"""Matches names of variables whose values are secrets, also of other programs."""

_MOST_BYTES: Final = 1_000_000


def current_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """The settings in the environment and, for unset ones, in the file.

    Arguments:
        environ: variables to use instead of the process's own; then the default file is not read.

    Raises:
        ConfigurationError: a setting or the file cannot be used.
    """
    variables = os.environ if environ is None else environ
    return load_settings(variables, read_text, read_env_file(environ))


def merged_environment() -> dict[str, str]:
    """The variables of the file and the environment, for examining their names."""
    return {**read_env_file().values, **os.environ}


def read_env_file(environ: Mapping[str, str] | None = None) -> EnvFile:
    """Read the file that ``BACKUP_ENV_FILE`` names, or the default file if it exists; ``/dev/null`` means none.

    Arguments:
        environ: as above.

    Raises:
        ConfigurationError: it cannot be read, others can change it, or others can read secrets in it.
    """
    variables = os.environ if environ is None else environ
    named = variables.get(ENV_FILE, "")
    path = named or (DEFAULT_ENV_FILE if environ is None else os.devnull)
    if path == os.devnull:
        return _NO_FILE
    if not os.path.isabs(path):
        raise ConfigurationError(f"{ENV_FILE}: {path!r} is not an absolute path", hint="Write the whole path.")
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            content = file.read(_MOST_BYTES + 1) if stat.S_ISREG(status.st_mode) else b""
    except FileNotFoundError as error:
        if named:
            raise _unusable(
                path, f"cannot be read: {system_reason(error)}", f"Create it, or unset {ENV_FILE}."
            ) from None
        return _NO_FILE
    except OSError as error:
        hint = f"Run this as a user who may read it, or set {ENV_FILE}={os.devnull} to do without it."
        raise _unusable(path, f"cannot be read: {system_reason(error)}", hint) from None
    _refuse_foreign_hands(path, status)
    if len(content) > _MOST_BYTES:
        raise _unusable(path, f"has more than {_MOST_BYTES:,} bytes", f"Name the right file in {ENV_FILE}.")
    from portal.ops.settings.env_format import parse_env_file

    try:
        found = parse_env_file(content.decode("utf-8"), path, variables)
    except UnicodeDecodeError:
        raise _unusable(path, "is not text in UTF-8", "Save it as UTF-8.") from None
    except EnvFileError as error:
        raise _unusable(path, f"cannot be used: {error}", "Correct that line.") from None
    _refuse_foreign_eyes(found, status)
    return found


def _open_at_once(path: str, flags: int) -> int:
    """Open without blocking, in case it is a FIFO."""
    return os.open(path, flags | os.O_NONBLOCK)


def _refuse_foreign_hands(path: str, status: os.stat_result) -> None:
    """Only root and this process's user may be able to write the file, since it decides where backups go."""
    if not stat.S_ISREG(status.st_mode):
        raise _unusable(path, "is not a regular file", f"Name a file, or set {ENV_FILE}={os.devnull} to do without it.")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise _unusable(path, "can be changed by other users", f"Run: chmod go-w {path}")
    if status.st_uid not in (0, os.geteuid()):
        hint = f"Make root or the user of this command its owner: chown root {path}"
        raise _unusable(path, f"belongs to user {status.st_uid}, who could change it", hint)


def _refuse_foreign_eyes(found: EnvFile, status: os.stat_result) -> None:
    secret_settings = {setting.name for setting in SETTINGS if setting.secret}
    secrets = [
        name for name, text in found.values.items() if text and (name in secret_settings or SECRET_NAME.search(name))
    ]
    if secrets and status.st_mode & stat.S_IROTH:
        said = f"contains a secret ({', '.join(secrets)}), and every user can read it"
        raise _unusable(found.path, said, f"Run: chmod o-r {found.path}")


def _unusable(path: str, said: str, hint: str) -> ConfigurationError:
    return ConfigurationError(f"the file of settings {path} {said}", hint=hint)
