"""Whether the portal answers after a restore."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.restore.portal_health import HealthCheck, ask_portal

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def answering(*codes: int) -> Iterator[str]:
    """A portal that answers with these codes, one after the other, and then with the last one."""
    left = list(codes)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(left.pop(0) if len(left) > 1 else left[0])
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"127.0.0.1:{server.server_port}/health"
        finally:
            server.shutdown()


def no_pause(_: float) -> None:
    """Wait for nothing."""


def test_it_is_asked_until_it_answers() -> None:
    """A portal that has to start first is given its time."""
    with answering(503, 500, 200) as place:
        health = ask_portal(HealthCheck(url=f"http://{place}"), sleep=no_pause)
    assert health is not None
    assert (health.answers, health.what) == (True, "HTTP 200")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/health", "http://user:secret@127.0.0.1:1/health?token=secret"])
def test_one_that_does_not_answer_is_named(url: str) -> None:
    """With its address, and nothing of the URL that may be secret."""
    health = ask_portal(HealthCheck(url=url, timeout_seconds=0), sleep=no_pause)
    assert health is not None
    assert not health.answers
    assert "does not answer at http://127.0.0.1:1/health" in health.sentence()
    assert "secret" not in health.sentence() + str(health.to_dict())


def test_one_that_says_that_it_is_not_well() -> None:
    """Its last answer is told."""
    with answering(503) as place:
        health = ask_portal(HealthCheck(url=f"http://{place}", timeout_seconds=0), sleep=no_pause)
    assert health is not None
    assert (health.answers, health.what) == (False, "HTTP 503")


def test_nobody_is_asked_without_a_url() -> None:
    """Most portals are not asked."""
    assert ask_portal(HealthCheck()) is None
