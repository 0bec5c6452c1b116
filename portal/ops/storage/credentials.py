"""Finds S3 credentials where its own tools do: variables, files named by variables, the shared file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from portal.ops.errors import ConfigurationError
from portal.ops.units import system_reason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from portal.ops.settings.destination import Destination

_SHARED: Final = "~/.aws/credentials"


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """A pair of keys; only the first may be shown."""

    access_key: str
    secret_key: str = field(repr=False)
    session_token: str = field(default="", repr=False)


def find_credentials(environ: Mapping[str, str]) -> Credentials | None:
    """Find the credentials; None if there are none, as on a machine that has a role of its cloud.

    Arguments:
        environ: ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY`` and ``AWS_SESSION_TOKEN``, each also with ``_FILE``
            behind its name; or ``AWS_SHARED_CREDENTIALS_FILE`` and ``AWS_PROFILE``.

    Raises:
        ConfigurationError: a named file cannot be read, or one of the two keys is missing.
    """
    access, secret = _value(environ, "AWS_ACCESS_KEY_ID"), _value(environ, "AWS_SECRET_ACCESS_KEY")
    if access and secret:
        return Credentials(access_key=access, secret_key=secret, session_token=_value(environ, "AWS_SESSION_TOKEN"))
    if access or secret:
        raise ConfigurationError(
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY go together, and one of them is missing",
            hint="Set both, or name a file with them in AWS_SHARED_CREDENTIALS_FILE.",
        )
    return _from_shared_file(environ)


def _from_shared_file(environ: Mapping[str, str]) -> Credentials | None:
    named = environ.get("AWS_SHARED_CREDENTIALS_FILE")
    path = Path(named or _SHARED.replace("~", environ.get("HOME", "/nonexistent"), 1))
    profile = environ.get("AWS_PROFILE") or "default"
    import configparser  # imported late: the file is read only if there are no variables

    parser = configparser.RawConfigParser()
    try:
        with path.open(encoding="utf-8") as file:
            parser.read_file(file)
        return Credentials(
            access_key=parser.get(profile, "aws_access_key_id"),
            secret_key=parser.get(profile, "aws_secret_access_key"),
            session_token=parser.get(profile, "aws_session_token", fallback=""),
        )
    except (OSError, UnicodeDecodeError) as error:
        if not named:
            return None
        raise _unreadable("AWS_SHARED_CREDENTIALS_FILE", error) from None
    except configparser.Error:
        if not named:
            return None
        raise ConfigurationError(
            f"AWS_SHARED_CREDENTIALS_FILE names a file without keys for the profile {profile}",
            hint="Set AWS_PROFILE to a profile that is in it.",
        ) from None


def _value(environ: Mapping[str, str], name: str) -> str:
    if text := environ.get(name, ""):
        return text
    if not (path := environ.get(f"{name}_FILE", "")):
        return ""
    try:
        return Path(path).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(f"{name}_FILE", error) from None


def _unreadable(name: str, error: OSError | UnicodeDecodeError) -> ConfigurationError:
    reason = system_reason(OSError(error.errno, error.strerror)) if isinstance(error, OSError) else "it is not text"
    return ConfigurationError(
        f"the file that {name} names cannot be read: {reason}", hint="Make it readable for the user of the backups."
    )


_DEFAULT_REGION: Final = "us-east-1"


def region_of(destination: Destination, environ: Mapping[str, str]) -> str:
    """The region for which requests are signed."""
    given = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")
    return destination.options.get("region") or given or _DEFAULT_REGION
