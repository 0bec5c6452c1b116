"""The comparisons over databases: dumps, and a restore beside the live database."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from benchmarks.case import OURS, SYNCED, Case, Contender, at_most
from benchmarks.measure import Command
from benchmarks.outcome import Measure

if TYPE_CHECKING:
    from benchmarks.database import Database
    from benchmarks.outcome import Target

PG_DUMP = "pg_dump -Fc"
PG_DUMP_RAW = "pg_dump -Fc -Z0 >/dev/null"
_RESTORE_JOBS = "2"


def our_dump() -> Command:
    """Return our backup of the database."""
    return Command(
        argv=("{tools}/backup.sh", "database"),
        env={
            "BACKUP_LOCAL_PATH": "{out}",
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
        wanted: targets beside the size, which is to be at most that of `pg_dump -Fc`.
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
    connection = ("--host", "{host}", "--port", "{port}", "--username", "{user}", "--dbname", "{name}")
    return Command(
        argv=("{pg_bin}/pg_dump", "--format", "custom", *connection, *arguments), env={"PGPASSWORD": "{password}"}
    )


def restore_database_case(data: Database) -> Case:
    """Return the comparison of a restore beside the live database with a plain `pg_restore`."""
    plain = f"pg_restore --jobs {_RESTORE_JOBS}"
    connection = ("--host", "{host}", "--port", "{port}", "--username", "{user}")
    password = {"PGPASSWORD": "{password}"}
    scratch = "restored_by_pg_restore"
    # Each run starts where the databases of the last one are gone: they have memory that would have to be found anew.
    kept = "SELECT datname FROM pg_database WHERE datname LIKE '%\\_before\\_%'"
    words = " ".join(connection)
    cleared = Command(
        argv=(
            "sh",
            "-c",
            f'"{{pg_bin}}/psql" {words} -Atc "{kept}" postgres | xargs -r -n 1 "{{pg_bin}}/dropdb" {words}',
        ),
        env=password,
    )
    # What was restored last is what the server would vacuum during the next run.
    vacuumed = Command(argv=("{pg_bin}/psql", *connection, "--command", "VACUUM", "{name}"), env=password)
    settled = Command(argv=("{pg_bin}/psql", *connection, "--quiet", "--command", "CHECKPOINT"), env=password)
    return Case(
        name="restore-database",
        title=f"{data.description()} restored beside the live one, and put in its place",
        data=data,
        contenders=(
            Contender(
                name=OURS,
                setup=(replace(our_dump(), env={**our_dump().env, "BACKUP_LOCAL_PATH": "{kept}"}),),
                prepare=(cleared, vacuumed, settled),
                run=Command(
                    argv=("{tools}/restore.sh", "{archive}", "--force", "--database-only", "--jobs", _RESTORE_JOBS),
                    env={**our_dump().env, "BACKUP_LOCAL_PATH": "{kept}"},
                ),
                says_success=True,
                proof="SHA-256 of the archive; rows counted",
            ),
            Contender(
                name=plain,
                setup=(replace(_pg_dump("--compress", "0", "--file", "{kept}/dump")),),
                prepare=(
                    Command(argv=("{pg_bin}/dropdb", *connection, "--if-exists", scratch), env=password),
                    Command(argv=("{pg_bin}/createdb", *connection, scratch), env=password),
                    vacuumed,
                    settled,
                ),
                run=Command(
                    argv=(
                        "{pg_bin}/pg_restore",
                        *connection,
                        "--dbname",
                        scratch,
                        "--no-owner",
                        "--jobs",
                        _RESTORE_JOBS,
                        "{kept}/dump",
                    ),
                    env=password,
                ),
                proof="none",
            ),
        ),
        targets=(at_most(plain, 1.25),),
    )
