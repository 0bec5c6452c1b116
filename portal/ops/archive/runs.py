"""Runs: neighbouring members that have their frames to themselves, so that each run can be read without the others.

Mostly that is one frame with a handful of small files in it, or the frames of one large file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from portal.ops.archive.damage import Damage, DamagedError
from portal.ops.archive.index import FRAME_MAX
from portal.ops.archive.tar import BLOCK

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from portal.ops.archive.index import Member


class Run(NamedTuple):
    """Members, and the frames that hold them and nothing else."""

    frames: range
    members: list[Member]


def runs(members: Iterable[Member], frame_count: int) -> Iterator[Run]:
    """Cut the members of a whole archive into runs, each as short as it can be.

    Arguments:
        members: all of them, in the order of the tar.
        frame_count: how many frames the archive has.

    Raises:
        NotIntactError: the index has members in another order, or more of them than a run can have.
    """
    gathered: list[Member] = []
    header_bytes = 0
    for member in members:
        if member.at == 0 and gathered:
            yield _run(gathered, min(member.frame, frame_count))
            gathered, header_bytes = [], 0
        gathered.append(member)
        header_bytes += BLOCK + len(member.path) + len(member.link)
        if header_bytes > FRAME_MAX:
            raise _damage("the index has more members here than a frame can hold", gathered[0])
    if gathered:
        yield _run(gathered, frame_count)


def _run(members: list[Member], end: int) -> Run:
    """The frames from the one that the first member is in to where the next run begins."""
    frames = range(members[0].frame, end)
    if not frames:
        raise _damage("the index is not in the order of the archive", members[0])
    return Run(frames, members)


def _damage(what: str, member: Member) -> DamagedError:
    return DamagedError(Damage(what=what, frame=member.frame, path=member.path))
