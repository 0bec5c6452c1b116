"""A pending archive: a hidden file, locked while it is written, and committed by a rename."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from portal.ops.archive.output_file import OutputFile
from portal.ops.repository.durable import give_to_owner, sync_directory, write_whole
from portal.ops.repository.locks import lock_alone_by_name
from portal.ops.repository.sidecar import sidecar_of

if TYPE_CHECKING:
    from pathlib import Path


PARTIAL_SUFFIX: Final = ".partial"


class PendingArchive:
    """An archive that is being written: `commit` publishes it, `discard` removes it."""

    def __init__(self, final: Path, descriptor: int) -> None:
        self.final = final
        self.partial = _partial(final)
        self.out = OutputFile(descriptor)

    def commit(self, digest: str) -> Path:
        """Publish the archive; everything in it must be on the disk, and `digest` must be its SHA-256."""
        sidecar = sidecar_of(self.final)
        write_whole(sidecar, f"{digest}  {self.final.name}\n".encode())
        self.partial.rename(self.final)  # the commit
        sync_directory(self.final.parent)
        return self.final

    def discard(self) -> None:
        """Remove what was written; does nothing after a commit."""
        with suppress(FileNotFoundError):
            _remove_remains(self.partial)


def _partial(final: Path) -> Path:
    return final.with_name(f".{final.name}{PARTIAL_SUFFIX}")


def _final(partial: Path) -> Path:
    return partial.with_name(partial.name.removeprefix(".").removesuffix(PARTIAL_SUFFIX))


def _remove_remains(partial: Path) -> None:
    """Remove a hidden file locked by us, and the sidecar of an archive that was never published."""
    final = _final(partial)
    if not final.exists():
        sidecar_of(final).unlink(missing_ok=True)
    for temporary in final.parent.glob(f".{sidecar_of(final).name}.*.tmp"):
        temporary.unlink(missing_ok=True)
    partial.unlink()


def _open_locked(partial: Path, *, create: bool = True) -> int | None:
    """Open and lock a hidden file; None if another process holds the lock, or has moved the file meanwhile."""
    flags = os.O_RDWR | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
    descriptor = os.open(partial, flags, 0o600)
    try:
        if lock_alone_by_name(descriptor, partial):
            give_to_owner(descriptor, partial.parent)
            return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None
