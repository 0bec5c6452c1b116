"""Delivers the recovered cluster itself, as a data directory for a new server.

unpack    unpack the base backup next to the target, under a name that marks it as incomplete
replay    replay WAL up to the moment, on a scratch server that writes durably
stop      stop the server with a checkpoint, and put the original configuration back
publish   sync everything, then rename
"""

from __future__ import annotations

import os
import shlex
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from portal.ops.errors import ConfigurationError, RestoreError
from portal.ops.pitr.plan import plan_recovery
from portal.ops.pitr.recovery import lines_locked, scratch_server, unpacked
from portal.ops.pitr.scratch import reachable, scratch_directory, server_owner, sweep_scratch
from portal.ops.pitr.scratch_server import Target
from portal.ops.pitr.wal_feed import WalFeed
from portal.ops.repository.durable import sync_directory
from portal.ops.runtime.logs import engine_log
from portal.ops.units import system_reason

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from portal.ops.pitr.plan import RecoveryPlan
    from portal.ops.pitr.scratch import Owner
    from portal.ops.pitr.scratch_server import ScratchServer
    from portal.ops.repository.repository import Repository
    from portal.ops.runtime.process import ProcessRunner
    from portal.ops.runtime.progress import Advance

log = engine_log("portal.ops.pitr.data_dir")

_AUTO: Final = "postgresql.auto.conf"
_CONFIGURATION: Final = "postgresql.conf"
_RULES: Final = "pg_hba.conf"
_IDENTITIES: Final = "pg_ident.conf"
_SIDE_BYTES: Final = 256 << 20
"""What a scratch server puts next to its data: WAL for replay, and its log."""


@dataclass(frozen=True, kw_only=True)
class Delivered:
    """A cluster that is ready to be started.

    Arguments:
        directory: the data directory.
        moment: the moment it was recovered to, by the clock of the original server.
        commands: the commands that start it.
        notes: remarks for the operator.
    """

    directory: Path
    moment: datetime
    commands: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The result in the types of JSON."""
        return {
            "success": True,
            "data_dir": str(self.directory),
            "at": self.moment.isoformat(),
            "commands": list(self.commands),
            "notes": list(self.notes),
        }


def plan_delivery(repository: Repository, moment: datetime | None, directory: Path, zone: tzinfo = UTC) -> RecoveryPlan:
    """Plan the recovery to a moment, and check the target directory; changes nothing.

    Arguments:
        zone: the time zone for showing moments.

    Raises:
        ConfigurationError: the directory is not empty or is not possible there, or the moment is outside the window.
    """
    plan = plan_recovery(repository, moment, zone)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigurationError(f"{directory} is not an empty directory", hint="Name one that does not exist yet.")
    if not directory.parent.is_dir():
        raise ConfigurationError(f"{directory.parent} does not exist", hint="Create it first.")
    owner = server_owner()
    if owner and not all(reachable(path, owner) for path in (directory.parent, *directory.parent.parents)):
        raise ConfigurationError(
            f"user {owner.name}, who replays the WAL, cannot reach {directory.parent}",
            hint="Name a directory that other users can pass through, such as one in /var/lib/postgresql.",
        )
    return plan


def deliver(
    repository: Repository,
    plan: RecoveryPlan,
    directory: Path,
    *,
    runner: ProcessRunner,
    bin_dir: Path | None,
    jobs: int,
    lock_timeout: float,
    advance: Advance = lambda _: None,
) -> Delivered:
    """Recover the cluster to a directory.

    Arguments:
        directory: the new data directory.
        advance: called with the number of bytes after each piece is unpacked.

    Raises:
        RestoreError: the moment was not reached, or the directory cannot be written.
    """
    owner = server_owner()
    sweep_scratch(repository)
    with (
        repository.shared(),
        lines_locked(plan, lock_timeout),
        scratch_directory(repository, owner, _SIDE_BYTES) as side,
        scratch_directory(repository, owner, plan.needed_bytes, parent=directory.parent) as place,
    ):
        data = place / "data"
        server = scratch_server(plan, side, data, runner=runner, bin_dir=bin_dir, is_durable=True)
        program = unpacked(server, plan, jobs, advance)
        with _alter_system_aside(data):
            _replay(server, plan, side, owner)
        notes = _complete(data, owner, server.limits)
        _sync(data)
        _move(data, directory)
    log.info("cluster_delivered", path=str(directory), moment=plan.reached.isoformat())
    return Delivered(
        directory=directory, moment=plan.reached, commands=_commands(directory, owner, program), notes=notes
    )


def _replay(server: ScratchServer, plan: RecoveryPlan, side: Path, owner: Owner | None) -> None:
    """Replay WAL up to the moment, and shut the server down with a checkpoint."""
    try:
        with WalFeed(plan.archive, side, owner) as feed:
            server.recover(feed, Target(moment=plan.moment, timeline=plan.span.timeline))
        server.stop(fast=True)
    finally:
        server.stop()


@contextmanager
def _alter_system_aside(data: Path) -> Iterator[None]:
    """Move settings by ALTER SYSTEM aside while the scratch server runs."""
    path = data / _AUTO
    settings = path.read_bytes() if path.exists() else b""
    path.write_text("")
    yield
    path.write_bytes(settings)


def _move(data: Path, directory: Path) -> None:
    """Move the cluster to its target.

    Raises:
        RestoreError: the directory cannot be written.
    """
    try:
        if directory.exists():
            directory.rmdir()
        data.rename(directory)
        sync_directory(directory.parent)
    except OSError as error:
        raise RestoreError(
            f"cannot put the cluster to {directory}: {system_reason(error)}", hint="Name another directory."
        ) from error


def _complete(data: Path, owner: Owner | None, limits: Mapping[str, int]) -> tuple[str, ...]:
    """Create configuration files that the data directory lacks, because the original server had them elsewhere."""
    (data / "postmaster.opts").unlink(missing_ok=True)
    texts = {
        _CONFIGURATION: "".join(f"{name} = {value}\n" for name, value in sorted(limits.items())),
        _RULES: "local all all peer\nhost all all samehost scram-sha-256\n",
        _IDENTITIES: "",
    }
    made = [name for name in texts if not (data / name).exists()]
    for name in made:
        (data / name).write_text(texts[name])
        (data / name).chmod(0o600)
        if owner:
            os.chown(data / name, owner.uid, owner.gid)
    if _CONFIGURATION not in made:
        return ("the configuration is the old server's; look at it before the start",)
    return ("the old server had its configuration elsewhere; a minimal one was written",)


def _sync(data: Path) -> None:
    """Sync every file and directory."""
    for place, _, names in os.walk(data):
        for name in names:
            descriptor = os.open(os.path.join(place, name), os.O_RDONLY | os.O_NOFOLLOW)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_directory(Path(place))


def _commands(directory: Path, owner: Owner | None, program: Path) -> tuple[str, ...]:
    control = shlex.quote(str(program.with_name("pg_ctl")))
    start = f"{control} -D {shlex.quote(str(directory))} -l {shlex.quote(f'{directory}.log')} start"
    if owner is None:
        return (start,)
    chown = f"chown -R postgres:postgres {shlex.quote(str(directory))}"
    return (*(() if owner.name == "postgres" else (chown,)), f"runuser -u postgres -- {start}")
