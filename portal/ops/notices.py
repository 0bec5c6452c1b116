"""Whom to tell what: when something begins to fail or a target to be missed, when that ends, and once a day meanwhile.

What is going on is kept in `.notices.json` in the repository, so that a restart repeats nothing. Where that cannot be
written (a disk that is full or gone is what people most need to hear of), the memory of this process has to do.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from portal.ops.failures import answered, failure_of, is_failure
from portal.ops.job import Clock, utc_now
from portal.ops.logs import engine_log
from portal.ops.repository import write_durably

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from portal.ops.access_log import AccessEntry
    from portal.ops.status_model import Miss

log = engine_log("portal.ops.notices")

NAME: Final = ".notices.json"

_LOCK_NAME: Final = ".notices.lock"
_VERSION: Final = 1
_AGAIN: Final = timedelta(days=1)
_UNDELIVERED_AGAIN: Final = timedelta(minutes=30)
_FAILURE: Final = "failure "
_MISS: Final = "target "

Teller = Callable[[str, str], bool]
"""Sends a title and a text; whether they arrived."""


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """Something that goes on.

    Arguments:
        since: when it began.
        told: when people were last told.
        what: what it is, in a sentence or two.
    """

    since: datetime
    told: datetime
    what: str

    def to_dict(self) -> dict[str, str]:
        """The trouble in the types of JSON."""
        return {"since": self.since.isoformat(), "told": self.told.isoformat(), "what": self.what}

    @classmethod
    def from_dict(cls, facts: dict[str, str]) -> Trouble:
        """The trouble that `to_dict` made; ValueError, KeyError or TypeError where it makes no sense."""
        since, told = datetime.fromisoformat(facts["since"]), datetime.fromisoformat(facts["told"])
        if since.tzinfo is None or told.tzinfo is None:
            raise ValueError("no time zone")
        return cls(since=since, told=told, what=str(facts["what"]))


Troubles = dict[str, Trouble]
"""What goes on, by its kind."""


@dataclass(frozen=True, kw_only=True)
class News:
    """Something to tell.

    Arguments:
        kind: what it is about; it has to be told again where that could not be delivered.
        headline: a few words.
        text: sentences.
    """

    kind: str
    headline: str
    text: str


def news_of_entry(troubles: Troubles, entry: AccessEntry) -> list[News]:
    """What there is to tell of something that was done; `troubles` is brought up to date."""
    if is_failure(entry):
        failure = failure_of(entry)
        kind = f"{_FAILURE}{failure.kind}"
        what = f"{failure.error or 'no reason was noted'}{_mend(failure.hint)}"
        if kind in troubles:
            troubles[kind] = replace(troubles[kind], what=what)
            return []
        troubles[kind] = Trouble(since=entry.moment, told=entry.moment, what=what)
        who = f"{entry.subject}, started by {entry.who} on {entry.host}, {_at(entry.moment)}"
        return [News(kind=kind, headline=f"{failure.kind} failed", text=f"FAILED: {failure.kind} ({who})\n{what}")]
    failing = [kind.removeprefix(_FAILURE) for kind in troubles if kind.startswith(_FAILURE)]
    return [
        _ended(troubles, f"{_FAILURE}{kind}", f"{kind} works again", entry.moment)
        for kind in sorted(answered(entry, failing))
    ]


def news_of_targets(troubles: Troubles, misses: Sequence[Miss], now: datetime) -> list[News]:
    """What there is to tell of targets; `troubles` is brought up to date."""
    news = []
    missed = {f"{_MISS}{miss.target}": f"{_sentence(miss.what)}{_mend(miss.mend)}" for miss in misses}
    for kind, what in missed.items():
        if kind not in troubles:
            troubles[kind] = Trouble(since=now, told=now, what=what)
            news.append(News(kind=kind, headline=f"{kind} missed", text=f"TARGET MISSED: {what}"))
        else:
            troubles[kind] = replace(troubles[kind], what=what)
    over = [kind for kind in troubles if kind.startswith(_MISS) and kind not in missed]
    return news + [_ended(troubles, kind, f"{kind} met again", now) for kind in sorted(over)]


def reminders(troubles: Troubles, now: datetime) -> list[News]:
    """What goes on and was last told of a day ago."""
    news = []
    for kind, trouble in sorted(troubles.items()):
        if now - trouble.told >= _AGAIN:
            troubles[kind] = replace(trouble, told=now)
            text = f"STILL: {kind.partition(' ')[2]}, {_since(trouble)}\n{trouble.what}"
            news.append(News(kind=kind, headline=f"{kind.removeprefix(_FAILURE)} still not well", text=text))
    return news


def _ended(troubles: Troubles, kind: str, headline: str, now: datetime) -> News:
    trouble = troubles.pop(kind)
    return News(kind=kind, headline=headline, text=f"WELL AGAIN: {headline}, {_at(now)}. It was not {_since(trouble)}.")


def _since(trouble: Trouble) -> str:
    return f"since {_at(trouble.since).removeprefix('at ')}"


def _at(moment: datetime) -> str:
    return f"at {moment:%Y-%m-%d %H:%M} {moment.tzname()}"


def _mend(hint: str) -> str:
    return f"\nWhat to do: {hint}" if hint else ""


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


class Notices:
    """Tells people, and remembers what they were told.

    Arguments:
        directory: the repository, which has the memory.
        host: this machine's name, for the title.
        tell: sends a title and a text; whether they arrived.
    """

    def __init__(self, directory: Path, *, host: str, tell: Teller, clock: Clock = utc_now) -> None:
        self._directory = directory
        self._host = host
        self._tell = tell
        self._clock = clock
        self._memory: Troubles = {}

    def after(self, entry: AccessEntry | None, misses: Sequence[Miss] | None) -> None:
        """Tell what is new.

        Arguments:
            entry: what was done; nothing where only time has passed.
            misses: the targets that are missed; nothing where that is not known.
        """
        with self._remembered() as troubles:
            news = news_of_entry(troubles, entry) if entry else []
            if misses is not None:
                news += news_of_targets(troubles, misses, self._clock())
            news += reminders(troubles, self._clock())
        if news and not self._tell(self._title(news), "\n\n".join(one.text for one in news)):
            self._postpone(news)

    def _title(self, news: Sequence[News]) -> str:
        what = news[0].headline if len(news) == 1 else f"{news[0].headline}, and {len(news) - 1} more"
        return f"Kekkai backup on {self._host}: {what}"

    def _postpone(self, news: Sequence[News]) -> None:
        """What did not arrive is told again after a while; that something is over is not."""
        told = self._clock() - _AGAIN + _UNDELIVERED_AGAIN
        with self._remembered() as troubles:
            for kind in {one.kind for one in news} & troubles.keys():
                troubles[kind] = replace(troubles[kind], told=told)

    @contextmanager
    def _remembered(self) -> Iterator[Troubles]:
        """What goes on, to be changed; written down in the end, for this and every other process."""
        try:
            lock = os.open(self._directory / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError:
            yield self._memory
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # held for the time of a small file's writing
            before = self._load()
            troubles = dict(before)
            yield troubles
            self._memory = troubles
            if troubles != before:
                self._save(troubles)
        finally:
            os.close(lock)

    def _load(self) -> Troubles:
        try:
            found: Any = json.loads((self._directory / NAME).read_bytes())
            return {str(kind): Trouble.from_dict(facts) for kind, facts in found["troubles"].items()}
        except FileNotFoundError:
            return dict(self._memory)
        except (OSError, ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            log.warning("notices_unreadable", reason=type(error).__name__)
            return dict(self._memory)

    def _save(self, troubles: Troubles) -> None:
        facts = {kind: trouble.to_dict() for kind, trouble in troubles.items()}
        try:
            write_durably(self._directory / NAME, json.dumps({"version": _VERSION, "troubles": facts}).encode() + b"\n")
        except OSError as error:
            log.warning("notices_unremembered", reason=error.strerror)
