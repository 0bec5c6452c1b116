"""A base backup whose program ends before the cluster is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from portal.ops.backup.job import BackupJob
from portal.ops.model import SUFFIX
from portal.ops.runtime.process import DEVNULL, PIPE, SystemRunner
from tests.support.wal_servers import wal_portal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from portal.ops.runtime.process import RunningProcess, Stream

_SCRIPT: Final = '"$@" | head -c "$SIZE"; echo "pg_basebackup: error: the server went away" >&2; exit 1'


class CutShort(SystemRunner):
    """Runs programs, pg_basebackup only as far as so many bytes of its output."""

    def __init__(self, size: int) -> None:
        self._size = size

    def start(
        self,
        argv: Sequence[str | Path],
        *,
        environment: Mapping[str, str],
        stdin: Stream = DEVNULL,
        stdout: Stream = PIPE,
    ) -> RunningProcess:
        """Start a program."""
        if str(argv[0]).endswith("/pg_basebackup") and "--version" not in argv:
            argv = ["/bin/sh", "-c", _SCRIPT, "sh", *argv]
            environment = {**environment, "SIZE": str(self._size)}
        return super().start(argv, environment=environment, stdin=stdin, stdout=stdout)


@pytest.mark.parametrize("size", [0, 100, 3_000_100])
def test_it_fails_and_says_why(tmp_path: Path, size: int) -> None:
    """Wherever its output ends, the error has the program's last words, and there is no archive."""
    with wal_portal(tmp_path) as portal, portal.receiving():
        result = BackupJob(portal.job().config, runner=CutShort(size)).backup_base()
        assert not result.success
        assert result.error is not None
        assert "the server went away" in result.error
        assert list(portal.repository.path.glob(f"*{SUFFIX}")) == []
