"""Chooses this process's transport for Redis, before kombu makes a connection.

Written against kombu 5.7; depends on `transport.TRANSPORT_ALIASES`, and on the cache of what was looked up there.
"""

from __future__ import annotations

from typing import Any, Final

from kombu import transport

_kombu: Any = transport  # kombu has few type annotations
_SCHEMES: Final = ("redis", "rediss")


def use_transport(path: str, *, unless: str = "") -> None:
    """Use a transport for all new Redis connections of this process.

    Arguments:
        path: its module and class.
        unless: keep the present one if its path begins like this.
    """
    for scheme in _SCHEMES:
        if not (unless and _kombu.TRANSPORT_ALIASES[scheme].startswith(unless)):
            _kombu.TRANSPORT_ALIASES[scheme] = path
            _kombu._transport_cache.pop(scheme, None)  # noqa: SLF001
