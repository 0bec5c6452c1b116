"""A server that is too old is refused in words, before it is asked what it does not know."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.errors import UnsupportedError
from portal.ops.monitoring.doctor.check import State, examine
from portal.ops.monitoring.doctor.database import DatabaseChecks
from portal.ops.pitr.replication import position, read_settings
from portal.ops.postgres.connection import connect
from portal.ops.restore.database.means import look_at_means
from portal.ops.runtime.process import SystemRunner
from portal.ops.settings.database_url import DatabaseTarget
from tests.support.plans import NOW

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from portal.ops.postgres.connection import Connection

PID = 7
OTHER_PROTOCOLS = (80877103, 80877104)
"""The codes with which a client asks for encryption."""


def message(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("!i", len(content) + 4) + content


def rows(number: bytes) -> bytes:
    """The answer to a query: one row with one number."""
    column = b"number\0" + struct.pack("!ihihih", 0, 0, 23, 4, -1, 0)
    return (
        message(b"T", struct.pack("!h", 1) + column)
        + message(b"D", struct.pack("!hi", 1, len(number)) + number)
        + message(b"C", b"SELECT 1\0")
        + message(b"Z", b"I")
    )


def serve(session: socket.socket, version: str) -> None:
    """Let everyone in, and answer each question with the process's number."""
    with closing(session), session.makefile("rb") as questions:
        (length,) = struct.unpack("!i", questions.read(4))
        while struct.unpack("!i", questions.read(length - 4)[:4])[0] in OTHER_PROTOCOLS:
            session.sendall(b"N")
            (length,) = struct.unpack("!i", questions.read(4))
        parameters = {b"server_version": version.encode(), b"server_encoding": b"UTF8", b"client_encoding": b"UTF8"}
        told = [message(b"S", name + b"\0" + value + b"\0") for name, value in parameters.items()]
        key = message(b"K", struct.pack("!ii", PID, 1))
        session.sendall(message(b"R", struct.pack("!i", 0)) + b"".join(told) + key + message(b"Z", b"I"))
        while (kind := questions.read(1)) and kind != b"X":
            (length,) = struct.unpack("!i", questions.read(4))
            questions.read(length - 4)
            if kind in b"QS":
                session.sendall(rows(str(PID).encode()))


@contextmanager
def server_of_version(version: str) -> Iterator[DatabaseTarget]:
    """Something that says that it is PostgreSQL of a version, and knows nothing else."""

    def accept() -> None:
        while True:
            try:
                session, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=[session, version], daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, daemon=True).start()
        yield DatabaseTarget(host="127.0.0.1", port=listening.getsockname()[1], name="portal", user="portal")
        listening.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("version", ["9.6.24", "10.23", "11.22 (Debian 11.22-1.pgdg120+1)"])
def test_a_server_that_cannot_be_read(version: str) -> None:
    """Its version is named, and the oldest one that is enough."""
    with server_of_version(version) as target, pytest.raises(UnsupportedError) as caught:
        connect(target)
    assert f"has PostgreSQL {version}, which cannot be backed up: at least 12 is needed" in caught.value.message
    assert caught.value.exit_code == 2


def test_the_doctor_tells_it(tmp_path: Path) -> None:
    """The first check of the database fails, and the others are not tried."""
    with server_of_version("11.22") as target:
        checks = DatabaseChecks(
            target, runner=SystemRunner(), bin_dir=None, repository=tmp_path, clock=lambda: NOW
        ).all()
        first, *others = examine(checks)
    assert (first.name, first.state) == ("server", State.FAULT)
    assert "which cannot be backed up: at least 12 is needed" in first.what
    assert {finding.what for finding in others} == {"not looked at, because the server cannot be asked"}


@pytest.mark.parametrize(
    ("look", "what"),
    [
        (lambda connection, target: look_at_means(target, connection), "can be backed up, but not restored to"),
        (lambda connection, _: read_settings(connection), "can be backed up, but its WAL is not received"),
        (lambda connection, _: position(connection), "can be backed up, but its WAL is not received"),
    ],
)
def test_a_server_that_is_only_read(look: Callable[[Connection, DatabaseTarget], Any], what: str) -> None:
    """Version 12 can be backed up, to move to a newer server, and no more."""
    said = f"has PostgreSQL 12.22, which {what}: at least 13 is needed"
    with (
        server_of_version("12.22") as target,
        closing(connect(target)) as connection,
        pytest.raises(UnsupportedError, match=said),
    ):
        look(connection, target)
