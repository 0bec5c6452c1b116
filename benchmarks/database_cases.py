"""The comparisons of databases: dumps, and a restore next to the live database."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import TYPE_CHECKING

from benchmarks.case import OURS, SYNCED, Case, Contender, at_most, repository_at
from benchmarks.measure import Command
from benchmarks.outcome import Measure

if TYPE_CHECKING:
    from benchmarks.database import Database
    from benchmarks.outcome import Target

PG_DUMP = "pg_dump -Fc"
PG_DUMP_RAW = "pg_dump -Fc -Z0 >/dev/null"
_CONNECTION = ("--host", "{host}", "--port", "{port}", "--username", "{user}")
_PASSWORD = {"PGPASSWORD": "{password}"}
_RESTORE_JOBS = "2"
_SCRATCH = "restored_by_pg_restore"


def our_dump() -> Command:
    """Return our backup of the database."""
    return Command(
        argv=("{tools}/backup.sh", "database"),
        env={
            **repository_at("{out}"),
            "BACKUP_PG_BIN_DIR": "{pg_bin}",
            "DD_DATABASE_HOST": "{host}",
            "DD_DATABASE_PORT": "{port}",
            "DD_DATABASE_NAME": "{name}",
            "DD_DATABASE_USER": "{user}",
            "DD_DATABASE_PASSWORD": "{password}",
        },
    )


def database_case(name: str, data: Database, *wanted: Target) -> Case:
    """Return the comparison of dumps of one database.

    Arguments:
        wanted: targets in addition to the size, which must be at most that of `pg_dump -Fc`.
    """
    return Case(
        name=name,
        title=f"dump of {data.description()}",
        data=data,
        contenders=(
            Contender(name=OURS, run=our_dump(), says_success=True, output="*.tar.gz", proof=f"{SYNCED}; rows counted"),
            Contender(name=PG_DUMP, run=_pg_dump("--file", "{out}/dump"), output="dump", proof="none; synced"),
            Contender(
                name=PG_DUMP_RAW,
                run=replace(_pg_dump("--compress", "0"), discards_output=True),
                proof="none; written nowhere",
            ),
        ),
        targets=(*wanted, at_most(PG_DUMP, 0.97, Measure.SIZE)),
        guard=PG_DUMP_RAW,
    )


def _pg_dump(*arguments: str) -> Command:
    return Command(
        argv=("{pg_bin}/pg_dump", "--format", "custom", *_CONNECTION, "--dbname", "{name}", *arguments), env=_PASSWORD
    )


def _quiet_server() -> tuple[Command, Command, Command]:
    """Commands after which every run meets the server in the same state."""
    # Each run starts when the previous databases are gone: their cached pages would otherwise have to be replaced.
    kept = "SELECT datname FROM pg_database WHERE datname LIKE '%\\_before\\_%'"
    words = " ".join(_CONNECTION)
    script = f'"{{pg_bin}}/psql" {words} -Atc "{kept}" postgres | xargs -r -n 1 "{{pg_bin}}/dropdb" {words}'
    # The server would vacuum what was restored last during the next run.
    vacuum = ("{pg_bin}/psql", *_CONNECTION, "--command", "VACUUM", "{name}")
    settle = ("{pg_bin}/psql", *_CONNECTION, "--quiet", "--command", "CHECKPOINT")
    return (
        Command(argv=("sh", "-c", script), env=_PASSWORD),
        Command(argv=vacuum, env=_PASSWORD),
        Command(argv=settle, env=_PASSWORD),
    )


def restore_database_case(name: str, data: Database, *, most: float) -> Case:
    """Return the comparison of a restore next to the live database with a plain `pg_restore`.

    Arguments:
        most: how much of the time of `pg_restore` ours may take.
    """
    plain = f"pg_restore --jobs {_RESTORE_JOBS}"
    cleared, vacuumed, settled = _quiet_server()
    emptied = (
        Command(argv=("{pg_bin}/dropdb", *_CONNECTION, "--if-exists", _SCRATCH), env=_PASSWORD),
        Command(argv=("{pg_bin}/createdb", *_CONNECTION, _SCRATCH), env=_PASSWORD),
        vacuumed,
        settled,
    )
    dumped = (_pg_dump("--compress", "0", "--file", "{kept}/dump"),)
    return Case(
        name=name,
        title=f"{data.description()} restored beside the live one, and put in its place",
        data=data,
        contenders=(
            Contender(
                name=OURS,
                setup=(replace(our_dump(), env={**our_dump().env, **repository_at("{kept}")}),),
                prepare=(cleared, vacuumed, settled),
                run=Command(
                    argv=("{tools}/restore.sh", "{archive}", "--force", "--database-only", "--jobs", _RESTORE_JOBS),
                    env={**our_dump().env, **repository_at("{kept}")},
                ),
                says_success=True,
                proof="SHA-256 of the archive; rows counted; statistics",
            ),
            Contender(name=plain, setup=dumped, prepare=emptied, run=_pg_restore(), proof="none"),
            Contender(
                name=f"{plain} && vacuumdb --analyze-only",
                setup=dumped,
                prepare=emptied,
                run=Command(argv=("sh", "-c", f"{shlex.join(_pg_restore().argv)} && {_analyze()}"), env=_PASSWORD),
                proof="none",
            ),
        ),
        targets=(at_most(plain, most),),
    )


def _pg_restore() -> Command:
    """What a person types; the statistics, without which the first queries are slow, are another command."""
    options = ("--dbname", _SCRATCH, "--no-owner", "--jobs", _RESTORE_JOBS)
    return Command(argv=("{pg_bin}/pg_restore", *_CONNECTION, *options, "{kept}/dump"), env=_PASSWORD)


def _analyze() -> str:
    options = ("--dbname", _SCRATCH, "--analyze-only", "--quiet", "--jobs", _RESTORE_JOBS)
    return shlex.join(("{pg_bin}/vacuumdb", *_CONNECTION, *options))
