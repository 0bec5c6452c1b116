"""The plan of a restore: what it would do, in words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from portal.ops.model import spoken_names

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from portal.ops.errors import OpsError
    from portal.ops.model import Component


class PartPlan(Protocol):
    """The plan for one component."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings."""

    @property
    def blockers(self) -> tuple[OpsError, ...]:
        """The errors that make it impossible."""

    def lines(self) -> list[str]:
        """The plan in plain words."""


@dataclass(frozen=True, kw_only=True)
class RestorePlan:
    """The plan of a restore.

    Arguments:
        backup_id: what is restored.
        timestamp: when the backup was made.
        components: the components to restore.
        parts: the plan for each component.
        warnings: what should be known.
        blockers: the errors that make it impossible; empty if it can start.
        takes_back: the restore that is rolled back, if this is the plan of a rollback.
        sources: the sources of a restore to a moment, in words.
        is_moment: whether it is a restore to a moment, which `backup_id` names then.
        targets: the places that this restore went to, in words.
        discards: the restore whose rollback data is discarded, if that is planned; `kept` describes that data.
    """

    backup_id: str
    backup_file: Path
    timestamp: str
    components: tuple[Component, ...]
    parts: Mapping[Component, PartPlan] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    blockers: tuple[OpsError, ...] = ()
    takes_back: str = ""
    targets: tuple[str, ...] = ()
    discards: str = ""
    kept: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    is_moment: bool = False

    def lines(self) -> list[str]:
        """The plan in plain words."""
        what = spoken_names(self.components)
        if self.takes_back:
            before = f"Roll back {self.takes_back}: {what} as before {self.backup_id} was restored."
            return [before, *(f"  {target}" for target in self.targets)]
        if self.discards:
            return [
                f"Discard the rollback data of {self.discards} ({self.backup_id}): no rollback is possible afterwards. "
                "Removed for ever:",
                *(f"  {kept}" for kept in self.kept),
            ]
        made = f", made {self.timestamp.replace('T', ' ').replace('Z', ' UTC')}" if self.timestamp else ""
        source = f"as of {self.backup_id}" if self.is_moment else f"from {self.backup_id}{made}"
        lines = [f"Restore {what} {source}.", *self.sources]
        for component, plan in self.parts.items():
            lines += ["", component.spoken.capitalize(), *(f"  {line}" for line in plan.lines())]
        if self.warnings:
            lines += ["", *(f"Warning: {warning}" for warning in self.warnings)]
        if self.blockers:
            lines += ["", *(f"In the way: {blocker}" for blocker in self.blockers)]
        return lines
