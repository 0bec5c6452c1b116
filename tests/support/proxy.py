"""An HTTP proxy that passes requests on, and notes what it is asked for."""

from __future__ import annotations

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import urlsplit


class Asked(NamedTuple):
    """A request to the proxy: method, target and the authorization for the proxy."""

    method: str
    target: str
    authorization: str | None


class Proxy(ThreadingHTTPServer):
    """The proxy; use it as a context manager. It opens no tunnel."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[Asked] = []
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"

    def _pass_on(self) -> None:
        self.server.asked.append(Asked(self.command, self.path, self.headers.get("Proxy-Authorization")))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        target = urlsplit(self.path)
        origin = http.client.HTTPConnection(target.netloc, timeout=30)
        headers = {name: value for name, value in self.headers.items() if not name.lower().startswith("proxy-")}
        origin.request(self.command, f"{target.path}?{target.query}" if target.query else target.path, body, headers)
        found = origin.getresponse()
        content = found.read()
        self.send_response_only(found.status)
        for name, value in found.getheaders():
            if name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        origin.close()

    def do_GET(self) -> None:
        self._pass_on()

    def do_PUT(self) -> None:
        self._pass_on()

    def do_HEAD(self) -> None:
        self._pass_on()

    def do_POST(self) -> None:
        self._pass_on()

    def do_DELETE(self) -> None:
        self._pass_on()

    def do_CONNECT(self) -> None:
        self.server.asked.append(Asked(self.command, self.path, self.headers.get("Proxy-Authorization")))
        self.send_error(502)

    def log_message(self, *_: Any) -> None:
        pass
