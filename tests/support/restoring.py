"""What the tests of restores of a database share: a dump, and a restore of it that leaves nothing on the server.

Run as a program, it takes one restore through one of its steps, to be killed on the way:

    python -m tests.support.restoring <step> <JSON>, with the password in TEST_PASSWORD
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from psycopg.sql import SQL, Identifier

from portal.ops.errors import OpsError
from portal.ops.postgres.dump import open_dump
from portal.ops.postgres.dump_file import Dump
from portal.ops.postgres.identity import DatabaseIdentity
from portal.ops.postgres.server import maintenance
from portal.ops.restore.database.plan import BackedUp
from portal.ops.restore.database.restore import DatabaseRestore, RestoreMode, list_old_databases
from portal.ops.runtime.process import SystemRunner
from portal.ops.settings.database_url import DatabaseTarget, Secret
from tests.support.sessions import session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from portal.ops.runtime.process import ProcessRunner

_PIECE_BYTES = 100_001


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A live database, a dump of what it once was, and the tools to restore it."""

    target: DatabaseTarget
    bin_dir: Path
    dump: Path
    rows: dict[str, int]
    runner: ProcessRunner = field(default_factory=SystemRunner)

    def restore(self, *, restore_id: str | None = None, **options: Any) -> DatabaseRestore:
        """A new restore; the user may be another than the one that owns the bench."""
        return DatabaseRestore(
            options.pop("target", self.target),
            runner=options.pop("runner", self.runner),
            bin_dir=self.bin_dir,
            jobs=2,
            restore_id=restore_id or new_restore_id(),
            mode=options.pop("mode", RestoreMode.SWAP),
            safety_dump=options.pop("safety_dump", self.dump.with_name("safety.dump")),
            **options,
        )

    def restored(self, **options: Any) -> DatabaseRestore:
        """A restore that was staged and applied."""
        restore = self.restore(**options)
        restore.stage(self.source(), self.rows)
        restore.apply()
        return restore

    def source(self, *, size: int = 0, **weights: int) -> Dump:
        """The dump as it comes out of an archive: in pieces, which need not be as large as each other.

        Arguments:
            size: its bytes, where it may be put in a file.
        """

        @contextmanager
        def content() -> Iterator[Iterator[memoryview]]:
            with self.dump.open("rb") as file:
                yield (memoryview(piece) for piece in iter(lambda: file.read(_PIECE_BYTES), b""))

        return Dump(open=content, path=self.dump.with_name("staged.dump"), size=size, weights=weights or self.rows)

    def databases(self) -> set[str]:
        """The names of everything on the server that belongs to the live database."""
        kept = {old.marked.name for old in list_old_databases(self.target)}
        with maintenance(self.target) as connection:
            found = connection.execute("SELECT datname FROM pg_database WHERE datname = %s", [self.target.name])
            return kept | {str(name) for (name,) in found}


def planned(made: Bench, **options: Any) -> Any:
    """The plan of a restore, which knows the dump's table of contents."""
    _, contents = made.source().head()
    backed_up = BackedUp(entries=contents.entries, server_major=contents.server_major, **options.pop("backed_up", {}))
    restore = made.restore(**options)
    return restore.plan(dump_major=17, dump_bytes=made.dump.stat().st_size, row_counts=made.rows, backed_up=backed_up)


def identity(**changes: Any) -> DatabaseIdentity:
    """A database as a manifest describes it; it is plain but for the changes."""
    facts: dict[str, Any] = {
        "owner": "postgres",
        "encoding": "UTF8",
        "collate": "C",
        "ctype": "C",
        "provider": "c",
        "locale": None,
        "icu_rules": None,
        "connection_limit": -1,
        "comment": None,
        "has_privileges": False,
    }
    return DatabaseIdentity(**(facts | changes))


def new_restore_id() -> str:
    """An id that no other test uses."""
    return f"restore_20260102_030405_{uuid4().hex[:6]}"


@contextmanager
def bench(target: DatabaseTarget, bin_dir: Path, directory: Path) -> Iterator[Bench]:
    """Dump a database, and remove in the end what restores have left of it."""
    dump, runner = directory / "database.sql", SystemRunner()
    with open_dump(target, runner=runner, bin_dir=bin_dir, timeout_seconds=60) as source:
        dump.write_bytes(source.stdout.read())
        rows = source.finish().row_counts
    try:
        yield Bench(target=target, bin_dir=bin_dir, dump=dump, rows=rows)
    finally:
        remove(target)


def remove(target: DatabaseTarget) -> None:
    """Drop what restores have left of a database."""
    drop = SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
    with suppress(OpsError):
        old = list_old_databases(target)
        with maintenance(target) as connection:
            for database in old:
                connection.execute(drop.format(Identifier(database.marked.name)))


def execute(target: DatabaseTarget, *statements: str) -> None:
    """Run statements in a database."""
    with session(target) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def ask(target: DatabaseTarget, query: str, *parameters: object) -> Any:
    """The one value that a query gives."""
    with session(target) as connection:
        row = connection.execute(query.encode(), parameters).fetchone()
    assert row is not None
    return row[0]


def elsewhere(target: DatabaseTarget) -> DatabaseTarget:
    """The maintenance database of the same server."""
    return replace(target, name="postgres")


def main() -> None:
    """Take a restore through one step, and say when it starts."""
    step, described = sys.argv[1], json.loads(sys.argv[2])
    target = DatabaseTarget(**described["target"], password=Secret(os.environ["TEST_PASSWORD"]))
    dump = Path(described["dump"])
    bench = Bench(target=target, bin_dir=Path(described["bin_dir"]), dump=dump, rows=described["rows"])
    restore = bench.restore(restore_id=described["restore_id"], mode=RestoreMode(described["mode"]))
    if step == "apply" and described["mode"] == RestoreMode.IN_PLACE:
        restore.stage(bench.source(), bench.rows)
    print("ready", flush=True)  # noqa: T201  (the test waits for it)
    if step == "stage":
        restore.stage(bench.source(), bench.rows)
    else:
        getattr(restore, step)()


if __name__ == "__main__":
    main()
