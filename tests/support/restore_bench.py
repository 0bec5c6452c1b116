"""A history of restores over parts that only note what becomes of them, on a disk that outlives every process."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, cast

from portal.ops.errors import RestoreError
from portal.ops.model import Component
from portal.ops.repository.repository import Repository
from portal.ops.restore.history import RestoreHistory
from portal.ops.restore.journal import RestoreRecord, RestoreRecords, RestoreState

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from portal.ops.restore.components import Part

RESTORE_ID: Final = "restore_20260102_030405_ab12cd"
NOW: Final = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
PARTS: Final = ("database", "media", "audit_logs")


class Killed(BaseException):
    """The process is gone: nothing that it would still have done happens."""


@dataclass
class Disk:
    """What outlives a process: how far each part is. A process dies, or an operation fails, at a chosen step.

    Arguments:
        deadly: the number of the step that the process does not survive; `before` or after its effect.
        failing: names of operations that fail.
    """

    parts: dict[str, str]
    deadly: int = -1
    before: bool = False
    failing: set[str] = field(default_factory=set)
    discarded: list[str] = field(default_factory=list)
    steps: int = 0
    dead: bool = False

    def step(self, name: str, effect: Callable[[], Any] = lambda: None) -> None:
        """Do something that lasts."""
        if self.dead:
            raise Killed
        self.steps += 1
        if self.steps == self.deadly:
            self.dead = True
            if not self.before:
                effect()
            raise Killed
        if name in self.failing:
            raise RestoreError(f"{name} fails")
        effect()


class FakePart:
    """A part of a restore without a restore: it only changes what the disk says of it."""

    def __init__(self, name: str, disk: Disk) -> None:
        self.component = Component(name)
        self._name = name
        self._disk = disk

    def apply(self) -> dict[str, Any]:
        """Staged becomes new."""
        if self._disk.parts[self._name] != "new":
            if self._disk.parts[self._name] != "staged":
                raise RestoreError("nothing is staged")
            self._disk.step(f"apply {self._name}", lambda: self._become("new"))
        return {"warnings": []}

    def finish(self) -> dict[str, Any]:
        """As apply."""
        return self.apply()

    def is_begun(self) -> bool:
        """Whether it is new."""
        self._disk.step(f"look at {self._name}")
        return self._disk.parts[self._name] == "new"

    def undo(self) -> None:
        """Whatever it is becomes old."""
        self._disk.step(f"undo {self._name}", lambda: self._become("old"))

    def roll_back(self) -> dict[str, Any]:
        """New becomes old."""
        if self._disk.parts[self._name] == "new":
            self._disk.step(f"roll back {self._name}", lambda: self._become("old"))
        return {}

    def record(self) -> dict[str, Any]:
        """Nothing but where it is."""
        return {"host": "h", "port": 1, "database": "d"} if self._name == "database" else {"path": f"/{self._name}"}

    def kept(self, *, rolled_back: bool) -> str:
        """What is kept."""
        return f"the old {self._name}"

    def discard(self) -> tuple[str, ...]:
        """Nothing is kept any more but what it says."""
        self._disk.step(f"discard {self._name}", lambda: self._disk.discarded.append(self._name))
        return (f"a bit of {self._name}",) if self._name == "media" else ()

    def _become(self, what: str) -> None:
        self._disk.parts[self._name] = what


class DyingRecords(RestoreRecords):
    """Records of a process that can die when it writes them."""

    def __init__(self, repository: Repository, disk: Disk) -> None:
        super().__init__(repository)
        self._disk = disk

    def save(self, record: RestoreRecord, **changes: Any) -> RestoreRecord:
        """Write, or die before or after it."""
        self._disk.step("save", lambda: RestoreRecords.save(self, record, **changes))
        return replace(record, **changes)

    def remove(self, record: RestoreRecord) -> None:
        """Remove, or die before or after it."""
        self._disk.step("remove", lambda: RestoreRecords.remove(self, record))


@dataclass
class Bench:
    """A history over parts that are staged."""

    path: Path
    disk: Disk = field(default_factory=lambda: Disk(parts=dict.fromkeys(PARTS, "staged")))

    def history(self) -> RestoreHistory:
        """The history, as a process that was started now sees it."""
        return RestoreHistory(
            DyingRecords(Repository(self.path), self.disk),
            parts_of=lambda record: [cast("Part", FakePart(name, self.disk)) for name in record.parts],
            clock=lambda: NOW,
            days=7,
        )

    def parts(self) -> list[Part]:
        """The parts of the one restore."""
        return [cast("Part", FakePart(name, self.disk)) for name in PARTS]

    def begin(self) -> RestoreRecord:
        """Write down that it is being staged."""
        (self.path / ".restores").mkdir(exist_ok=True)
        return self.history().begin(
            RESTORE_ID, "full_1", "/a", {name: FakePart(name, self.disk).record() for name in PARTS}
        )

    def apply(self) -> RestoreRecord:
        """Stage and apply."""
        record = self.begin()
        self.history().apply(record, self.parts())
        return self.history().record(RESTORE_ID)

    def restart(self, **changes: Any) -> None:
        """From now on another process."""
        fresh: dict[str, Any] = {"deadly": -1, "failing": set(), "steps": 0, "dead": False}
        self.disk = replace(self.disk, **(fresh | changes))

    def live(self) -> set[str]:
        """What is live, over all parts; staged means that the old is."""
        return {"old" if state == "staged" else state for state in self.disk.parts.values()}

    def states(self) -> list[RestoreState]:
        """The states on the disk."""
        return [record.state for record in RestoreRecords(Repository(self.path)).all()]


def roll_back(bench: Bench) -> object:
    """Take the applied restore back."""
    history = bench.history()
    return history.roll_back(history.record(RESTORE_ID))
