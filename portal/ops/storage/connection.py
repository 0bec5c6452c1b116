"""Opens HTTP connections to a store: directly, or through the proxy that the environment names.

`obstore` uses the same variables. A request of ours that does not would fail wherever a proxy is the only way out.
"""

from __future__ import annotations

import base64
import http.client
import ssl
from typing import Any, Final
from urllib.parse import SplitResult, unquote, urlsplit

_PROXY_PORT: Final = 80


def open_connection(endpoint: str, seconds: float) -> http.client.HTTPConnection:
    """A connection for requests to an endpoint, whose paths begin with a slash; it connects with the first one.

    Arguments:
        endpoint: scheme and host, such as ``https://s3.eu-central-1.amazonaws.com``.
        seconds: the time limit for each step.
    """
    parts = urlsplit(endpoint)
    proxy = _proxy_for(parts)
    if parts.scheme == "http":
        return _ToProxy(parts, proxy, seconds) if proxy else http.client.HTTPConnection(parts.netloc, timeout=seconds)
    context = ssl.create_default_context()
    if proxy is None:
        return http.client.HTTPSConnection(parts.netloc, timeout=seconds, context=context)
    connection = http.client.HTTPSConnection(*_address(proxy), timeout=seconds, context=context)
    connection.set_tunnel(parts.hostname or "", parts.port or http.client.HTTPS_PORT, _authorization(proxy))
    return connection


def _proxy_for(endpoint: SplitResult) -> SplitResult | None:
    """The proxy for an endpoint; None for a direct connection."""
    from urllib.request import getproxies, proxy_bypass  # imported late: it takes time

    proxies = getproxies()
    url = proxies.get(endpoint.scheme) or proxies.get("all")
    if not url or proxy_bypass(endpoint.netloc):
        return None
    proxy = urlsplit(url if "://" in url else f"http://{url}")
    return proxy if proxy.scheme == "http" and proxy.hostname else None


def _address(proxy: SplitResult) -> tuple[str, int]:
    return proxy.hostname or "", proxy.port or _PROXY_PORT


def _authorization(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


class _ToProxy(http.client.HTTPConnection):
    """A connection to a proxy that passes requests on unencrypted: it is told the whole URL of each."""

    def __init__(self, endpoint: SplitResult, proxy: SplitResult, seconds: float) -> None:
        super().__init__(*_address(proxy), timeout=seconds)
        self._origin = f"{endpoint.scheme}://{endpoint.netloc}"
        self._headers = _authorization(proxy)

    def putrequest(self, method: str, url: str, *arguments: Any, **options: Any) -> None:
        """Begin a request."""
        super().putrequest(method, f"{self._origin}{url}", *arguments, **options)
        for name, value in self._headers.items():
            self.putheader(name, value)
