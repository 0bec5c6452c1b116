"""What the operating system refuses is told with the path, the reason and what to do."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from portal.ops.errors import DiskFullError, OpsError, RepositoryError, StorageError
from portal.ops.repository.faults import disk_full, explain, explain_any, is_full

PATH = Path("/backups/it's")


def refused(number: int, path: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), path)


@pytest.mark.parametrize(
    ("number", "hints", "kind", "hint"),
    [
        (errno.ENOSPC, {"denied": "D", "hint": "H"}, DiskFullError, "Free space on its file system; nothing of"),
        (errno.EDQUOT, {}, DiskFullError, "Free space on its file system; nothing of"),
        (errno.EACCES, {}, RepositoryError, "Run this as the user that the backups belong to"),
        (errno.EPERM, {"hint": "H"}, RepositoryError, "Run this as the user that the backups belong to"),
        (errno.EACCES, {"denied": "D", "hint": "H"}, RepositoryError, "D"),
        (errno.EIO, {"denied": "D"}, RepositoryError, "Look at the disk and its mount; BACKUP_LOCAL_PATH names it."),
        (errno.EIO, {"denied": "D", "hint": "H"}, RepositoryError, "H"),
    ],
)
def test_a_reason_has_a_hint(number: int, hints: dict[str, str], kind: type[OpsError], hint: str) -> None:
    """A full disk, a user without permission, and anything else."""
    found = explain(refused(number), "cannot read", PATH, **hints)
    assert type(found) is kind
    assert found.message.startswith(f"cannot read {PATH}: ")
    assert found.hint.startswith(hint)
    assert is_full(refused(number)) is (kind is DiskFullError)


def test_a_command_of_a_hint_is_quoted() -> None:
    """It can be copied to a shell."""
    assert explain(refused(errno.EACCES), "cannot read", PATH).hint.endswith("""kekkai:kekkai '/backups/it'"'"'s'""")


def test_an_error_of_a_number_alone_has_a_reason() -> None:
    """One that was made without a text gets that of its number; one without a number is told as it is."""
    bare = explain(OSError(errno.EROFS, ""), "cannot write to", PATH)
    assert bare.message == explain(refused(errno.EROFS), "cannot write to", PATH).message
    assert "read-only file system" in bare.message
    assert explain(OSError("odd"), "cannot read", PATH).message == f"cannot read {PATH}: odd"


def test_an_error_somewhere_names_the_path_if_the_system_does() -> None:
    """It is of the kind that is asked for, unless a disk is full."""
    found = explain_any(refused(errno.EIO, "/there"), "Do this.")
    assert (type(found), found.hint) == (RepositoryError, "Look at the disk and the permissions there. Do this.")
    assert found.message.startswith("cannot use /there: ")
    other = explain_any(refused(errno.EIO), "Do this.", kind=StorageError)
    assert type(other) is StorageError
    assert other.message.startswith("the operating system refused: ")
    full = explain_any(refused(errno.ENOSPC), "Do this.", kind=StorageError)
    assert (type(full), full.hint) == (DiskFullError, "Free space on its file system. Do this.")
    denied = explain_any(refused(errno.EACCES), "Do this.")
    assert denied.hint.startswith("Run this as root, or as the user whose it is")
    assert explain_any(refused(errno.EMFILE), "Do this.").hint.endswith("or LimitNOFILE= of the unit. Do this.")
    assert explain_any(refused(errno.EIO)).hint == "Look at the disk and the permissions there."


def test_a_limit_is_no_matter_of_a_disk() -> None:
    """The hint says what to raise."""
    assert "ulimit -n" in explain(refused(errno.EMFILE), "cannot read", PATH, hint="H").hint


def test_no_room_for_an_archive() -> None:
    """The directory is named, and what becomes of the part that was written."""
    found = disk_full(PATH)
    assert found.message == f"no space left for the archive in {PATH}"
    assert "the unfinished one is removed" in found.hint
