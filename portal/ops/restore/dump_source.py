"""Opens the dump in an archive for a restore or a drill, with the manifest's facts about it."""

from __future__ import annotations

from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from portal.ops.errors import NotIntactError
from portal.ops.hints import another_archive
from portal.ops.model import Component
from portal.ops.postgres.dump_file import Dump
from portal.ops.postgres.table_names import normal_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from portal.ops.archive.index import Member
    from portal.ops.archive.protocol import Archive
    from portal.ops.manifest import Manifest
    from portal.ops.postgres.identity import DatabaseIdentity
    from portal.ops.postgres.toc import Contents
    from portal.ops.restore.database.object_check import SourceObjects
    from portal.ops.restore.database.plan import BackedUp
    from portal.ops.runtime.progress import Advance


def dump_of(
    archive: Archive,
    manifest: Manifest,
    path: Path,
    *,
    jobs: int,
    advance: Advance = lambda _: None,
    head: tuple[bytes, Contents] | None = None,
) -> Dump:
    """The dump in an archive; tables are weighted by their bytes, or by rows if the manifest has no bytes.

    Arguments:
        path: the file for the dump, if a file is needed.
        jobs: how many threads decompress.
        advance: called with the number of bytes after each read; bytes that are read again do not count.
        head: the result of `Dump.head`, if it is known already.
    """

    @contextmanager
    def content() -> Iterator[Iterator[memoryview]]:
        with dump_content(archive, jobs) as (_, pieces):
            yield pieces

    weights = _numbers_of(manifest, "table_bytes") or rows_of(manifest)
    size = manifest.details.get(Component.DATABASE.value, {}).get("bytes", 0)
    return Dump(
        open=content,
        path=path,
        size=size if isinstance(size, int) else 0,
        weights=weights,
        advance=advance,
        known_head=head,
    )


@contextmanager
def dump_content(archive: Archive, jobs: int) -> Iterator[tuple[Member, Iterator[memoryview]]]:
    """The dump's member, and its content.

    Raises:
        NotIntactError: the archive has no dump.
    """
    contents = archive.contents(jobs, below=Component.DATABASE.member)
    with closing(contents):
        found = next(contents, None)
        if found is None:
            raise NotIntactError(
                f"the archive holds no {Component.DATABASE.member}, although its manifest says so",
                hint=another_archive(),
            )
        yield found


def backed_up(manifest: Manifest, contents: Contents) -> BackedUp:
    """The archive's facts about the database, besides the row counts.

    Raises:
        NotIntactError: the manifest is invalid.
    """
    from portal.ops.restore.database.plan import BackedUp

    details = manifest.details.get(Component.DATABASE.value, {})
    try:
        size, large_objects = int(details.get("database_bytes", 0)), int(details.get("large_objects", 0))
    except (TypeError, ValueError) as error:
        raise NotIntactError("the manifest's size of the database is invalid", hint=another_archive()) from error
    return BackedUp(
        entries=contents.entries,
        server_major=contents.server_major,
        identity=identity_of(manifest),
        database_bytes=size,
        large_objects=large_objects,
    )


def rows_of(manifest: Manifest) -> dict[str, int]:
    """Rows by table; empty if the manifest has none.

    Raises:
        NotIntactError: the manifest's counts are invalid.
    """
    return _numbers_of(manifest, "rows")


def identity_of(manifest: Manifest) -> DatabaseIdentity | None:
    """The database's identity in the manifest, or None if an older release wrote it.

    Raises:
        NotIntactError: the identity is invalid.
    """
    from portal.ops.postgres.identity import DatabaseIdentity

    found = manifest.details.get(Component.DATABASE.value, {}).get("database")
    return None if found is None else DatabaseIdentity.from_dict(found)


def objects_of(manifest: Manifest) -> SourceObjects | None:
    """The indexes, constraints and triggers in the manifest, or None if an older release wrote it.

    Raises:
        NotIntactError: the record is invalid.
    """
    from portal.ops.restore.database.object_check import SourceObjects

    details = manifest.details.get(Component.DATABASE.value, {})
    if "counts" not in details:
        return None
    try:
        return SourceObjects(
            counts={str(kind): int(count) for kind, count in details["counts"].items()},
            invalid_indexes=frozenset(map(str, details.get("invalid_indexes", ()))),
            unvalidated=frozenset(map(str, details.get("unvalidated_constraints", ()))),
            server_version=str(details.get("server_version", "")),
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise NotIntactError(
            "the manifest's record of indexes and constraints is invalid", hint=another_archive()
        ) from error


def _numbers_of(manifest: Manifest, what: str) -> dict[str, int]:
    numbers = manifest.details.get(Component.DATABASE.value, {}).get(what, {})
    try:
        return {normal_name(str(table)): int(number) for table, number in numbers.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise NotIntactError(f"the manifest's numbers of {what} are invalid", hint=another_archive()) from error
