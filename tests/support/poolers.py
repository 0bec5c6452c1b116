"""A real pgbouncer in front of the embedded server, and what the sessions that it shares out look like."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psycopg
import pytest

from demo.ports import ReservedPort
from demo.server_process import end, wait_until_ready
from portal.ops.runtime.process import launch_command
from tests.support.unprivileged import NOBODY
from tests.support.waiting import LONG_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from portal.ops.settings.database_url import DatabaseTarget

POOL_SIZE: Final = 2
_SETTINGS: Final = "SELECT name, setting FROM pg_settings WHERE name <> 'application_name'"
_LEFTOVERS: Final = """
    SELECT (SELECT count(*) FROM pg_prepared_statements), (SELECT count(*) FROM pg_listening_channels()),
           (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'),
           (SELECT count(*) FROM pg_class WHERE relpersistence = 't')
"""


@contextmanager
def pgbouncer(target: DatabaseTarget, **settings: str) -> Iterator[DatabaseTarget]:
    """Run pgbouncer as a user without rights; gives the target as it is seen through it.

    Arguments:
        settings: of pgbouncer; without any, its connections are given back after each transaction.
    """
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("there is no pgbouncer: apt-get install pgbouncer")
    assert target.password is not None
    reserved = ReservedPort()
    port = reserved.number
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        directory = Path(name)
        directory.chmod(0o755)
        users, configuration, log = (directory / file for file in ("users.txt", "pgbouncer.ini", "pgbouncer.log"))
        users.write_text(f'"{target.user}" "{target.password.reveal()}"\n')
        given = {
            "listen_addr": "127.0.0.1",
            "listen_port": str(port),
            "auth_type": "scram-sha-256",
            "auth_file": str(users),
            "unix_socket_dir": "",
            "pool_mode": "transaction",
            "default_pool_size": str(POOL_SIZE),
        } | settings
        lines = "".join(f"{key} = {value}\n" for key, value in given.items())
        server = f"* = host={target.host} port={target.port}"
        configuration.write_text(f"[databases]\n{server}\n[pgbouncer]\n{lines}")
        owner = (NOBODY, NOBODY) if os.geteuid() == 0 else None
        with log.open("wb") as output:
            process = subprocess.Popen(
                launch_command([program, configuration], owner=owner, death_signal=signal.SIGKILL),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            wait_until_ready(process, lambda: _listens(port), name="pgbouncer", log=log, seconds=LONG_SECONDS)
            yield replace(target, host="127.0.0.1", port=port)
        finally:
            end(process, signal.SIGTERM)
            reserved.release()


@contextmanager
def session_of_the_portal(behind: DatabaseTarget) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """What the portal has: a session through the pooler, in a transaction that keeps one of its connections."""
    assert behind.password is not None
    connection = psycopg.connect(
        host=behind.host,
        port=behind.port,
        dbname=behind.name,
        user=behind.user,
        password=behind.password.reveal(),
        prepare_threshold=None,
    )
    with connection, connection.transaction(force_rollback=True):
        connection.execute("SELECT")
        yield connection


def state_of_the_pool(behind: DatabaseTarget) -> list[tuple[dict[str, str], tuple[int, ...]]]:
    """Every setting, and what else a session may leave behind, of each connection that the pooler shares out."""
    with ExitStack() as opened:
        sessions = [opened.enter_context(session_of_the_portal(behind)) for _ in range(POOL_SIZE)]
        assert len({session.execute("SELECT pg_backend_pid()").fetchone() for session in sessions}) == POOL_SIZE
        return [
            (dict(session.execute(_SETTINGS).fetchall()), session.execute(_LEFTOVERS).fetchone() or ())
            for session in sessions
        ]


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
