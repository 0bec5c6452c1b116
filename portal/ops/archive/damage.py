"""Damage in an archive and where it is."""

from __future__ import annotations

from typing import NamedTuple

from portal.ops.archive.index import Member, MemberType
from portal.ops.errors import NotIntactError
from portal.ops.hints import another_archive


class Damage(NamedTuple):
    """One damaged place in an archive.

    Arguments:
        what: a description of the damage.
        frame: the number of the damaged frame, if known.
        path: the affected member, if known.
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
    """Raised by a reader when it meets damage."""

    def __init__(self, damage: Damage) -> None:
        super().__init__(str(damage), hint=another_archive())
        self.damage = damage


def is_below(path: str, top: str) -> bool:
    """True if a member's path is `top` or below it."""
    return path == top or path.startswith(f"{top}/")


def checked(member: Member) -> Member:
    """Return the member if its path stays inside the archive's directory.

    Raises:
        NotIntactError: the path leads out, or contains what no valid path contains.
    """
    for path in (member.path, member.link) if member.type is MemberType.HARDLINK else (member.path,):
        parts = path.split("/")
        if "\x00" in path or "" in parts or "." in parts or ".." in parts:
            raise DamagedError(Damage(what="the archive has a path that leads out of it, or none at all", path=path))
    if member.size < 0 or member.at < 0 or member.frame < 0 or "\x00" in member.link:
        raise DamagedError(Damage(what="the index says something impossible of it", path=member.path))
    return member
