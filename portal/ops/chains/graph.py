"""Chains: which archives an incremental needs, and which need it. Values in, values out.

A base stands by itself. An incremental has one parent, which may be an incremental too. What is given to `Chains` may
be wrong in every way, since archives are copied and removed by hand: a parent that is not there, parents in a circle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from portal.ops.errors import NotIntactError
from portal.ops.hints import Advice

if TYPE_CHECKING:
    from collections.abc import Iterable


def missing_link() -> str:
    """The hint where an archive of a chain is missing or another one."""
    return f"Copy it here again from where it was kept, or take an older archive: {Advice.LIST_ARCHIVES} shows them."


@dataclass(frozen=True, kw_only=True)
class Link:
    """An archive, by what its manifest says of its place in a chain.

    Arguments:
        backup_id: the archive.
        parent: the archive that it follows; nothing for a base.
    """

    backup_id: str
    parent: str | None = None


class Chains:
    """All archives of a repository, and how they hang together.

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
            NotIntactError: one of them is missing, or they go in a circle.
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
        """The archives that depend on an archive, the nearest first."""
        found: dict[str, None] = {}
        todo = [backup_id]
        while todo:
            for child in sorted(self._children.get(todo.pop(0), ())):
                if child not in found and child != backup_id:
                    found[child] = None
                    todo.append(child)
        return tuple(found)

    def head(self, base: str) -> str:
        """The end of the chain of a base: what the next incremental follows. Of several ends, the farthest."""
        return (base, *self.dependents(base))[-1]


def absent(backup_id: str, parent: str) -> NotIntactError:
    """The error for an archive that is needed and not there."""
    return NotIntactError(f"{backup_id} needs {parent}, which is not there", hint=missing_link())


def circle(backup_id: str, parent: str) -> NotIntactError:
    """The error for a chain without a base."""
    return NotIntactError(f"{backup_id} has no base: {parent} needs itself", hint=missing_link())
