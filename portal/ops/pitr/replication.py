"""Queries about the server's WAL over an ordinary connection: identity, slot, positions, missing settings.

The role needs REPLICATION; nothing here needs a superuser.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from datetime import UTC
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg.rows import class_row
from psycopg.sql import Identifier

from portal.ops.errors import AccessDeniedError, BusyError, ConfigurationError
from portal.ops.pitr.lsn import parse_lsn
from portal.ops.pitr.wal_archive import Cluster
from portal.ops.postgres.supported import refuse_old_wal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime, timedelta

    from portal.ops.postgres.connection import Connection
    from portal.ops.settings.load import DatabaseTarget

SLOT: Final = "kekkai_backup"
LOST: Final = "lost"

_PLAIN_NAME: Final = re.compile(r"(?!all$|replication$|sameuser$|samerole$)\w[\w.-]*", re.ASCII)

_SLOT_LOOKS: Final = 20
_SLOT_PAUSE_SECONDS: Final = 0.05
_SLOT_RACES: Final = (
    psycopg.errors.DuplicateObject,
    psycopg.errors.UndefinedObject,
    psycopg.errors.ObjectInUse,
)
"""The server's error if another session was faster."""

REPLAY_LIMITS: Final = (
    "max_connections",
    "max_locks_per_transaction",
    "max_prepared_transactions",
    "max_wal_senders",
    "max_worker_processes",
)
"""On a server that replays WAL, each of these must be at least the value on the server that wrote it."""

