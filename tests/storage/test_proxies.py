"""A proxy that is the only way to a store: every request takes it, those of `obstore` and ours."""

from __future__ import annotations

import base64
import os
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest

from portal.ops.settings.destination import parse_destination
from portal.ops.storage.connection import open_connection
from portal.ops.storage.open import open_backend
from tests.support.proxy import Asked, Proxy

if TYPE_CHECKING:
    from collections.abc import Iterator

AUTHORIZATION = f"Basic {base64.b64encode(b'me:se cret').decode()}"


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The proxy that the environment names, with a password; no store is excepted."""
    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)
    with Proxy() as server:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://me:se%20cret@127.0.0.1:{server.server_port}")
        yield server


def test_a_real_store_behind_a_proxy(bucket_url: str, proxy: Proxy) -> None:
    """An object is stored, its digest is asked for, and it is read: all through the proxy."""
    backend = open_backend(parse_destination(bucket_url), os.environ)
    digest = sha256(b"content").hexdigest()
    backend.put("a", b"content", digest)
    assert backend.head("a").sha256 == digest
    assert b"".join(backend.read("a")) == b"content"
    assert {"PUT", "HEAD", "GET"} <= {one.method for one in proxy.asked}
    assert {one.authorization for one in proxy.asked} == {AUTHORIZATION}


def test_a_store_with_tls(proxy: Proxy) -> None:
    """The proxy is asked for a tunnel to the store's port."""
    connection = open_connection("https://store.example:8443", 10)
    with pytest.raises(OSError, match="502"):
        connection.request("HEAD", "/bucket")
    assert proxy.asked == [Asked("CONNECT", "store.example:8443", AUTHORIZATION)]


@pytest.mark.parametrize("variable", ["no_proxy", "http_proxy"])
def test_a_store_that_is_excepted(
    bucket_url: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """Where the environment names the host, or no proxy that is understood, requests go to the store itself."""
    monkeypatch.setenv(variable, "127.0.0.1" if variable == "no_proxy" else "socks5://127.0.0.1:9")
    connection = open_connection(parse_destination(bucket_url).options["endpoint"], 10)
    connection.request("GET", "/")
    assert connection.getresponse().status < 500
    connection.close()
    assert proxy.asked == []
