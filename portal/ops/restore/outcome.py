"""Builds the result of a restore; facts that are known stay in it, whatever happens next."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from portal.ops.errors import OpsError, RestoreError
from portal.ops.limits import system_errors
from portal.ops.repository.faults import explain_any
from portal.ops.runtime.logs import engine_log

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from portal.ops.restore.config import RestoreResult

log = engine_log("portal.ops.restore")

_AGAIN: Final = "Then start it again: it goes on, or undoes what was begun."


@dataclass(kw_only=True)
class ResultBuilder:
    """Builds a result; facts that are known stay in it, whatever happens next."""

    result: RestoreResult

    def note(self, **facts: Any) -> None:
        """Set fields of the result."""
        self.result = replace(self.result, **facts)

    def warn(self, warnings: Sequence[str]) -> None:
        """Add a warning, once."""
        known = self.result.warnings
        self.note(warnings=(*known, *(warning for warning in warnings if warning not in known)))

    def fail(self, error: OpsError) -> None:
        """Set the error."""
        log.error("restore_failed", error=str(error))
        self.note(success=False, error=str(error), exit_code=error.exit_code)


@contextmanager
def reported(builder: ResultBuilder) -> Iterator[None]:
    """Turn every error into the result, and add the duration."""
    started = time.monotonic()
    try:
        with system_errors():
            yield
    except OpsError as error:
        builder.fail(error)
    except OSError as error:
        builder.fail(explain_any(error, _AGAIN, kind=RestoreError))
    builder.note(duration_seconds=time.monotonic() - started)


def warnings_of(facts: Mapping[str, Any]) -> list[str]:
    """The warnings in the facts of all parts."""
    return [str(warning) for fact in facts.values() for warning in fact.get("warnings", ())]
