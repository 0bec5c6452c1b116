"""The common part of results for several destinations, each of which may fail separately."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from portal.ops.errors import OpsError


@dataclass(frozen=True, kw_only=True)
class DestinationsResult:
    """The result of a job for several destinations.

    Arguments:
        warnings: what should be known.
        faults: the errors; the first one determines the exit code.
    """

    warnings: tuple[str, ...] = ()
    faults: tuple[OpsError, ...] = ()
    duration_seconds: float = 0.0

    @property
    def success(self) -> bool:
        """True without errors."""
        return not self.faults

    @property
    def exit_code(self) -> int:
        """The exit code for a program."""
        return self.faults[0].exit_code if self.faults else 0

    @property
    def error(self) -> str | None:
        """The error with its hint."""
        return "\n".join(dict.fromkeys(map(str, self.faults))) or None
