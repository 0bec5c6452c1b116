"""Collects changes until there is a pause, or the first one has waited long enough. This module reads no clock.

Paths are relative to the uploads. A directory that was created, moved or removed includes everything below it, so
further paths in it are not listed: a burst of files in new directories stays small.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_PATHS: Final = 5000
"""The most paths in a list; with more, the whole tree is examined."""


class Debounce:
    """The changes that no change set has yet. Times are seconds of a monotonic clock.

    Arguments:
        quiet: seconds without changes before a change set is due.
        latest: the most seconds that a change waits.
    """

    def __init__(self, quiet: float, latest: float) -> None:
        self._quiet = quiet
        self._latest = latest
        self._paths: set[str] = set()
        self._trees: set[str] = set()
        self._begun: dict[str, float] = {}
        self._first = 0.0
        self._last = 0.0
        self._is_all = False

    def add(self, path: str, now: float, *, is_tree: bool = False) -> None:
        """Add a change.

        Arguments:
            is_tree: everything below it may have changed too.
        """
        self._begun.pop(path, None)
        self._count(now)
        if self._is_all:
            return
        if is_tree:
            self._trees.add(path)
        elif not self._is_covered(path):
            self._paths.add(path)
        self._limit(now)

    def begin(self, path: str, now: float) -> None:
        """Add a new name; a file need not be backed up before it is closed.

        A link is never closed, and neither may be a file that its writer keeps open: these are taken when they have
        waited long enough.
        """
        if not self._is_all and path not in self._paths and not self._is_covered(path):
            self._begun.setdefault(path, now)
            self._limit(now)

    def add_all(self, now: float) -> None:
        """Note that anything may have changed."""
        self._count(now)
        self._is_all = True
        self._paths.clear()
        self._trees.clear()
        self._begun.clear()

    def due_at(self) -> float | None:
        """When to take the next change set; None without changes."""
        times = []
        if self._paths or self._trees or self._is_all:
            times.append(min(self._last + self._quiet, self._first + self._latest))
        if self._begun:
            times.append(next(iter(self._begun.values())) + self._latest)
        return min(times, default=None)

    def take(self, now: float) -> tuple[frozenset[str], bool]:
        """Take the changes; return them, and whether a scan is needed instead."""
        old = [path for path, begun in self._begun.items() if begun + self._latest <= now]
        for path in old:
            del self._begun[path]
        trees = frozenset(tree for tree in self._trees if not self._is_covered(tree))
        paths = frozenset(path for path in (*self._paths, *old) if not self._is_covered(path))
        is_all = self._is_all
        self._paths.clear()
        self._trees.clear()
        self._is_all = False
        return trees | paths, is_all

    def _count(self, now: float) -> None:
        if not (self._paths or self._trees or self._is_all):
            self._first = now
        self._last = now

    def _is_covered(self, path: str) -> bool:
        return any(parent in self._trees for parent in parents(path)) if self._trees else False

    def _limit(self, now: float) -> None:
        if len(self._paths) + len(self._trees) + len(self._begun) > MOST_PATHS:
            self.add_all(now)


def parents(path: str) -> Iterator[str]:
    """The directories above a path, outermost first."""
    end = path.find("/")
    while end > 0:
        yield path[:end]
        end = path.find("/", end + 1)
