"""Connecting to a server that takes its time, when somebody does not want to wait for it."""

from __future__ import annotations

import signal
import socket
import threading
from typing import TYPE_CHECKING

import psycopg
import pytest

from portal.ops.errors import ConnectionFailedError
from portal.ops.postgres.connection import connect
from portal.ops.postgres.explained import explained_errors
from portal.ops.postgres.refusals import explain_refusal
from portal.ops.settings.database_url import DatabaseTarget

if TYPE_CHECKING:
    from types import FrameType


class AskedToEndError(BaseException):
    """What a signal raises in a command."""


def test_connection_that_is_given_up_is_closed() -> None:
    """At once, even while the error is still being handled: a server that waits for it holds up others."""

    def end(_: int, __: FrameType | None) -> None:
        raise AskedToEndError

    sessions: list[socket.socket] = []

    def serve(server: socket.socket) -> None:
        sessions.append(server.accept()[0])
        sessions[0].recv(1)  # the client is connected, has said who it is, and waits for an answer
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, end)
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(30)
            threading.Thread(target=serve, args=[server], daemon=True).start()
            with pytest.raises(AskedToEndError) as caught:
                connect(DatabaseTarget(host="127.0.0.1", port=server.getsockname()[1], name="portal", user="portal"))
            sessions[0].settimeout(10)  # `caught` still holds the error, and all that it came through
            while sessions[0].recv(1024):
                pass
        assert caught.traceback
    finally:
        signal.signal(signal.SIGUSR1, before)
        for session in sessions:
            session.close()


def test_a_refusal_without_words_is_explained() -> None:
    """The driver's errors can be empty: where a connection is refused, and where it is lost."""
    target = DatabaseTarget(host="db", port=1, name="portal", user="portal")
    assert explain_refusal(target, psycopg.OperationalError()).message.endswith("at db:1: it says nothing")
    with (
        pytest.raises(ConnectionFailedError, match="lost the server at db:1: it says nothing"),
        explained_errors(target),
    ):
        raise psycopg.OperationalError
