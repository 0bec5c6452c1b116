"""Which archives an incremental needs, and which need it. This module is pure.

A base needs no other archive. An incremental has one parent, which may be an incremental too. The input to `Chains` may
be wrong in every way, since people copy and remove archives: parents may be missing, or form a circle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from portal.ops.errors import NotIntactError
from portal.ops.hints import Advice

if TYPE_CHECKING:
    from collections.abc import Iterable


def missing_link() -> str:
    """The hint for a missing or wrong archive in a chain."""
    return f"Copy it here again from where it was kept, or take an older archive: {Advice.LIST_ARCHIVES} shows them."


@dataclass(frozen=True, kw_only=True)
class Link:
    """An archive's place in a chain, by its manifest.

    Arguments:
        backup_id: the archive.
        parent: its parent; None for a base.
    """

    backup_id: str
    parent: str | None = None


class Chains:
    """The dependencies of all archives in a repository.

    Arguments:
        links: one for each archive.
    """

    def __init__(self, links: Iterable[Link]) -> None:
        self._parents = {link.backup_id: link.parent for link in links}
        self._children: dict[str, list[str]] = {}
        for backup_id, parent in self._parents.items():
            if parent is not None:
                self._children.setdefault(parent, []).append(backup_id)

    def needed(self, backup_id: str) -> tuple[str, ...]:
        """The archives needed to restore an archive: its base first, itself last.

        Raises:
            NotIntactError: one of them is missing, or they form a circle.
        """
        line = [backup_id]
        while (parent := self._parents.get(line[-1])) is not None:
            if parent in line:
                raise circle(backup_id, parent)
            line.append(parent)
        if line[-1] not in self._parents:
            raise absent(line[-2] if len(line) > 1 else backup_id, line[-1])
        return tuple(reversed(line))

    def dependents(self, backup_id: str) -> tuple[str, ...]:
        """The archives that depend on an archive, nearest first."""
        found: dict[str, None] = {}
        todo = [backup_id]
        while todo:
            for child in sorted(self._children.get(todo.pop(0), ())):
                if child not in found and child != backup_id:
                    found[child] = None
                    todo.append(child)
        return tuple(found)

    def head(self, base: str) -> str:
        """The end of the longest chain from a base, which the next incremental follows."""
        return (base, *self.dependents(base))[-1]


def absent(backup_id: str, parent: str) -> NotIntactError:
    """The error for a missing archive that another one needs."""
    return NotIntactError(f"{backup_id} needs {parent}, which is not there", hint=missing_link())


def circle(backup_id: str, parent: str) -> NotIntactError:
    """The error for a chain without a base."""
    return NotIntactError(f"{backup_id} has no base: {parent} needs itself", hint=missing_link())
