"""Runs: neighbouring members that share frames with no other members, so that each run can be read alone.

A run is usually one frame of small files, or the frames of one large file.
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
    """Consecutive members, and the frames that hold only them."""

    frames: range
    members: list[Member]


def runs(members: Iterable[Member], frame_count: int) -> Iterator[Run]:
    """Split the members of a whole archive into the shortest possible runs.

    Arguments:
        members: all members, in the order of the tar.
        frame_count: the number of frames in the archive.

    Raises:
        NotIntactError: the members are out of order, or there are more than a run can have.
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
    """A run of members, with the frames from its first member to the start of the next run."""
    frames = range(members[0].frame, end)
    if not frames:
        raise _damage("the index is not in the order of the archive", members[0])
    return Run(frames, members)


def _damage(what: str, member: Member) -> DamagedError:
    return DamagedError(Damage(what=what, frame=member.frame, path=member.path))
