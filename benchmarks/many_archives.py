"""Measures `list`, `status` and the plan of a prune in a repository of very many archives.

    tools/benchmark.sh many-archives [--archives N] [--directory DIR]

It makes a repository of small archives with real manifests and sidecars, some of them incrementals, and findings for
some of them; then it runs each command as a whole, first without a cache, then with one, and prints time and memory.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import sys
import tarfile
import tempfile
import time
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final

from isal import igzip

from portal.ops.codec import encode
from portal.ops.manifest import Manifest
from portal.ops.model import (
    FORMAT_VERSION,
    INCREMENTAL_VERSION,
    SIDECAR_SUFFIX,
    SUFFIX,
    BackupId,
    BackupType,
    Component,
    VerifyLevel,
    timestamp,
)
from portal.ops.repository.verifications import DIRECTORY, VerificationRecord

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

COMMANDS: Final = (("list",), ("status", "--json"), ("prune", "--dry-run"))

_EXPECTED: Final = (("status", 1),)
"""The newest archive is old, so the status's exit code is that of a missed target."""

_NEWEST: Final = datetime(2026, 1, 1, tzinfo=UTC)
_CHAIN: Final = 50
_COMPONENTS: Final = {
    BackupType.FULL: (Component.DATABASE, Component.MEDIA),
    BackupType.DATABASE: (Component.DATABASE,),
    BackupType.MEDIA: (Component.MEDIA,),
}


def main() -> int:
    """Make the repository, run the commands, and print a line for each."""
    parser = argparse.ArgumentParser(
        prog="tools/benchmark.sh many-archives", description="Measure commands in a repository of very many archives."
    )
    parser.add_argument("--archives", type=int, default=100_000, help="how many (default: %(default)s)")
    parser.add_argument("--verified", type=int, default=100, help="percent of them that were verified (default: 100)")
    parser.add_argument("--directory", type=Path, help="where to make it (default: a temporary directory)")
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="many-archives-", dir=arguments.directory))
    try:
        make_repository(directory, arguments.archives, verified=arguments.verified)
        time.sleep(2.5)  # newer files are not cached
        for command in COMMANDS:
            shutil.rmtree(directory / ".cache", ignore_errors=True)
            for what in ("first", "again", "again", "again"):
                seconds, cpu_seconds, megabytes = measure(directory, command)
                spent = f"{seconds:6.2f} s ({cpu_seconds:.2f} s of a processor) {megabytes:6.0f} MB"
                line = f"{' '.join(command):<16} {what:<6} {spent}"
                sys.stdout.write(line + "\n")
                sys.stdout.flush()
    finally:
        shutil.rmtree(directory)
    return 0


def make_repository(directory: Path, count: int, *, verified: int) -> None:
    """Fill a directory with archives; the newest are a day older than `_NEWEST`."""
    (directory / DIRECTORY).mkdir(parents=True)
    for number, manifest in enumerate(manifests(count)):
        data = _archive(manifest)
        path = directory / f"{manifest.backup_id}{SUFFIX}"
        digest = sha256(data).hexdigest()
        path.write_bytes(data)
        path.with_name(path.name + SIDECAR_SUFFIX).write_text(f"{digest}  {path.name}\n")
        if number % 100 < verified:
            record = VerificationRecord(
                backup_id=manifest.backup_id,
                level=VerifyLevel.CONTENTS,
                moment=_NEWEST,
                intact=True,
                checksum=digest,
                message=f"{manifest.backup_id} is intact",
            )
            text = json.dumps({"version": 1, **encode(record)}, indent=2)
            (directory / DIRECTORY / f"{manifest.backup_id}.json").write_text(text)


def manifests(count: int) -> Iterator[Manifest]:
    """Backups every ten minutes; three in four are incrementals of the uploads, in chains of fifty."""
    parent = base = None
    media = 0
    for number in range(count):
        moment = _NEWEST - timedelta(days=1, minutes=10 * (count - number))
        kind = BackupType.MEDIA if number % 4 else (BackupType.DATABASE if number % 8 else BackupType.FULL)
        backup_id = str(BackupId.of(kind, moment, str(number)))
        if kind is BackupType.MEDIA:
            parent = None if media % _CHAIN == 0 else parent
            base = parent and base
        follows = kind is BackupType.MEDIA and parent is not None
        yield Manifest(
            format_version=INCREMENTAL_VERSION if follows else FORMAT_VERSION,
            backup_id=backup_id,
            type=kind.value,
            timestamp=timestamp(moment),
            components=_COMPONENTS[kind],
            hostname="portal-server",
            db_name="defectdojo",
            parent=parent if follows else None,
            base=base if follows else None,
            parent_sha256="0" * 64 if follows else None,
        )
        if kind is BackupType.MEDIA:
            parent, base, media = backup_id, base or backup_id, media + 1


def measure(directory: Path, command: Sequence[str]) -> tuple[float, float, float]:
    """Run a command as a process; return seconds, CPU seconds and megabytes."""
    environment = {"PATH": os.environ["PATH"], "BACKUP_LOCAL_PATH": str(directory), "PORTAL_UPLOAD_DIR": ""}
    started = time.perf_counter()
    process = os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-m", "tools.backup", *command],
        environment,
        file_actions=[(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_WRONLY, 0) for stream in (1, 2)],
    )
    _, status, usage = os.wait4(process, 0)
    seconds = time.perf_counter() - started
    if (code := os.waitstatus_to_exitcode(status)) and (command[0], code) not in _EXPECTED:
        raise SystemExit(f"{' '.join(command)} ended with {code}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000


def _archive(manifest: Manifest) -> bytes:
    """An archive by tar and gzip with nothing but the manifest."""
    data = manifest.encode()
    header = tarfile.TarInfo(f"{manifest.backup_id}/manifest.json")
    header.size = len(data)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.addfile(header, io.BytesIO(data))
    return igzip.compress(packed.getvalue())


if __name__ == "__main__":
    sys.exit(main())
