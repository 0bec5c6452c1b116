"""The database to back up: where it is, and as whom to open it.

A URL is taken apart here, with care for the password in it: no message shows a piece of the URL, since an unencoded
character makes a part of the password look like a host, a port or a name.
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
    """A string that shows itself only when asked to.

    Printing, formatting and logging give eight asterisks; JSON, pickle and deep copies refuse it.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The string itself, for the program that has to be given it."""
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
        password: without one, libpq looks into ``~/.pgpass``.
        options: further connection parameters of libpq, such as ``sslmode``.
        lock_seconds: how long to wait for a lock that another session has.
    """

    host: str
    port: int
    name: str
    user: str
    password: Secret | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    lock_seconds: float = 60.0


class NamesDatabase:
    """A configuration that names a database field by field."""

    db_host: str
    db_port: int
    db_name: str
    db_user: str
    db_password: Secret | str | None
    db_options: Mapping[str, str]
    lock_timeout: float

    @property
    def database(self) -> DatabaseTarget:
        """The database, and how to open it."""
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
    """A URL cannot be used. The message finishes a sentence and holds nothing of the URL."""


class UrlParts(TypedDict, total=False):
    """The parts of a database URL; parts it omits come from the single variables."""

    host: str
    port: int
    name: str
    user: str
    password: Secret
    options: Mapping[str, str]


def parse_database_url(text: str) -> UrlParts:
    """Take a URL apart as DefectDojo and libpq do.

    libpq's names for the parts may stand in the query too, as in ``postgres:///name?host=/run/postgresql``. Options
    that are not libpq's, such as Django's ``conn_max_age``, are left out.

    Raises:
        DatabaseUrlError: it is no URL of a PostgreSQL database, or names none.
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
    """Split a URL, and refuse one whose password would spill into its other parts."""
    try:
        url = urlsplit(text)
        _ = url.port  # a ValueError here would quote what may be a piece of the password
    except ValueError:
        raise DatabaseUrlError(f"cannot be understood; {_SHAPE}") from None
    if url.scheme not in _SCHEMES:
        raise DatabaseUrlError(f"has a scheme that is none of {', '.join(_SCHEMES)}; {_SHAPE}")
    if "#" in text or "%00" in text or "@" in url.path + url.query:
        raise DatabaseUrlError(f"has a character in it that must be percent-encoded; {_SHAPE}")
    return url


def _host_and_name(url: SplitResult) -> tuple[str, str]:
    """Tell host and database; the host may be a socket's directory: ``//%2Frun%2Fpg/name`` or ``////run/pg/name``."""
    place = url.netloc.rpartition("@")[2]
    directory, _, name = url.path.removeprefix("/").rpartition("/")
    if directory and (place or not directory.startswith("/")):
        raise DatabaseUrlError(f"has a slash too many; {_SHAPE}")
    if place[:3].lower() == "%2f":  # url.hostname is in lower case, which a path does not survive
        return unquote(place.partition(":")[0]), unquote(name)
    return unquote(url.hostname or directory), unquote(name)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
        raise DatabaseUrlError(f"has a port that is not from 1 to 65535; {_SHAPE}")
    return int(text)
