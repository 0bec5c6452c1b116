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
    def retryable(self) -> bool:
        """True if a retry can help with one of the errors: what has succeeded is not done again."""
        return any(fault.retryable for fault in self.faults)

    @property
    def exit_code(self) -> int:
        """The exit code for a program."""
        return self.faults[0].exit_code if self.faults else 0

    @property
    def errors(self) -> tuple[str, ...]:
        """Each error with its hint."""
        return tuple(dict.fromkeys(map(str, self.faults)))

    @property
    def error(self) -> str | None:
        """All errors with their hints."""
        return "\n".join(self.errors) or None
