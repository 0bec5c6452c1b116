"""Checks the URLs of the Redis databases for tasks and results, before kombu and Celery see them.

These would quote parts of a password in their errors, and import a module that is named like an unknown scheme. Only
the permitted schemes lead to a transport that checks every message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, urlsplit

from portal.ops.errors import ConfigurationError

if TYPE_CHECKING:
    from urllib.parse import SplitResult

_TLS: Final = "rediss"
_SOCKET: Final = "redis+socket"
_SCHEMES: Final = ("redis", _TLS, _SOCKET)
_SHAPE: Final = "expected redis://user:password@host:port/number, user and password percent-encoded"
_CERTIFICATES: Final = frozenset({"required", "optional", "none", "CERT_REQUIRED", "CERT_OPTIONAL", "CERT_NONE"})


def check_redis_url(name: str, text: str) -> None:
    """Make sure that kombu and Celery understand a URL; errors contain nothing of it.

    Arguments:
        name: the setting with the URL.

    Raises:
        ConfigurationError: they do not.
    """
    try:
        _check(text)
    except _InvalidError as error:
        raise ConfigurationError(
            f"{name} {error}", hint="Correct it, or unset it: --local needs neither broker nor worker."
        ) from None


class _InvalidError(ValueError):
    """Raised for an invalid URL; the message continues the setting's name."""


def _check(text: str) -> None:
    try:
        url = urlsplit(text)
        _ = url.port  # a ValueError from here would quote what may be a part of the password
    except ValueError:
        raise _InvalidError(f"cannot be understood; {_SHAPE}") from None
    if url.scheme not in _SCHEMES:
        raise _InvalidError(f"has a scheme that is none of {', '.join(_SCHEMES)}; {_SHAPE}")
    if url.fragment or any(character.isspace() for character in text):
        raise _InvalidError(f"has a character in it that must be percent-encoded; {_SHAPE}")
    query = dict(parse_qsl(url.query))
    if url.scheme == _SOCKET:
        _check_number(query.get("virtual_host", ""))
        if not url.path.strip("/"):
            raise _InvalidError(f"names no socket; expected {_SOCKET}:///path/of/socket?virtual_host=number")
        return
    _check_number(url.path)
    _check_tls(url, query)


def _check_number(text: str) -> None:
    number = text.strip("/")
    if number and not (number.isascii() and number.isdigit()):
        raise _InvalidError(f"has no number of a database at its end; {_SHAPE}")


def _check_tls(url: SplitResult, query: dict[str, str]) -> None:
    if url.scheme == _TLS and query.get("ssl_cert_reqs") not in _CERTIFICATES:
        raise _InvalidError(f"does not say how the certificate is checked: add ?ssl_cert_reqs=required to {_TLS}://…")
    if url.scheme != _TLS and any(name.startswith("ssl_") for name in query):
        raise _InvalidError(f"has options of TLS; expected {_TLS}://…")
