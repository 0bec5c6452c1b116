"""Chooses the PostgreSQL client program (pg_dump, pg_restore) that fits a server.

pg_dump refuses a server newer than itself, and an older pg_restore cannot read a newer pg_dump's dump. So the program
of the server's own major version comes first, then the oldest newer one.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from portal.ops.errors import ClientToolError
from portal.ops.limits import limit_hint
from portal.ops.postgres.environment import client_environment
from portal.ops.runtime.process import run
from portal.ops.units import first_line, system_reason

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from portal.ops.runtime.process import ProcessRunner

_PLACES = ("usr/lib/postgresql/{major}/bin", "usr/pgsql-{major}/bin", "usr/local/pgsql-{major}/bin")
_UNVERSIONED_PLACES = ("usr/local/pgsql/bin",)
_VERSION = re.compile(r"\(PostgreSQL\) ((\d+)\S*)")
_VERSION_SECONDS = 10.0
_TASKS = {
    "pg_dump": "cannot dump a version {} server",
    "pg_restore": "cannot read a dump that pg_dump {} writes",
    "psql": "cannot run a script that pg_restore {} writes",
}
_OTHER_TASK = "cannot work with a version {} server"


@dataclass(frozen=True, kw_only=True)
class ClientTool:
    """A client program and the version that it reported."""

    path: Path
    version: str
    major: int


def find_client(
    program: str,
    server_major: int,
    *,
    runner: ProcessRunner,
    bin_dir: Path | None = None,
    root: Path = Path("/"),
    search_path: str | None = None,
) -> ClientTool:
    """Find the client program for a server.

    Arguments:
        program: such as ``pg_dump``.
        server_major: major version of the server, such as 17; or for pg_restore that of the pg_dump, and for psql that
            of the pg_restore, whose output it reads.
        bin_dir: the only directory to look in (BACKUP_PG_BIN_DIR); None looks everywhere.
        root: the root directory for the usual installation paths.
        search_path: the directories searched after those; None means PATH.

    Raises:
        ClientToolError: there is none, none that works, or only programs older than the server.
        OSError: this process may start no program.
    """
    found: list[ClientTool] = []
    broken: list[str] = []
    for path in _candidates(program, server_major, bin_dir, root, search_path):
        tool = _probe(path, runner)
        if isinstance(tool, ClientTool) and tool.major == server_major:
            return tool
        if isinstance(tool, ClientTool):
            found.append(tool)
        elif os.path.lexists(path):
            broken.append(f"{path} does not work: {tool}")
    if not found:
        raise _missing(program, server_major, bin_dir, broken)
    newer = [tool for tool in found if tool.major > server_major]
    if not newer:
        raise _too_old(program, server_major, max(found, key=_by_major), bin_dir)
    return min(newer, key=_by_major)


def find_same_version(program: str, major: int, *, purpose: str, runner: ProcessRunner, bin_dir: Path | None) -> Path:
    """Find a program of exactly a server's major version.

    Arguments:
        program: such as ``postgres``.
        purpose: who needs it, as the start of the error: ``a recovery needs a server of version``.

    Raises:
        ClientToolError: there is none.
    """
    tool = find_client(program, major, runner=runner, bin_dir=bin_dir)
    if tool.major != major:
        raise ClientToolError(
            f"{purpose} {major}, and there is only {tool.version} ({tool.path})",
            hint=f"apt-get install postgresql-{major}, or point BACKUP_PG_BIN_DIR at its programs.",
        )
    return tool.path.resolve()


def _candidates(
    program: str, server_major: int, bin_dir: Path | None, root: Path, search_path: str | None
) -> Iterator[Path]:
    """Yield the paths to try: those of the server's version, PATH, and those of other versions."""
    if bin_dir is not None:
        yield bin_dir / program
        return
    for place in _PLACES:
        yield root / place.format(major=server_major) / program
    on_path = shutil.which(program, path=search_path)
    if on_path is not None:
        yield Path(on_path)
    for place in _PLACES:
        yield from sorted(root.glob(f"{place.format(major='*')}/{program}"))
    for place in _UNVERSIONED_PLACES:
        yield root / place / program


def _probe(path: Path, runner: ProcessRunner) -> ClientTool | str:
    """Ask a program for its version; the reason if it is not there or does not work."""
    try:
        answer = run(runner, [path, "--version"], environment=client_environment(), timeout_seconds=_VERSION_SECONDS)
    except FileNotFoundError:
        return "it is not executable, or the directory is closed"
    except TimeoutError:
        return f"it does not tell its version within {_VERSION_SECONDS:g} s"
    except OSError as error:
        if limit_hint(error):
            raise
        return system_reason(error)
    match = _VERSION.search(answer.stdout)
    if answer.returncode == 0 and match is not None:
        return ClientTool(path=path, version=match[1], major=int(match[2]))
    said = first_line(answer.stderr or answer.stdout)
    return f"{said} (exit code {answer.returncode})"


def _by_major(tool: ClientTool) -> int:
    return tool.major


def _missing(program: str, server_major: int, bin_dir: Path | None, broken: Sequence[str]) -> ClientToolError:
    if broken:
        return ClientToolError(
            broken[0],
            hint=f"Run it by hand with --version, as this user; or {_install_hint(server_major, bin_dir)}",
        )
    where = "" if bin_dir is None else f" in {bin_dir} (BACKUP_PG_BIN_DIR)"
    return ClientToolError(f"{program} not found{where}", hint=_install_hint(server_major, bin_dir))


def _too_old(program: str, server_major: int, best: ClientTool, bin_dir: Path | None) -> ClientToolError:
    what = _TASKS.get(program, _OTHER_TASK).format(server_major)
    message = f"{program} {best.major} {what} ({best.path})"
    return ClientToolError(message, hint=_install_hint(server_major, bin_dir))


def _install_hint(server_major: int, bin_dir: Path | None) -> str:
    hint = f"apt-get install postgresql-client-{server_major}"
    return hint if bin_dir is None else f"{hint}, and point BACKUP_PG_BIN_DIR at its programs or leave it unset"
