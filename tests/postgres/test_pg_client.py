"""Choosing the client program: scripts in a temporary directory stand for the installed versions."""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING

import pytest

from portal.ops.errors import ClientToolError
from portal.ops.postgres.client_tools import find_client
from portal.ops.postgres.environment import client_environment

if TYPE_CHECKING:
    from pathlib import Path

    from portal.ops.runtime.process import SystemRunner


def install(directory: Path, version: str, program: str = "pg_dump") -> Path:
    """Put a program there that tells a version."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / program
    path.write_text(f'#!/bin/sh\necho "{program} (PostgreSQL) {version} (Debian {version}-1)"\n')
    path.chmod(0o755)
    return path


@pytest.fixture
def debian(tmp_path: Path) -> Path:
    """Return the directory that has one subdirectory for each version."""
    return tmp_path / "usr/lib/postgresql"


def test_the_servers_own_version_comes_first(tmp_path: Path, debian: Path, runner: SystemRunner) -> None:
    """Among several versions, the server's own is chosen."""
    for version in ("16.4", "17.10", "18.1"):
        install(debian / version.split(".")[0] / "bin", version)
    tool = find_client("pg_dump", 17, runner=runner, root=tmp_path, search_path="")
    assert (tool.path, tool.version, tool.major) == (debian / "17/bin/pg_dump", "17.10", 17)


def test_redhats_places_are_known(tmp_path: Path, runner: SystemRunner) -> None:
    """The directories of Red Hat's packages are searched too."""
    path = install(tmp_path / "usr/pgsql-16/bin", "16.4")
    assert find_client("pg_dump", 16, runner=runner, root=tmp_path, search_path="").path == path


def test_path_is_searched(tmp_path: Path, runner: SystemRunner) -> None:
    """A program of the right version on PATH is found."""
    path = install(tmp_path / "somewhere", "17.2")
    assert find_client("pg_dump", 17, runner=runner, root=tmp_path, search_path=str(path.parent)).path == path


def test_the_oldest_newer_version_is_second_best(tmp_path: Path, debian: Path, runner: SystemRunner) -> None:
    """Without the server's own version, the oldest of the newer ones is chosen."""
    for version in ("15.9", "18.1", "17.10"):
        install(debian / version.split(".")[0] / "bin", version)
    assert find_client("pg_dump", 16, runner=runner, root=tmp_path, search_path="").major == 17


def test_a_configured_directory_is_the_only_one(tmp_path: Path, debian: Path, runner: SystemRunner) -> None:
    """With BACKUP_PG_BIN_DIR set, a better program elsewhere is not looked at."""
    install(debian / "17/bin", "17.10")
    configured = install(tmp_path / "mine", "18.1")
    tool = find_client("pg_dump", 17, runner=runner, bin_dir=tmp_path / "mine", root=tmp_path)
    assert tool.path == configured


@pytest.mark.parametrize(
    ("program", "what"),
    [
        ("pg_dump", "dump a version 17 server"),
        ("pg_restore", "read a dump that pg_dump 17 writes"),
        ("psql", "run a script that pg_restore 17 writes"),
        ("pg_basebackup", "work with a version 17 server"),
    ],
)
def test_an_old_program_is_told_with_what_it_cannot_do(
    tmp_path: Path, runner: SystemRunner, program: str, what: str
) -> None:
    """What pg_restore and psql cannot read does not depend on the server."""
    path = install(tmp_path, "16.4", program)
    with pytest.raises(ClientToolError) as caught:
        find_client(program, 17, runner=runner, bin_dir=tmp_path)
    assert caught.value.message == f"{program} 16 cannot {what} ({path})"


def test_a_missing_program_names_the_package(tmp_path: Path, runner: SystemRunner) -> None:
    """Where there is no pg_dump, the hint installs that of the server's version."""
    with pytest.raises(ClientToolError, match="pg_dump not found") as caught:
        find_client("pg_dump", 16, runner=runner, root=tmp_path, search_path="")
    assert caught.value.hint == "apt-get install postgresql-client-16"


def test_a_missing_program_names_the_configured_directory(tmp_path: Path, runner: SystemRunner) -> None:
    """An empty BACKUP_PG_BIN_DIR is named in the message."""
    with pytest.raises(ClientToolError, match="BACKUP_PG_BIN_DIR"):
        find_client("pg_dump", 16, runner=runner, bin_dir=tmp_path)


def test_a_program_that_is_too_old_is_refused(tmp_path: Path, debian: Path, runner: SystemRunner) -> None:
    """A pg_dump older than the server is refused before it is run on it."""
    install(debian / "15/bin", "15.9")
    with pytest.raises(ClientToolError, match="pg_dump 15 cannot dump a version 17 server") as caught:
        find_client("pg_dump", 17, runner=runner, root=tmp_path, search_path="")
    assert caught.value.hint == "apt-get install postgresql-client-17"


def test_a_program_that_does_not_work_is_passed_over(tmp_path: Path, debian: Path, runner: SystemRunner) -> None:
    """A broken installation does not hide one that works."""
    install(debian / "17/bin", "17.10").write_text("#!/bin/sh\nexit 127\n")
    install(debian / "18/bin", "18.1")
    assert find_client("pg_dump", 17, runner=runner, root=tmp_path, search_path="").major == 18


@pytest.mark.parametrize(
    ("script", "mode", "reason"),
    [
        (
            "#!/bin/sh\necho 'no libpq.so.5' >&2\nexit 127\n",
            0o755,
            "no libpq.so.5 (exit code 127)",
        ),
        ("#!/bin/sh\necho something else\n", 0o755, "something else (exit code 0)"),
        ("#!/nowhere/sh\n", 0o755, "cannot run "),
        ("#!/bin/sh\n", 0o644, "it is not executable, or the directory is closed"),
    ],
)
def test_a_program_that_does_not_work_is_not_called_missing(
    tmp_path: Path, runner: SystemRunner, script: str, mode: int, reason: str
) -> None:
    """Where there is no other, the message has its path and what it says itself."""
    path = install(tmp_path, "17.10")
    path.write_text(script)
    path.chmod(mode)
    with pytest.raises(ClientToolError) as caught:
        find_client("pg_dump", 17, runner=runner, bin_dir=tmp_path)
    assert caught.value.message.startswith(f"{path} does not work: {reason}")
    assert caught.value.hint.startswith("Run it by hand with --version, as this user; or apt-get install")


def test_a_process_that_may_start_no_program_does_not_call_it_missing(tmp_path: Path, runner: SystemRunner) -> None:
    """The limit is the reason, whatever is installed."""
    path = install(tmp_path, "17.10")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open("/", os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            find_client("pg_dump", 17, runner=runner, bin_dir=path.parent)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_beta_has_a_major_version(tmp_path: Path, debian: Path, runner: SystemRunner) -> None:
    """The version of a pre-release is understood."""
    install(debian / "19/bin", "19beta1")
    tool = find_client("pg_dump", 19, runner=runner, root=tmp_path, search_path="")
    assert (tool.version, tool.major) == ("19beta1", 19)


def test_the_environment_keeps_unrelated_secrets_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client program sees libpq's variables, and none of the portal's."""
    monkeypatch.setenv("DD_DATABASE_PASSWORD", "secret")
    monkeypatch.setenv("PGSSLROOTCERT", "/etc/root.crt")
    environment = client_environment()
    assert "DD_DATABASE_PASSWORD" not in environment
    assert environment["PGSSLROOTCERT"] == "/etc/root.crt"
