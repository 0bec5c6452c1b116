"""The result of a restore while it is built: what is known so far counts, whatever happens next."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from portal.ops.errors import OpsError, RestoreError
from portal.ops.repository.faults import explain_any
from portal.ops.runtime.logs import engine_log

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from portal.ops.restore.config import RestoreResult

log = engine_log("portal.ops.restore")

_AGAIN: Final = "Look at the disk and the permissions there, then start it again: it goes on, or undoes what was begun."


@dataclass(kw_only=True)
class ResultBuilder:
    """A result while it is built: what is known so far counts, whatever happens next."""

    result: RestoreResult

    def note(self, **facts: Any) -> None:
        """Know more of it."""
        self.result = replace(self.result, **facts)

    def warn(self, warnings: Sequence[str]) -> None:
        """Add what should be known, and is not said yet."""
        known = self.result.warnings
        self.note(warnings=(*known, *(warning for warning in warnings if warning not in known)))

    def fail(self, error: OpsError) -> None:
        """It did not succeed."""
        log.error("restore_failed", error=str(error))
        self.note(success=False, error=str(error), exit_code=error.exit_code)


@contextmanager
def reported(builder: ResultBuilder) -> Iterator[None]:
    """Every fault becomes part of the result, and so does the time that it took."""
    started = time.monotonic()
    try:
        yield
    except OpsError as error:
        builder.fail(error)
    except OSError as error:
        builder.fail(explain_any(error, _AGAIN, kind=RestoreError))
    builder.note(duration_seconds=time.monotonic() - started)


def warnings_of(facts: Mapping[str, Any]) -> list[str]:
    """The warnings among the facts of all parts."""
    return [str(warning) for fact in facts.values() for warning in fact.get("warnings", ())]
