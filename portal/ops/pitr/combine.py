"""Unpacks a base backup with its parents, and combines them into one data directory.

unpack    unpack the full one and its incremental ones, each into a directory of its own
combine   run pg_combinebackup on them, as the user of the scratch server
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING, Final, NoReturn

from portal.ops.errors import DiskFullError, RestoreError
from portal.ops.pitr.unpack import unpack_cluster
from portal.ops.postgres.client_tools import find_same_version
from portal.ops.runtime.logs import engine_log
from portal.ops.runtime.process import launch_command

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from portal.ops.pitr.scratch import Owner
    from portal.ops.runtime.process import ProcessRunner
    from portal.ops.runtime.progress import Advance

log = engine_log("portal.ops.pitr.combine")

_PARTS: Final = "bases"
_LINKS_SINCE: Final = 18


def unpack_bases(
    line: Sequence[Path],
    data: Path,
    *,
    major: int,
    owner: Owner | None,
    runner: ProcessRunner,
    bin_dir: Path | None,
    jobs: int,
    advance: Advance = lambda _: None,
) -> None:
    """Unpack a base backup into a data directory; an incremental one together with its parents.

    Arguments:
        line: the archives, the full one first.
        data: the data directory, which is created; parts to be combined are next to it meanwhile.
        major: the server's major version.
        owner: the owner of all files, if not the user of this process.
        jobs: how many threads decompress.

    Raises:
        NotIntactError: an archive is damaged.
        ClientToolError: there is no pg_combinebackup of the server's version.
        RestoreError: the archives cannot be combined.
        DiskFullError: there is no room for the result.
        OSError: a file cannot be written.
    """
    if len(line) == 1:
        unpack_cluster(line[0], data, owner=owner, jobs=jobs, advance=advance)
        return
    program = find_combiner(major, runner=runner, bin_dir=bin_dir)
    parts = data.with_name(_PARTS)
    parts.mkdir(mode=0o700)
    if owner:
        os.chown(parts, owner.uid, owner.gid)
    places = [parts / str(number) for number in range(len(line))]
    for archive, place in zip(line, places, strict=True):
        unpack_cluster(archive, place, owner=owner, jobs=jobs, advance=advance)
    _combine(program, major, places, data, owner)
    shutil.rmtree(parts)
    log.info("bases_combined", bases=[path.name for path in line])


def find_combiner(major: int, *, runner: ProcessRunner, bin_dir: Path | None) -> Path:
    """The program that combines base backups, of the server's version.

    Raises:
        ClientToolError: there is none.
    """
    purpose = "incremental base backups need pg_combinebackup"
    return find_same_version("pg_combinebackup", major, purpose=purpose, runner=runner, bin_dir=bin_dir)


def _combine(program: Path, major: int, places: Sequence[Path], data: Path, owner: Owner | None) -> None:
    """Run pg_combinebackup. Nothing else uses the parts, so they may share blocks with the result if supported."""
    command: list[str | Path] = [program, "--no-sync", "--no-manifest", f"--output={data}"]
    command += ["--link"] if major >= _LINKS_SINCE else []
    done = subprocess.run(
        launch_command(
            [*command, *places], owner=(owner.uid, owner.gid) if owner else None, death_signal=signal.SIGKILL
        ),
        env={"PATH": os.defpath, "LC_ALL": "C"},
        cwd=data.parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["it says nothing"]
        _raise(said[-1], data.parent)


def _raise(said: str, place: Path) -> NoReturn:
    """Raise an error for the last words of pg_combinebackup: the machine may be at fault, and not the base backups."""
    if said.endswith((os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))):
        raise DiskFullError(
            f"the base backups cannot be combined: {said}",
            hint=f"Make room in {place}, or set TMPDIR to a directory on a larger disk.",
        )
    if said.endswith((os.strerror(errno.EACCES), os.strerror(errno.EIO), os.strerror(errno.EROFS))):
        raise RestoreError(
            f"the base backups cannot be combined: {said}",
            hint=f"Look at the disk and the permissions of {place}, then try again.",
        )
    raise RestoreError(
        f"the base backups cannot be combined: {said}",
        hint="Recover to a moment that another base backup leads to, and make a new one.",
    )
