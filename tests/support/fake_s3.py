"""An S3 server that is full, silent, or reports success falsely: it answers by rote and keeps nothing."""

from __future__ import annotations

import threading
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_EMPTY = (
    "<ListBucketResult><Name>backup</Name><KeyCount>0</KeyCount><IsTruncated>false</IsTruncated></ListBucketResult>"
)


class Manner(Enum):
    """How it treats what it is sent."""

    FULL = auto()
    SILENT = auto()
    """It takes a request, and never answers."""

    DEAF = auto()
    """It takes a connection, and never reads what is sent."""

    KEEPS_NOTHING = auto()
    KEEPS_OTHER_BYTES = auto()


class FakeS3(ThreadingHTTPServer):
    """The server; use it as a context manager."""

    daemon_threads = True

    def __init__(self, manner: Manner) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.manner = manner
        self.over = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()

    @property
    def url(self) -> str:
        """A destination on it."""
        return f"s3://backup/x?endpoint=http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeS3
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        if self.server.manner is Manner.DEAF:
            self.server.over.wait(60)
            return
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.manner is Manner.FULL:
            self._answer(507, "<Error><Code>InsufficientStorage</Code></Error>")
        else:
            self._answer(200)

    def do_HEAD(self) -> None:
        if self.server.manner is Manner.KEEPS_OTHER_BYTES:
            self._answer(200, **{"x-amz-checksum-sha256": "A" * 43 + "="})
        else:
            self._answer(404)

    def do_GET(self) -> None:
        self._answer(200, _EMPTY)

    def do_DELETE(self) -> None:
        self._answer(204)

    def _answer(self, status: int, body: str = "", **headers: str) -> None:
        if self.server.manner in (Manner.SILENT, Manner.DEAF):
            self.server.over.wait(60)
            return
        self.send_response(status)
        for name, value in {"ETag": '"0"', "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: Any) -> None:
        pass
