"""Whether the portal answers after a restore."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.restore.portal_health import Health, HealthCheck, ask_portal
from tests.support.events import Events

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


def test_pauses_are_short_and_end_with_the_time() -> None:
    """It is asked once more when the time is over, and then no more."""
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        time.sleep(seconds / 100)

    with answering(503) as place:
        health = ask_portal(HealthCheck(url=f"http://{place}", timeout_seconds=0.3), sleep=pause)
    assert health is not None
    assert not health.answers
    assert health.seconds >= 0.3
    assert pauses
    assert all(0 < one <= 0.3 for one in pauses)
    pauses.clear()
    with answering(503, 200) as place:
        ask_portal(HealthCheck(url=f"http://{place}", timeout_seconds=600), sleep=pause)
    assert pauses == [1.0]


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("http://127.0.0.1:1/", "refused"),
        ("nonsense", "unknown url type"),
        ("http://127.0.0.1:port/", "nonnumeric port"),
        ("http://127.0.0.1:1/a b", "control characters"),
    ],
)
def test_whatever_is_wrong_is_an_answer(url: str, what: str) -> None:
    """It ends no restore."""
    health = ask_portal(HealthCheck(url=url, timeout_seconds=0), sleep=no_pause)
    assert health is not None
    assert (health.answers, what in health.what) == (False, True)


@pytest.mark.parametrize("codes", [(200,), (503,)])
def test_what_is_told(codes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """To the log, to programs and to people."""
    events = Events(monkeypatch, "portal.ops.restore.portal_health")
    with answering(*codes) as place:
        health = ask_portal(HealthCheck(url=f"http://{place}", timeout_seconds=0), sleep=no_pause)
    assert health is not None
    found = health.to_dict()
    assert (found["answers"], found["url"], found["what"]) == (codes == (200,), f"http://{place}", f"HTTP {codes[0]}")
    assert found["seconds"] == round(health.seconds, 3)
    ((level, event, facts),) = events.all
    assert (level, event) == ("info" if codes == (200,) else "warning", "portal_asked")
    assert (facts["url"], facts["answers"], facts["answer"]) == (found["url"], found["answers"], found["what"])
    well = Health(answers=True, url="u", what="HTTP 200", seconds=1.26)
    ill = Health(answers=False, url="u", what="HTTP 503", seconds=61.2)
    assert well.sentence() == "the portal answers at u: HTTP 200 after 1.3 s"
    assert ill.sentence() == "the portal does not answer at u after 1:01 min: HTTP 503"
