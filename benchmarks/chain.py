"""Makes a chain of incremental backups: `python -m benchmarks.chain DATA DIRECTORY INCREMENTALS`.

The data are copied to `files`, and backed up to `archives`: a base, then incrementals. Before each of these, some files
are rewritten with the same content: so the last archive stands for the original files, and the incrementals hold many
of them.
"""

from __future__ import annotations

import shutil
import sys
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.data import files_below
from portal.ops.backup.job import BackupConfig, BackupJob

if TYPE_CHECKING:
    from portal.ops.backup.job import BackupResult

WRITTEN: Final = 8
"""How many files are rewritten before each incremental."""


def make_chain(data: Path, directory: Path, incrementals: int) -> None:
    """Make the base and the incrementals."""
    uploads = directory / "files"
    shutil.copytree(data, uploads, symlinks=True)
    config = BackupConfig(local_path=directory / "archives", media_path=uploads, chain_length=incrementals + 1)
    job = BackupJob(config)
    _check(job.backup_media(request_id="base"))
    files = cycle(files_below(uploads))
    for number in range(incrementals):
        changed = list(islice(files, WRITTEN))
        for file in changed:
            file.write_bytes(file.read_bytes())
        names = [str(file.relative_to(uploads)) for file in changed]
        _check(job.backup_media(incremental=True, changed=names, request_id=str(number)))


def _check(result: BackupResult) -> None:
    if not result.success:
        sys.exit(result.error)


if __name__ == "__main__":
    make_chain(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
