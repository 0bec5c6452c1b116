"""The database: its address, the user, and how its URL is parsed.

A URL is parsed here without quoting parts of it in messages: an unencoded character can make a part of the password
look like a host, a port or a name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn, TypedDict
from urllib.parse import parse_qsl, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping
    from urllib.parse import SplitResult

_SCHEMES: Final = ("postgres", "postgresql", "postgis", "psql", "pgsql")
_SHAPE: Final = "expected postgres://user:password@host:port/name, user and password percent-encoded"
_OPTIONS: Final = frozenset(
    [
        "application_name",
        "channel_binding",
        "client_encoding",
        "connect_timeout",
        "gssencmode",
        "gsslib",
        "hostaddr",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "krbsrvname",
        "load_balance_hosts",
        "options",
        "passfile",
        "require_auth",
        "requirepeer",
        "ssl_max_protocol_version",
        "ssl_min_protocol_version",
        "sslcert",
        "sslcompression",
        "sslcrl",
        "sslcrldir",
        "sslkey",
        "sslmode",
        "sslnegotiation",
        "sslrootcert",
        "sslsni",
        "target_session_attrs",
        "tcp_user_timeout",
    ]
)


class Secret:
    """A string that is shown only by `reveal`.

    Printed, formatted or logged, it is eight asterisks; JSON, pickle and deep copies refuse it.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The string itself, for a program that needs it."""
        return self._value

    def __repr__(self) -> str:
        return "********"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is neither pickled nor copied")


@dataclass(frozen=True, kw_only=True)
class DatabaseTarget:
    """The address of the database, and the user to open it as.

    Arguments:
        host: a name, an address, or the directory of a socket if it starts with ``/``.
        password: if absent, libpq looks in ``~/.pgpass``.
        options: further libpq connection parameters, such as ``sslmode``.
        lock_seconds: seconds to wait for another session's lock.
    """

    host: str
    port: int
    name: str
    user: str
    password: Secret | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    lock_seconds: float = 60.0


class NamesDatabase:
    """A configuration with the database in separate fields."""

    db_host: str
    db_port: int
    db_name: str
    db_user: str
    db_password: Secret | str | None
    db_options: Mapping[str, str]
    lock_timeout: float

    @property
    def database(self) -> DatabaseTarget:
        """The database described by such a configuration."""
        password = self.db_password
        return DatabaseTarget(
            host=self.db_host,
            port=self.db_port,
            name=self.db_name,
            user=self.db_user,
            password=Secret(password) if isinstance(password, str) else password,
            options=self.db_options,
            lock_seconds=self.lock_timeout,
        )


class DatabaseUrlError(ValueError):
    """Raised for an unusable URL. The message completes a sentence and contains nothing of the URL."""


class UrlParts(TypedDict, total=False):
    """The parts of a database URL; parts it omits come from the single variables."""

    host: str
    port: int
    name: str
    user: str
    password: Secret
    options: Mapping[str, str]


def parse_database_url(text: str) -> UrlParts:
    """Parse a URL as DefectDojo and libpq do.

    The query may have libpq's parameters too, as in ``postgres:///name?host=/run/postgresql``. Unknown ones, such as
    Django's ``conn_max_age``, are ignored.

    Raises:
        DatabaseUrlError: it is no URL of a PostgreSQL database, or names no database.
    """
    url = _split_url(text)
    query = dict(parse_qsl(url.query))
    host, name = _host_and_name(url)
    name = query.get("dbname") or name
    if not name:
        raise DatabaseUrlError(f"names no database; {_SHAPE}")
    parts = UrlParts(name=name, options={key: query[key] for key in sorted(_OPTIONS & query.keys())})
    if host := query.get("host") or host:
        parts["host"] = host
    if (port := query.get("port", url.port)) is not None:
        parts["port"] = _port(str(port))
    if user := query.get("user") or unquote(url.username or ""):
        parts["user"] = user
    if password := query.get("password") or unquote(url.password or ""):
        parts["password"] = Secret(password)
    return parts


def _split_url(text: str) -> SplitResult:
    """Split a URL; refuse one in which the password might extend into other parts."""
    try:
        url = urlsplit(text)
        _ = url.port  # a ValueError from here would quote what may be a part of the password
    except ValueError:
        raise DatabaseUrlError(f"cannot be understood; {_SHAPE}") from None
    if url.scheme not in _SCHEMES:
        raise DatabaseUrlError(f"has a scheme that is none of {', '.join(_SCHEMES)}; {_SHAPE}")
    if "#" in text or "%00" in text or "@" in url.path + url.query:
        raise DatabaseUrlError(f"has a character in it that must be percent-encoded; {_SHAPE}")
    return url


def _host_and_name(url: SplitResult) -> tuple[str, str]:
    """Split host and database; the host may be a socket's directory: ``//%2Frun%2Fpg/name`` or ``////run/pg/name``."""
    place = url.netloc.rpartition("@")[2]
    directory, _, name = url.path.removeprefix("/").rpartition("/")
    if directory and (place or not directory.startswith("/")):
        raise DatabaseUrlError(f"has a slash too many; {_SHAPE}")
    if place[:3].lower() == "%2f":  # url.hostname is lower case, which is wrong for a path
        return unquote(place.partition(":")[0]), unquote(name)
    return unquote(url.hostname or directory), unquote(name)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
        raise DatabaseUrlError(f"has a port that is not from 1 to 65535; {_SHAPE}")
    return int(text)
