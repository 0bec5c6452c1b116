"""What is said of a member that cannot be restored, whoever meets it. Helper processes import it, so it is small."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from portal.ops.errors import NotIntactError

if TYPE_CHECKING:
    from portal.ops.archive.index import Member

HINT: Final = "Do not trust this archive; take another one: './tools/backup.sh list' shows them."


def twice(member: Member) -> NotIntactError:
    """The error where something stands in a member's place."""
    return NotIntactError(
        f"{member.path} comes twice, or as a file and as a directory, or in two spellings that this file system "
        "takes for one",
        hint=HINT,
    )


def no_file(member: Member) -> NotIntactError:
    """The error where a hard link has nothing to be another name of."""
    return NotIntactError(f"{member.path} is a link to {member.link}, which is no file before it", hint=HINT)
