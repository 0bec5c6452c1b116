"""A dump that hangs before anything of it can be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from portal.ops.errors import DumpFailedError
from portal.ops.postgres.connection import connect
from portal.ops.postgres.dump import open_dump
from tests.support.servers import no_session_soon

if TYPE_CHECKING:
    from demo.postgres import EmbeddedPostgres
    from portal.ops.runtime.process import SystemRunner
    from portal.ops.settings.load import DatabaseTarget


def test_the_time_counts_from_the_start(
    portal_database: DatabaseTarget, postgres: EmbeddedPostgres, runner: SystemRunner
) -> None:
    """While it reads the schema, pg_dump itself waits without a limit for a catalog that another session has locked."""
    with connect(portal_database) as holder, holder.transaction():
        holder.execute("LOCK TABLE pg_catalog.pg_transform")
        with pytest.raises(DumpFailedError, match=r"did not end within 1 s"):
            open_dump(portal_database, runner=runner, bin_dir=postgres.bin_dir, timeout_seconds=1)
    assert no_session_soon(postgres, portal_database)
