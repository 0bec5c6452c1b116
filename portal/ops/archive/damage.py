"""Damage in an archive, and its place."""

from __future__ import annotations

from typing import NamedTuple

from portal.ops.archive.index import Member, MemberType
from portal.ops.errors import NotIntactError
from portal.ops.hints import another_archive


class Damage(NamedTuple):
    """A place where the archive is not what it should be.

    Arguments:
        what: what is wrong, in words.
        frame: the frame it is in, where there is one.
        path: the member that it hits, where it can be told.
    """

    what: str
    frame: int | None = None
    path: str | None = None

    def __str__(self) -> str:
        where = [f"frame {self.frame}"] if self.frame is not None else []
        if self.path is not None:
            where.insert(0, self.path)
        return f"{', '.join(where)}: {self.what}" if where else self.what


class DamagedError(NotIntactError):
    """A damage met on the way."""

    def __init__(self, damage: Damage) -> None:
        super().__init__(str(damage), hint=another_archive())
        self.damage = damage


def is_below(path: str, top: str) -> bool:
    """True if a member's path is `top` or lies below it."""
    return path == top or path.startswith(f"{top}/")


def checked(member: Member) -> Member:
    """The member, if its path stays inside the archive's directory.

    Raises:
        NotIntactError: it does not, or holds something that no path has.
    """
    for path in (member.path, member.link) if member.type is MemberType.HARDLINK else (member.path,):
        parts = path.split("/")
        if "\x00" in path or "" in parts or "." in parts or ".." in parts:
            raise DamagedError(Damage(what="the archive has a path that leads out of it, or none at all", path=path))
    if member.size < 0 or member.at < 0 or member.frame < 0 or "\x00" in member.link:
        raise DamagedError(Damage(what="the index says something impossible of it", path=member.path))
    return member
