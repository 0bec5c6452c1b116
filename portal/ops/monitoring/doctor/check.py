"""Checks and their findings; checks run one after the other, and none can stop the others."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass, replace
from enum import StrEnum
from threading import Thread
from typing import TYPE_CHECKING, Final

from portal.ops.errors import OpsError
from portal.ops.limits import system_errors
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
    """The finding of a check.

    Arguments:
        state: the severity: a fault makes a backup or a restore fail.
        what: the observation, in one line.
        mend: what to do; empty if nothing.
        name: the check's name, filled in when it is run.
    """

    state: State
    what: str
    mend: str = ""
    name: str = ""

    def to_dict(self) -> dict[str, str]:
        """The finding as types of JSON."""
        return {"name": self.name, "state": self.state.value, "what": self.what, "mend": self.mend}


@dataclass(frozen=True, kw_only=True)
class Check:
    """Something to look at.

    Arguments:
        name: what is checked, in a word or two.
        look: returns a finding; an `OpsError` that it raises becomes a fault with its hint.
    """

    name: str
    look: Callable[[], Finding]


def ok(what: str) -> Finding:
    """A finding without a problem."""
    return Finding(state=State.OK, what=what)


def warning(what: str, mend: str) -> Finding:
    """A finding that needs attention."""
    return Finding(state=State.WARNING, what=what, mend=mend)


def fault(what: str, mend: str) -> Finding:
    """A finding that makes a backup or a restore fail."""
    return Finding(state=State.FAULT, what=what, mend=mend)


def this_user() -> str:
    """The name of the user that this process runs as."""
    return user_name(os.geteuid())


def user_name(number: int) -> str:
    """The name of a user of this machine, or the number of one that has none."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def examine(checks: Iterable[Check], *, seconds: float = LONGEST_SECONDS) -> Iterator[Finding]:
    """Run checks one after the other.

    Arguments:
        seconds: the time for each; a check that hangs is abandoned, and the next one runs.
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
        with system_errors():
            return check.look()
    except OpsError as error:
        return fault(error.message, error.hint)
    except OSError as error:
        refused = explain_any(error)
        return fault(refused.message, refused.hint)
    except Exception as error:
        # Not the exception's text, which might contain a secret.
        return fault(
            f"the check itself failed ({type(error).__name__})", "Report it; the other checks are not touched."
        )
