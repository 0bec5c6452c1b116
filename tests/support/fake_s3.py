"""An S3 server that is full, silent, or reports success falsely: it answers by rote and keeps nothing."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_EMPTY = (
    "<ListBucketResult><Name>backup</Name><KeyCount>0</KeyCount><IsTruncated>false</IsTruncated></ListBucketResult>"
)


@dataclass(frozen=True)
class Refusal:
    """An error of Amazon's S3: its status, code and message, and headers beside it; without a code it has no body."""

    status: int
    code: str
    message: str
    headers: tuple[tuple[str, str], ...] = ()


REFUSALS = {
    "expired": Refusal(400, "ExpiredToken", "The provided token has expired."),
    "skewed": Refusal(
        403, "RequestTimeTooSkewed", "The difference between the request time and the current time is too large."
    ),
    "moved": Refusal(
        301,
        "PermanentRedirect",
        "The bucket you are attempting to access must be addressed using the specified endpoint.",
        (("x-amz-bucket-region", "eu-central-1"),),
    ),
    "other region": Refusal(
        400,
        "AuthorizationHeaderMalformed",
        "The authorization header is malformed; the region 'us-east-1' is wrong; expecting 'eu-central-1'",
    ),
    "throttled": Refusal(503, "SlowDown", "Please reduce your request rate."),
    "no locks": Refusal(400, "InvalidRequest", "Bucket is missing Object Lock Configuration"),
    "denied": Refusal(403, "AccessDenied", "Access Denied"),
    "other": Refusal(400, "InvalidStorageClass", "The storage class you specified is not valid"),
    "cold": Refusal(403, "InvalidObjectState", "The operation is not valid for the object's storage class"),
}


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
    """The server; use it as a context manager.

    Arguments:
        refusal: how it answers the first `times` requests; a HEAD without a body.
    """

    daemon_threads = True

    def __init__(self, manner: Manner, refusal: Refusal | None = None, *, times: int = 1_000_000) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.manner = manner
        self.refusal = refusal
        self.times = times
        self.requests = 0
        self.stored_with: list[dict[str, str]] = []
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
        self.server.stored_with.append({name.lower(): value for name, value in self.headers.items()})
        if self._refused():
            return
        if self.server.manner is Manner.FULL:
            self._answer(507, "<Error><Code>InsufficientStorage</Code></Error>")
        else:
            self._answer(200)

    def _refused(self) -> bool:
        refusal = self.server.refusal
        self.server.requests += 1
        if refusal is None or self.server.requests > self.server.times:
            return False
        text = f"<Error><Code>{refusal.code}</Code><Message>{refusal.message}</Message></Error>"
        has_body = refusal.code and self.command != "HEAD"
        self._answer(refusal.status, text if has_body else "", **dict(refusal.headers))
        return True

    def do_HEAD(self) -> None:
        if self._refused():
            return
        if self.server.manner is Manner.KEEPS_OTHER_BYTES:
            self._answer(200, **{"x-amz-checksum-sha256": "A" * 43 + "="})
        else:
            self._answer(404)

    def do_GET(self) -> None:
        if self._refused():
            return
        self._answer(200, _EMPTY)

    def do_DELETE(self) -> None:
        self._answer(204)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self._refused():
            self._answer(200, "<DeleteResult></DeleteResult>")

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
