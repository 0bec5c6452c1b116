"""Unpacks a base backup into a data directory."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING, Final

from portal.ops.archive.index import MemberType
from portal.ops.archive.open import open_archive
from portal.ops.errors import NotIntactError
from portal.ops.pitr.base_manifest import PREFIX

if TYPE_CHECKING:
    from pathlib import Path

    from portal.ops.pitr.scratch import Owner
    from portal.ops.runtime.progress import Advance

_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


def unpack_cluster(
    archive: Path, data: Path, *, owner: Owner | None, jobs: int, advance: Advance = lambda _: None
) -> None:
    """Unpack a base backup; every file's digest is checked on the way.

    Arguments:
        data: the data directory, which is created.
        owner: the owner of all files, if not the user of this process.
        jobs: how many threads decompress.

    Raises:
        NotIntactError: the archive is damaged, or is no base backup.
        OSError: it cannot be written.
    """
    top = None
    with closing(open_archive(archive)) as opened:
        contents = opened.contents(jobs, below=PREFIX)
        with closing(contents):
            for member, content in contents:
                relative = member.path.removeprefix(PREFIX).lstrip("/")
                path = data / relative if relative else data
                if member.type is MemberType.DIRECTORY:
                    path.mkdir(mode=0o700)
                    top = top or path
                elif member.type is MemberType.FILE:
                    descriptor = os.open(path, _NEW, 0o600)
                    with open(descriptor, "wb", buffering=0) as file:
                        for piece in content:
                            _write(file.fileno(), piece)
                            advance(len(piece))
                else:
                    raise NotIntactError(
                        f"{member.path} is a {member.type}, which a base backup of ours never holds",
                        hint="Take another base backup.",
                    )
                if owner:
                    os.chown(path, owner.uid, owner.gid)
    if top is None:
        raise NotIntactError(f"{archive.name} holds no cluster", hint="Take another base backup.")


def _write(descriptor: int, piece: memoryview) -> None:
    while piece:
        piece = piece[os.write(descriptor, piece) :]
