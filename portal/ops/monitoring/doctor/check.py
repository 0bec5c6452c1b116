"""A check and what it finds; checks are made one by one, and none of them can stop the others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from threading import Thread
from typing import TYPE_CHECKING, Final

from portal.ops.errors import OpsError
from portal.ops.repository.faults import explain_any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

LONGEST_SECONDS: Final = 25.0


class State(StrEnum):
    """The severity."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of a check.

    Arguments:
        state: a fault makes a backup or a restore fail; a warning should be known.
        what: what was seen, in one line.
        mend: what to do about it; nothing where all is well.
        name: the check's name, which is filled in when the check is made.
    """

    state: State
    what: str
    mend: str = ""
    name: str = ""

    def to_dict(self) -> dict[str, str]:
        """The finding in the types of JSON."""
        return {"name": self.name, "state": self.state.value, "what": self.what, "mend": self.mend}


@dataclass(frozen=True, kw_only=True)
class Check:
    """Something to look at.

    Arguments:
        name: what is looked at, in a word or two.
        look: returns what it found; an `OpsError` that it raises is a fault with its hint.
    """

    name: str
    look: Callable[[], Finding]


def ok(what: str) -> Finding:
    """All is well."""
    return Finding(state=State.OK, what=what)


def warning(what: str, mend: str) -> Finding:
    """Something that should be known."""
    return Finding(state=State.WARNING, what=what, mend=mend)


def fault(what: str, mend: str) -> Finding:
    """Something that makes a backup or a restore fail."""
    return Finding(state=State.FAULT, what=what, mend=mend)


def examine(checks: Iterable[Check], *, seconds: float = LONGEST_SECONDS) -> Iterator[Finding]:
    """Make the checks, one after the other.

    Arguments:
        seconds: how long each may take; one that hangs is left behind, and the next one begins.
    """
    for check in checks:
        yield replace(_bounded(check, seconds), name=check.name)


def _bounded(check: Check, seconds: float) -> Finding:
    found: list[Finding] = []
    thread = Thread(target=lambda: found.append(_look(check)), name=f"check-{check.name}", daemon=True)
    thread.start()
    thread.join(seconds)
    if found:
        return found[0]
    return fault(f"no answer within {seconds:g} s", "See whether the disk, the mount or the server behind it hangs.")


def _look(check: Check) -> Finding:
    try:
        return check.look()
    except OpsError as error:
        return fault(error.message, error.hint)
    except OSError as error:
        refused = explain_any(error, "Look at its permissions and the disk.")
        return fault(refused.message, refused.hint)
    except Exception as error:
        # Not its text: nobody knows what that holds.
        return fault(
            f"the check itself failed ({type(error).__name__})", "Report it; the other checks are not touched."
        )