_SETTINGS: Final = """
    SELECT name, setting FROM pg_settings
    WHERE name = ANY(%s) OR name IN ('wal_level', 'wal_segment_size', 'max_replication_slots', 'max_slot_wal_keep_size',
                                        'summarize_wal')
"""
_IDENTITY: Final = "SELECT system_identifier::text FROM pg_control_system()"
_POSITION: Final = """
    SELECT clock_timestamp() AS clock, %s AS slot,
           (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_flush_lsn() END)::text
               AS flushed,
           (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_insert_lsn() END)::text
               AS inserted,
           current_setting('wal_writer_delay')::interval AS wal_writer_delay,
           s.slot_name IS NOT NULL AS has_slot, coalesce(s.active, false) AS active, s.restart_lsn::text AS restart,
           s.wal_status, s.safe_wal_size
    FROM (SELECT) AS one LEFT JOIN pg_replication_slots AS s ON s.slot_name = %s
"""
_CREATE: Final = "SELECT pg_create_physical_replication_slot(%s, true)"
_DROP: Final = (
    "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s AND NOT active"
)
_MAY_REPLICATE: Final = "SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user"
_SUPERUSER: Final = "SELECT rolname FROM pg_roles WHERE oid = 10"
_TABLESPACES: Final = "SELECT spcname FROM pg_tablespace WHERE spcname NOT IN ('pg_default', 'pg_global') ORDER BY 1"
_SIZE: Final = "SELECT sum(pg_database_size(oid))::bigint FROM pg_database WHERE has_database_privilege(oid, 'CONNECT')"


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Settings of the server that matter for WAL and base backups.

    Arguments:
        slot_keep_bytes: the most WAL that a slot may retain; None for no limit.
        summarizes_wal: whether incremental base backups are possible; None if the server is too old for them.
    """

    cluster: Cluster
    version: int
    wal_level: str
    max_wal_senders: int
    max_replication_slots: int
    slot_keep_bytes: int | None
    summarizes_wal: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Position:
    """The positions of the server and of the slot.

    Arguments:
        clock: the time on the server.
        flushed: how far the server has flushed its WAL.
        inserted: how far it has written WAL in its memory.
        wal_writer_delay: the pause between two flushes of commits that did not wait for theirs.
        restart: how far the slot's user has confirmed; None if it never connected, or the slot is lost.
        wal_status: ``reserved``, ``extended``, ``unreserved`` or ``lost``.
        safe_wal_size: bytes of WAL that may still be written before the slot is lost.
    """

    clock: datetime
    slot: str
    flushed: str
    inserted: str
    wal_writer_delay: timedelta
    has_slot: bool
    active: bool
    restart: str | None
    wal_status: str | None
    safe_wal_size: int | None

    @property
    def flushed_lsn(self) -> int:
        """The position as a number."""
        return parse_lsn(self.flushed)

    @property
    def inserted_lsn(self) -> int:
        """The position as a number."""
        return parse_lsn(self.inserted)

    @property
    def longest_delay(self) -> timedelta:
        """How long a commit may wait for its flush, at the most (PostgreSQL's manual, "Asynchronous Commit")."""
        return 3 * self.wal_writer_delay

    @property
    def restart_lsn(self) -> int:
        """The position as a number; 0 for None."""
        return parse_lsn(self.restart) if self.restart else 0

    @property
    def is_usable(self) -> bool:
        """True if the slot exists and still has its WAL."""
        return self.has_slot and self.restart is not None and self.wal_status != LOST


def read_settings(connection: Connection) -> ServerSettings:
    """Query the settings and the identity of the cluster; raises `UnsupportedError` if the server is too old."""
    refuse_old_wal(connection)
    found: dict[str, str] = dict(connection.execute(_SETTINGS, [list(REPLAY_LIMITS)]).fetchall())
    (identifier,) = connection.execute(_IDENTITY).fetchone() or ("",)
    keep = int(found["max_slot_wal_keep_size"])
    version = connection.info.server_version
    return ServerSettings(
        cluster=Cluster(
            system_identifier=str(identifier),
            segment_bytes=int(found["wal_segment_size"]),
            major=version // 10000,
            limits={name: int(found[name]) for name in REPLAY_LIMITS},
        ),
        version=version,
        wal_level=str(found["wal_level"]),
        max_wal_senders=int(found["max_wal_senders"]),
        max_replication_slots=int(found["max_replication_slots"]),
        slot_keep_bytes=None if keep < 0 else keep << 20,
        summarizes_wal=found["summarize_wal"] == "on" if "summarize_wal" in found else None,
    )


def faults(settings: ServerSettings) -> Iterator[tuple[str, str]]:
    """Settings that prevent or endanger receiving WAL, each with the statement that corrects it."""
    if settings.wal_level == "minimal":
        yield (
            "wal_level is minimal, so the WAL is not enough to recover from",
            "ALTER SYSTEM SET wal_level = 'replica'; -- and restart the server",
        )
    if settings.max_wal_senders < 2:
        yield (
            f"max_wal_senders is {settings.max_wal_senders}; the WAL service and a base backup need 2",
            "ALTER SYSTEM SET max_wal_senders = 10; -- and restart the server",
        )
    if settings.max_replication_slots < 1:
        yield (
            "max_replication_slots is 0",
            "ALTER SYSTEM SET max_replication_slots = 10; -- and restart the server",
        )
    if settings.slot_keep_bytes is None:
        yield (
            "max_slot_wal_keep_size is not limited, so a slot that nobody reads would fill the server's disk",
            "ALTER SYSTEM SET max_slot_wal_keep_size = '8GB'; SELECT pg_reload_conf();",
        )


def may_replicate(connection: Connection) -> bool:
    """True if the role may open replication connections."""
    (may,) = connection.execute(_MAY_REPLICATE).fetchone() or (False,)
    return bool(may)


def allow_replication(role: str) -> str:
    """The statement that lets a role receive WAL."""
    return f"ALTER ROLE {Identifier(role).as_string(None)} REPLICATION;"


def hba_name(role: str) -> str:
    """A role's name as it is written in ``pg_hba.conf``."""
    if _PLAIN_NAME.fullmatch(role):
        return role
    doubled = role.replace('"', '""')
    return f'"{doubled}"'


def check(connection: Connection, target: DatabaseTarget) -> ServerSettings:
    """Return the settings if they permit receiving WAL safely.

    Raises:
        AccessDeniedError: the role may not replicate.
        ConfigurationError: the settings do not permit it.
    """
    if not may_replicate(connection):
        raise AccessDeniedError(
            f"role {target.user} may not receive WAL",
            hint=f"As an administrator: {allow_replication(target.user)} or set BACKUP_REPLICATION_URL.",
        )
    settings = read_settings(connection)
    wrong = list(faults(settings))
    if wrong:
        raise ConfigurationError(
            f"the server is not configured for WAL to be received: {'; '.join(what for what, _ in wrong)}",
            hint=f"As an administrator: {' '.join(statement for _, statement in wrong)}",
        )
    return settings


def position(connection: Connection, slot: str = SLOT) -> Position:
    """The present positions of the server and of the slot; raises `UnsupportedError` if the server is too old."""
    refuse_old_wal(connection)
    with connection.cursor(row_factory=class_row(Position)) as cursor:
        found = cursor.execute(_POSITION, [slot, slot]).fetchone()
    assert found is not None
    return found


def server_clock(connection: Connection) -> datetime:
    """The time on the server."""
    (moment,) = connection.execute("SELECT clock_timestamp()").fetchone() or (None,)
    assert moment is not None
    found: datetime = moment.astimezone(UTC)
    return found


def ensure_slot(connection: Connection, slot: str = SLOT) -> bool:
    """Create the slot if there is none, or only a lost one; return whether this call created it.

    The WAL service and a base backup both call this, often at the same time. So if another session has just created,
    dropped or taken a slot, the function starts again.

    Raises:
        BusyError: a lost slot stays in use.
    """
    for _ in range(_SLOT_LOOKS):
        found = position(connection, slot)
        if found.is_usable:
            return False
        try:
            if found.has_slot:
                connection.execute(_DROP, [slot])
            connection.execute(_CREATE, [slot])
        except _SLOT_RACES:
            time.sleep(_SLOT_PAUSE_SECONDS)
        else:
            return True
    raise BusyError(
        f"the replication slot {slot} is lost, and another session holds it",
        hint="End that session with pg_terminate_backend; its pid is active_pid in pg_replication_slots.",
    )


def superuser_name(connection: Connection) -> str:
    """The role with which the cluster was initialized, used to connect to a scratch server."""
    (name,) = connection.execute(_SUPERUSER).fetchone() or ("postgres",)
    return str(name)


def tablespaces(connection: Connection) -> list[str]:
    """The tablespaces other than the two built-in ones."""
    return [name for (name,) in connection.execute(_TABLESPACES)]


def cluster_bytes(connection: Connection) -> int:
    """About how many bytes the cluster has, as far as the role may query that."""
    (size,) = connection.execute(_SIZE).fetchone() or (0,)
    return int(size or 0)


def named(target: DatabaseTarget, application: str) -> DatabaseTarget:
    """The same server, with the application name that identifies our sessions."""
    return replace(target, options={**target.options, "application_name": application})
