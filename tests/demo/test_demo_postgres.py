"""The embedded server: it starts, it is safe to use beside others, and nothing of it stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from demo.postgres import EmbeddedPostgres
from tests.support.waiting import ends_soon

ROOT = Path(__file__).parents[2]


def test_it_answers_over_tcp(postgres: EmbeddedPostgres) -> None:
    """A started server takes connections on its port."""
    with postgres.connect() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_it_answers_on_a_socket(postgres: EmbeddedPostgres) -> None:
    """The socket lies in the server's directory."""
    address = postgres.superuser()
    with psycopg.connect(
        host=str(postgres.directory), port=address.port, user=address.user, password=address.password, dbname="postgres"
    ) as connection:
        assert connection.info.server_version >= 170000


def test_it_wants_a_password(postgres: EmbeddedPostgres) -> None:
    """Nobody gets in with a wrong password."""
    address = postgres.superuser()
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(host=address.host, port=address.port, user=address.user, password="wrong", dbname="postgres")


def test_it_never_runs_as_root(postgres: EmbeddedPostgres) -> None:
    """The server belongs to another user than root."""
    assert Path(f"/proc/{postgres.pid}").stat().st_uid != 0


def test_a_role_owns_its_database(postgres: EmbeddedPostgres) -> None:
    """A role with a password can be made, and own a database."""
    postgres.create_role("owner's", password="it's secret")
    postgres.create_database("owned", owner="owner's")
    with psycopg.connect(
        host="127.0.0.1", port=postgres.port, user="owner's", password="it's secret", dbname="owned"
    ) as connection:
        connection.execute("CREATE TABLE public.mine (n int)")
        owner = connection.execute("SELECT tableowner FROM pg_tables WHERE tablename = 'mine'").fetchone()
    assert owner == ("owner's",)
    postgres.drop_database("owned")


def test_nothing_stays_after_stop() -> None:
    """A stopped server leaves neither process nor directory."""
    server = EmbeddedPostgres(unsafe_speed=True)
    server.start()
    pid, directory = server.pid, server.directory
    server.stop()
    assert ends_soon(pid)
    assert not directory.exists()


def test_it_ends_with_a_parent_that_is_killed() -> None:
    """After SIGKILL of the process that started it, the server is gone."""
    program = (
        "import time\n"
        "from demo.postgres import EmbeddedPostgres\n"
        "server = EmbeddedPostgres(unsafe_speed=True)\n"
        "server.start()\n"
        "print(server.pid, server.directory, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, directory = parent.stdout.readline().split()
        parent.kill()
    assert ends_soon(int(pid))
    remove(Path(directory))


def remove(directory: Path) -> None:
    """Remove what a killed parent could not."""
    import shutil

    assert directory.name.startswith("kekkai-postgres-")
    shutil.rmtree(directory)
    assert os.path.lexists(directory) is False
