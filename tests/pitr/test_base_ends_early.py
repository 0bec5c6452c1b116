"""A base backup whose program ends before it has sent the whole cluster."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest

from portal.ops.backup.job import BackupJob
from portal.ops.model import SUFFIX
from tests.support.wal_servers import wal_portal

if TYPE_CHECKING:
    from pathlib import Path

_SCRIPT: Final = """\
#!/bin/sh
[ "$1" = --version ] && exec "{program}" --version
"{program}" "$@" | head -c {size}
echo "pg_basebackup: error: the server went away" >&2
exit 1
"""


def programs(directory: Path, of: Path, size: int) -> Path:
    """PostgreSQL's programs, with a pg_basebackup that ends after so many bytes of output."""
    directory.mkdir()
    for program in of.iterdir():
        (directory / program.name).symlink_to(program)
    cut = directory / "pg_basebackup"
    cut.unlink()
    cut.write_text(_SCRIPT.format(program=of / cut.name, size=size))
    cut.chmod(0o755)
    return directory


@pytest.mark.parametrize("size", [0, 100, 3_000_100])
def test_it_fails_and_says_why(tmp_path: Path, size: int) -> None:
    """Wherever its output ends, the error has the program's last words, and there is no archive."""
    with wal_portal(tmp_path) as portal, portal.receiving():
        bin_dir = programs(tmp_path / "programs", portal.bin_dir, size)
        result = BackupJob(replace(portal.job().config, pg_bin_dir=bin_dir)).backup_base()
        assert not result.success
        assert result.error is not None
        assert "the server went away" in result.error
        assert list(portal.repository.path.glob(f"*{SUFFIX}")) == []
