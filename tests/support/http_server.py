"""An HTTP server that keeps what it was sent."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from portal.ops.monitoring.model import Miss
    from portal.ops.repository.access_log import AccessEntry

    Step = tuple[AccessEntry | None, Sequence[Miss] | None]


class Server(ThreadingHTTPServer):
    """Notes what it is asked; where it hangs, it never answers."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, str]] = []
        self.hangs = threading.Event()
        self.over = threading.Event()

    @property
    def place(self) -> str:
        """Its address."""
        return f"127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        self.server.asked.append((self.path, body))
        if self.server.hangs.is_set():
            self.server.over.wait(30)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def web_server() -> Iterator[Server]:
    """A server of the web, for messages and pings."""
    with Server() as serving:
        thread = threading.Thread(target=serving.serve_forever, daemon=True)
        thread.start()
        yield serving
        serving.over.set()
        serving.shutdown()
