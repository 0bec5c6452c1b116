"""Checks point-in-time recovery: receiving WAL, making a base backup, and running a scratch server.

Without WAL receiving there is nothing to check. What an administrator has to do is shown as SQL statements and a line
for pg_hba.conf.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

from portal.ops.hints import Advice
from portal.ops.monitoring.doctor.check import Check, Finding, fault, ok, warning
from portal.ops.pitr.combine import find_combiner
from portal.ops.pitr.locales import absent_locales, database_locales
from portal.ops.pitr.look import look
from portal.ops.pitr.replication import (
    SLOT,
    ServerSettings,
    allow_replication,
    cluster_bytes,
    faults,
    hba_name,
    may_replicate,
    named,
    position,
    read_settings,
    tablespaces,
)
from portal.ops.pitr.scratch import scratch_parent, server_owner
from portal.ops.pitr.scratch_server import find_server_program
from portal.ops.pitr.wal_reader import find_wal_reader
from portal.ops.postgres.client_tools import find_client
from portal.ops.postgres.connection import conninfo, libpq_environment
from portal.ops.postgres.server import maintenance
from portal.ops.repository.repository import Repository
from portal.ops.runtime.process import run
from portal.ops.units import human_bytes

if TYPE_CHECKING:
    from portal.ops.runtime.process import ProcessRunner
    from portal.ops.settings.load import Settings

_SECONDS: Final = 20.0
_SPARE: Final = 1.2
_WAL_BYTES: Final = 3 << 30


class PitrChecks:
    """The checks of point-in-time recovery.

    Arguments:
        settings: name server and repository.
        runner: starts PostgreSQL's programs.
    """

    def __init__(self, settings: Settings, *, runner: ProcessRunner) -> None:
        self._settings = settings
        self._target = named(settings.replication, "kekkai-doctor")
        self._runner = runner
        self._bin_dir = settings.pg_bin_dir

    def all(self) -> list[Check]:
        """All checks; a single line if WAL is not received."""
        if not self._settings.pitr.wal:
            what = "BACKUP_WAL is off: the database can be restored to backups, not to any second"
            return [Check(name="WAL", look=lambda: ok(what))]
        return [
            Check(name="WAL settings", look=self._server),
            Check(name="replication", look=self._replication),
            Check(name="WAL slot", look=self._slot),
            Check(name="base backups", look=self._base),
            Check(name="scratch server", look=self._scratch),
            Check(name="recovery window", look=self._window),
        ]

    def _server(self) -> Finding:
        """Report all missing server settings together, so that one restart suffices."""
        with maintenance(self._target) as connection:
            settings = read_settings(connection)
            wrong = list(faults(settings))
            if not may_replicate(connection):
                statement = allow_replication(self._target.user)
                wrong.insert(0, (f"role {self._target.user} lacks REPLICATION", statement))
        if wrong:
            what = "; ".join(what for what, _ in wrong)
            return fault(what, f"As an administrator: {' '.join(statement for _, statement in wrong)}")
        keep = human_bytes(settings.slot_keep_bytes or 0)
        return ok(f"wal_level {settings.wal_level}; a slot holds back {keep} at the most")

    def _replication(self) -> Finding:
        """Test pg_receivewal itself over the connection that it will use; this changes nothing."""
        with maintenance(self._target) as connection:
            if not may_replicate(connection):
                return warning(
                    f"not tried, because role {self._target.user} lacks REPLICATION",
                    f"Run {Advice.RUN_DOCTOR} again when the role has it.",
                )
            settings = read_settings(connection)
            peer = connection.execute("SELECT host(inet_client_addr())").fetchone()
        tool = find_client("pg_receivewal", settings.cluster.major, runner=self._runner, bin_dir=self._bin_dir)
        command: list[str | Path] = [tool.path, "--drop-slot", f"--slot={_no_such_slot()}", "--no-password"]
        command.append(f"--dbname={conninfo(self._target)}")
        asked = run(self._runner, command, environment=libpq_environment(self._target), timeout_seconds=_SECONDS)
        if "does not exist" in asked.stderr and "replication slot" in asked.stderr:
            return ok(f"role {self._target.user} may open replication connections (pg_receivewal {tool.version})")
        said = (asked.stderr.strip().splitlines() or ["it says nothing"])[-1]
        address = peer[0] if peer and peer[0] else ""
        place = f"{address}/{128 if ':' in address else 32}" if address else ""
        role = hba_name(self._target.user)
        line = f"host replication {role} {place} scram-sha-256" if place else f"local replication {role} scram-sha-256"
        add = f"Add this line to the server's pg_hba.conf, then SELECT pg_reload_conf(): {line}"
        if "pg_hba.conf" not in said:
            add = f"The reason is the server's own. If it is pg_hba.conf that refuses: {add[0].lower()}{add[1:]}"
        return fault(f"no replication connection: {said}", add)

    def _slot(self) -> Finding:
        with maintenance(self._target) as connection:
            found = position(connection)
        if not found.has_slot:
            return warning(f"there is no replication slot {SLOT} yet", f"Start the WAL service: {Advice.RECEIVE_WAL}.")
        lag = human_bytes(max(0, found.flushed_lsn - found.restart_lsn))
        if not found.is_usable:
            return fault(f"the slot {SLOT} is lost", "Start the WAL service: it makes another, and a base backup.")
        if not found.active:
            return warning(
                f"nothing reads the slot {SLOT}; the server holds {lag} of WAL back",
                f"Start the WAL service; or, for good, SELECT pg_drop_replication_slot('{SLOT}');",
            )
        return ok(f"the slot {SLOT} is read, {lag} behind")

    def _base(self) -> Finding:
        with maintenance(self._target) as connection:
            settings = read_settings(connection)
            others, size = tablespaces(connection), cluster_bytes(connection)
        if others:
            return fault(
                f"the cluster has tablespaces: {', '.join(others)}; base backups cannot contain them",
                "Move their tables and databases to pg_default.",
            )
        tool = find_client("pg_basebackup", settings.cluster.major, runner=self._runner, bin_dir=self._bin_dir)
        if settings.summarizes_wal is False:
            return warning(
                f"every base backup is a full one of about {human_bytes(size)}: summarize_wal is off",
                "As an administrator: ALTER SYSTEM SET summarize_wal = on; SELECT pg_reload_conf();",
            )
        if settings.summarizes_wal:
            find_combiner(settings.cluster.major, runner=self._runner, bin_dir=self._bin_dir)
        return ok(f"pg_basebackup {tool.version}, a cluster of about {human_bytes(size)}")

    def _scratch(self) -> Finding:
        with maintenance(self._target) as connection:
            settings: ServerSettings = read_settings(connection)
            size, absent = cluster_bytes(connection), absent_locales(database_locales(connection))
        owner = server_owner()
        path = find_server_program(settings.cluster.major, owner, runner=self._runner, bin_dir=self._bin_dir)
        find_wal_reader(settings.cluster.major, runner=self._runner, bin_dir=self._bin_dir)
        place = scratch_parent(Path(self._settings.local_path), owner)
        there = next(path for path in (place, *place.parents) if path.is_dir())
        disk = os.statvfs(there)
        free, needed = disk.f_bavail * disk.f_frsize, int(size * _SPARE) + min(_WAL_BYTES, size)
        who = owner.name if owner else "this user"
        if free < needed:
            return fault(
                f"{there} has {human_bytes(free)} free; a scratch server needs about {human_bytes(needed)}",
                "Make room, or set TMPDIR to a directory on a larger disk.",
            )
        if absent:
            return fault(
                f"this machine lacks the locale {', '.join(absent)} of the server's databases, so a scratch server "
                "cannot open them",
                "Install it: locale-gen, or KEKKAI_LOCALES for the container image.",
            )
        return ok(f"{path}, as {who}, in {there}: {human_bytes(free)} free")

    def _window(self) -> Finding:
        found = look(Repository(Path(self._settings.local_path)))
        if found.window is None:
            return warning("nothing can be recovered to a moment yet", "Start the WAL service, and wait a minute.")
        return ok(f"{found.window}")


def _no_such_slot() -> str:
    """A slot name that does not exist, so that a request to drop it changes nothing."""
    return f"kekkai_{socket.gethostname().lower().encode().hex()[:24]}_{os.getpid()}"
