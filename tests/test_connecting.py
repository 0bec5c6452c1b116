"""Connecting to a server that takes its time, when somebody does not want to wait for it."""

from __future__ import annotations

import signal
import socket
from typing import TYPE_CHECKING

import pytest

from portal.ops.sources.pg_connection import connect
from portal.ops.target import DatabaseTarget

if TYPE_CHECKING:
    from types import FrameType


class AskedToEndError(BaseException):
    """What a signal raises in a command."""


def test_connection_that_is_given_up_is_closed() -> None:
    """At once, even while the error is still being handled: a server that waits for it holds up others."""

    def end(_: int, __: FrameType | None) -> None:
        raise AskedToEndError

    before = signal.signal(signal.SIGALRM, end)
    with socket.create_server(("127.0.0.1", 0)) as server:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        try:
            with pytest.raises(AskedToEndError) as caught:
                connect(DatabaseTarget(host="127.0.0.1", port=server.getsockname()[1], name="portal", user="portal"))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        session, _ = server.accept()
        with session:
            session.settimeout(10)
            while session.recv(1024):
                pass
        assert caught.value.__traceback__ is not None
