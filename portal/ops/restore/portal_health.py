"""Requests the portal's health page until the portal answers on restored data, or the time is over."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit, urlunsplit

from portal.ops.runtime.logs import engine_log
from portal.ops.units import duration, exact_duration

if TYPE_CHECKING:
    from collections.abc import Callable

log = engine_log("portal.ops.restore")

_PAUSE_SECONDS: Final = 1.0
_ANSWER_SECONDS: Final = 5.0


@dataclass(frozen=True, kw_only=True)
class HealthCheck:
    """The URL to ask, and the time limit.

    Arguments:
        url: the page; None if there is none.
        timeout_seconds: how long to wait for an answer.
    """

    url: str | None = None
    timeout_seconds: float = 60.0


@dataclass(frozen=True, kw_only=True)
class Health:
    """The result of a health check.

    Arguments:
        answers: whether the page reported success.
        url: the page, without a password.
        what: the last answer, in words.
        seconds: how long it took.
    """

    answers: bool
    url: str
    what: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The result as types of JSON."""
        return {"answers": self.answers, "url": self.url, "what": self.what, "seconds": round(self.seconds, 3)}

    def sentence(self) -> str:
        """The result in words."""
        if self.answers:
            return f"the portal answers at {self.url}: {self.what} after {exact_duration(self.seconds)}"
        return f"the portal does not answer at {self.url} after {duration(self.seconds)}: {self.what}"


def ask_portal(check: HealthCheck, *, sleep: Callable[[float], None] = time.sleep) -> Health | None:
    """Request the page until the portal answers or the time is over; None if there is no page."""
    if not check.url:
        return None
    started = time.monotonic()
    while True:
        answers, what = _answer(check.url)
        seconds = time.monotonic() - started
        if answers or seconds >= check.timeout_seconds:
            break
        sleep(min(_PAUSE_SECONDS, check.timeout_seconds - seconds))
    health = Health(answers=answers, url=_shown(check.url), what=what, seconds=seconds)
    tell = log.info if answers else log.warning
    tell("portal_asked", url=health.url, answers=answers, answer=what, seconds=round(seconds, 3))
    return health


def _answer(url: str) -> tuple[bool, str]:
    from http.client import HTTPException
    from urllib.error import HTTPError, URLError
    from urllib.request import Request, urlopen

    try:
        with urlopen(Request(url, headers={"User-Agent": "kekkai-backup"}), timeout=_ANSWER_SECONDS) as answer:  # noqa: S310
            return True, f"HTTP {answer.status}"
    except HTTPError as error:
        return False, f"HTTP {error.code}"
    except URLError as error:
        return False, str(error.reason)
    except (HTTPException, OSError, ValueError) as error:
        return False, str(error) or type(error).__name__


def _shown(url: str) -> str:
    """The URL without user, password and query, which may be secret."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
