"""Alerts: sent when a failure or a missed target begins, when it is resolved, and once a day in between.

Problems are recorded in `.notices.json` in the repository, so that a restart repeats no alert; resolved ones stay until
that was reported. If the file cannot be written (a full or missing disk is what people most need to know of), the
memory of this process serves. If another process holds its lock, a failure is reported nevertheless; the rest is left
to the next call.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from portal.ops.codec import decode, encode
from portal.ops.model import Component
from portal.ops.monitoring.failures import answered, failure_of, is_failure, name_of
from portal.ops.repository.durable import open_own, write_whole
from portal.ops.repository.locks import lock_within
from portal.ops.runtime.logs import engine_log
from portal.ops.runtime.progress import Clock, utc_now
from portal.ops.units import system_reason

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from portal.ops.monitoring.model import Miss
    from portal.ops.repository.access_log import AccessEntry

log = engine_log("portal.ops.monitoring.alerts")

NAME: Final = ".notices.json"

_LOCK_NAME: Final = ".notices.lock"
_VERSION: Final = 1
_AGAIN: Final = timedelta(days=1)
_UNDELIVERED_AGAIN: Final = timedelta(minutes=30)
_PATIENCE_SECONDS: Final = 3.0

_FAILURE: Final = "failure "
_MISS: Final = "target "
_AGES: Final = {"rpo": "age of the newest backup", "verified": "age of the newest verified backup"}
"""The first words of targets of a component, and their names for people."""

Teller = Callable[[str, str], bool]
"""Sends a title and a text; returns whether they were delivered."""


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """A problem that continues, or that is resolved and not yet reported as such.

    Arguments:
        since: when it began.
        told: when it was last reported.
        what: a description of one or two sentences.
        over: when it was resolved; None while it continues.
    """

    since: datetime
    told: datetime
    what: str
    over: datetime | None = None


Troubles = dict[str, Trouble]
"""Continuing problems, and resolved ones not yet reported, by kind."""


@dataclass(frozen=True, kw_only=True)
class News:
    """An alert.

    Arguments:
        kind: the kind of problem, to repeat the alert if delivery fails.
        headline: a few words.
        text: the full text.
    """

    kind: str
    headline: str
    text: str


def news_of_entry(troubles: Troubles, entry: AccessEntry, now: datetime) -> list[News]:
    """The alert for an operation, if any; updates `troubles`."""
    if is_failure(entry):
        failure = failure_of(entry)
        kind = f"{_FAILURE}{failure.kind}"
        what = f"{failure.error or 'no reason was noted'}{_mend(failure.hint)}"
        if _goes_on(troubles, kind):
            troubles[kind] = replace(troubles[kind], what=what)
            return []
        troubles[kind] = Trouble(since=entry.moment, told=now, what=what)
        name = name_of(failure.kind)
        who = f"{entry.subject}, started by {entry.who} on {entry.host}, {_at(entry.moment)}"
        return [News(kind=kind, headline=f"{name} failed", text=f"FAILED: {name} ({who})\n{what}")]
    failing = [
        kind.removeprefix(_FAILURE) for kind in troubles if kind.startswith(_FAILURE) and _goes_on(troubles, kind)
    ]
    over = [f"{_FAILURE}{kind}" for kind in sorted(answered(entry, failing))]
    return [_ended(troubles, kind, entry.moment, now) for kind in over]


def news_of_targets(troubles: Troubles, misses: Sequence[Miss], now: datetime) -> list[News]:
    """Alerts for targets; updates `troubles`."""
    news = []
    missed = {f"{_MISS}{miss.target}": f"{_sentence(miss.what)}{_mend(miss.mend)}" for miss in misses}
    for kind, what in missed.items():
        if _goes_on(troubles, kind):
            troubles[kind] = replace(troubles[kind], what=what)
        else:
            troubles[kind] = Trouble(since=now, told=now, what=what)
            news.append(News(kind=kind, headline=f"target missed: {_name(kind)}", text=f"TARGET MISSED: {what}"))
    over = [kind for kind in troubles if kind.startswith(_MISS) and kind not in missed and _goes_on(troubles, kind)]
    return news + [_ended(troubles, kind, now, now) for kind in sorted(over)]


def reminders(troubles: Troubles, now: datetime) -> list[News]:
    """Problems that continue and were last reported a day ago, and resolved ones not yet reported."""
    news = []
    for kind, trouble in sorted(troubles.items()):
        if now - trouble.told < (_UNDELIVERED_AGAIN if trouble.over else _AGAIN):
            continue
        troubles[kind] = replace(trouble, told=now)
        if trouble.over:
            news.append(_over(kind, trouble, trouble.over))
        else:
            state = "still missed" if kind.startswith(_MISS) else "still failing"
            text = f"{state.upper()}: {_name(kind)}, {_since(trouble)}\n{trouble.what}"
            news.append(News(kind=kind, headline=f"{_name(kind)}: {state}", text=text))
    return news


def _goes_on(troubles: Troubles, kind: str) -> bool:
    return kind in troubles and not troubles[kind].over


def _ended(troubles: Troubles, kind: str, moment: datetime, now: datetime) -> News:
    """The alert for a resolved problem, which stays in `troubles` until it is delivered."""
    troubles[kind] = trouble = replace(troubles[kind], over=moment, told=now)
    return _over(kind, trouble, moment)


def _over(kind: str, trouble: Trouble, moment: datetime) -> News:
    is_target = kind.startswith(_MISS)
    headline = f"target met again: {_name(kind)}" if is_target else f"{_name(kind)} works again"
    before = "Missed" if is_target else "Failing"
    text = f"RESOLVED: {headline}, {_at(moment)}. {before} {_since(trouble)}."
    return News(kind=kind, headline=headline, text=text)


def _name(kind: str) -> str:
    """The name of a problem for people."""
    if kind.startswith(_FAILURE):
        return name_of(kind.removeprefix(_FAILURE))
    target = kind.removeprefix(_MISS)
    what, _, component = target.partition("_")
    if what in _AGES and component in set(Component):
        return f"{_AGES[what]} of the {Component(component).spoken}"
    return target.replace("_", " ")


def _encoded(trouble: Trouble) -> dict[str, Any]:
    return {name: value for name, value in encode(trouble).items() if value is not None}


def _since(trouble: Trouble) -> str:
    return f"since {_at(trouble.since).removeprefix('at ')}"


def _at(moment: datetime) -> str:
    return f"at {moment:%Y-%m-%d %H:%M} {moment.tzname()}"


def _mend(hint: str) -> str:
    return f"\nWhat to do: {hint}" if hint else ""


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


class _Memory(NamedTuple):
    """Continuing problems, to be updated.

    Arguments:
        troubles: the problems.
        locked: whether other processes are kept from updating them.
    """

    troubles: Troubles
    locked: bool


class AlertSender:
    """Sends alerts, and records what was sent.

    Arguments:
        directory: the repository, which holds the record.
        host: the machine's name for titles.
        tell: sends a title and a text; returns whether they were delivered.
        patience: the most seconds to wait for another process's lock.
    """

    def __init__(
        self, directory: Path, *, host: str, tell: Teller, clock: Clock = utc_now, patience: float = _PATIENCE_SECONDS
    ) -> None:
        self._directory = directory
        self._host = host
        self._tell = tell
        self._clock = clock
        self._patience = patience
        self._memory: Troubles = {}
        self._unwritten: Troubles = {}

    def after(self, entry: AccessEntry | None, misses: Sequence[Miss] | None) -> None:
        """Send what is new. While the record is locked, send only a failure, which no other process would report.

        Arguments:
            entry: the finished operation; None if only time has passed.
            misses: the missed targets; None if unknown.
        """
        now = self._clock()
        news = []
        with self._remembered(self._patience) as (troubles, locked):
            if entry and (locked or is_failure(entry)):
                news += news_of_entry(troubles, entry, now)
            if locked and misses is not None:
                news += news_of_targets(troubles, misses, now)
            if locked:
                news += reminders(troubles, now)
            told = {one.kind: troubles[one.kind] for one in news}
        if not news:
            return
        if not self._tell(self._title(news), "\n\n".join(one.text for one in news)):
            self._postpone(told, self._patience if locked else 0)
        elif any(trouble.over for trouble in told.values()):
            self._forget(told)

    def _title(self, news: Sequence[News]) -> str:
        what = news[0].headline if len(news) == 1 else f"{news[0].headline}, and {len(news) - 1} more"
        return f"Kekkai backup on {self._host}: {what}"

    def _postpone(self, told: Troubles, patience: float) -> None:
        """Schedule undelivered alerts for another attempt."""
        with self._remembered(patience) as (troubles, _):
            for kind in [kind for kind in told if _goes_on(troubles, kind)]:
                troubles[kind] = replace(troubles[kind], told=self._clock() - _AGAIN + _UNDELIVERED_AGAIN)

    def _forget(self, told: Troubles) -> None:
        """Remove a problem that was reported as resolved, unless it has begun again."""
        with self._remembered(self._patience) as (troubles, _):
            for kind in [kind for kind, trouble in told.items() if trouble.over and troubles.get(kind) == trouble]:
                del troubles[kind]

    @contextmanager
    def _remembered(self, patience: float) -> Iterator[_Memory]:
        """Load the continuing problems, and save them at the end.

        If the lock is not free in time, new problems are kept for the next call and nothing is saved.
        """
        try:
            lock = open_own(self._directory / _LOCK_NAME)
        except OSError:
            yield _Memory(self._memory, locked=True)
            return
        try:
            locked = lock_within(lock, fcntl.LOCK_EX, patience)  # briefly, for writing a small file
            before = self._load()
            troubles = self._unwritten | before
            yield _Memory(troubles, locked=locked)
            if not locked:
                log.warning("alert_state_locked", path=str(self._directory / _LOCK_NAME))
                self._unwritten = {kind: trouble for kind, trouble in troubles.items() if kind not in before}
                return
            self._memory, self._unwritten = troubles, {}
            if troubles != before:
                self._save(troubles)
        finally:
            os.close(lock)

    def _load(self) -> Troubles:
        try:
            found: Any = json.loads((self._directory / NAME).read_bytes())
            return {str(kind): decode(Trouble, facts) for kind, facts in found["troubles"].items()}
        except FileNotFoundError:
            return dict(self._memory)
        except (OSError, ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            log.warning("alert_state_unreadable", reason=type(error).__name__)
            return dict(self._memory)

    def _save(self, troubles: Troubles) -> None:
        facts = {kind: _encoded(trouble) for kind, trouble in troubles.items()}
        try:
            write_whole(self._directory / NAME, json.dumps({"version": _VERSION, "troubles": facts}).encode() + b"\n")
        except OSError as error:
            log.warning("alert_state_unsaved", reason=system_reason(error))
