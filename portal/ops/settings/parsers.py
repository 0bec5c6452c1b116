"""One setting: its name, what it means, how its text becomes a value. The shapes of values are here, once for all.

A parser takes the text and gives a value, or raises `UnusableError`, whose message goes on after "the value".
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final, Generic, TypeVar
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from portal.ops.settings.database_url import DatabaseUrlError, Secret, UrlParts, parse_database_url
from portal.ops.settings.destination import Destination, DestinationError, parse_destinations

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Rules = Mapping[str, Mapping[str, int]]
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


T_co = TypeVar("T_co", covariant=True)
Choice = TypeVar("Choice", bound=StrEnum)

MOST: Final = 999_999_999
HUNDRED_YEARS: Final = 36_500
MOST_KEPT: Final = 1_000_000
"""So many archives, hours or days a rule of retention counts at the most."""
OFF: Final = "off"

_DURATION: Final = re.compile(r"([0-9]{1,9})\s*([smhd])")
_RECIPIENT: Final = re.compile(r"age1[02-9ac-hj-np-z]{58}")
_YES: Final = ("on", "true", "yes", "1")
_NO: Final = (OFF, "false", "no", "0")
_RULE_NUMBER: Final = re.compile(r"[0-9]{1,6}")
_ANY_MOMENT: Final = datetime(2024, 1, 1, tzinfo=UTC)
_CRON_FIELDS: Final = 5
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class UnusableError(ValueError):
    """A value cannot be used. The message goes on after "the value" and holds nothing of a secret one."""


def as_text(text: str) -> str:
    """Take anything."""
    return text


def as_secret(text: str) -> Secret | None:
    """Take anything, and never show it."""
    return Secret(text) if text else None


def whole_number(low: int, high: int = MOST) -> Callable[[str], int]:
    """Make a parser of whole numbers from `low` to `high`."""

    def parse(text: str) -> int:
        digits = text.strip()
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 9 and low <= int(digits) <= high):
            limits = f"from {low} to {high}" if high < MOST else f"of {low} or more"
            raise UnusableError(f"is not a whole number {limits}")
        return int(digits)

    return parse


def optional_jobs(text: str) -> int | None:
    """Take a number of processes, or nothing."""
    return whole_number(1, 1024)(text) if text else None


def optional_port(text: str) -> int | None:
    """Take a port, or nothing."""
    return whole_number(1, 65535)(text) if text else None


def switch(text: str) -> bool:
    """Take ``on`` or ``off``."""
    word = text.strip().lower()
    if word not in ("on", OFF):
        raise UnusableError(f"is neither on nor {OFF}")
    return word == "on"


def optional_switch(text: str) -> bool | None:
    """Take ``on`` or ``off``, ``true`` or ``false``, ``1`` or ``0``, or nothing."""
    word = text.strip().lower()
    if word in ("", *_YES, *_NO):
        return word in _YES if word else None
    raise UnusableError("is neither on nor off")


def destinations(text: str) -> tuple[Destination, ...]:
    """Take URLs of off-site stores with spaces between them."""
    try:
        return parse_destinations(text)
    except DestinationError as error:
        raise UnusableError(str(error)) from None


def recipients(text: str) -> tuple[str, ...]:
    """Take age public keys with spaces or commas between them; whether each is one, whoever encrypts finds out."""
    found = tuple(text.replace(",", " ").split())
    if secret := [one for one in found if one.upper().startswith("AGE-SECRET-KEY-")]:
        raise UnusableError(f"holds {len(secret)} secret key(s); expected public keys only, which start with age1")
    if not all(_RECIPIENT.fullmatch(one) for one in found):
        raise UnusableError("is not a row of age public keys (age1 and 58 letters and digits)")
    if len(set(found)) < len(found):
        raise UnusableError("names the same recipient twice")
    return found


def signers(text: str) -> tuple[str, ...]:
    """Take public keys of 64 hexadecimal digits, with spaces between them, or the word ``any``."""
    found = tuple(text.lower().split())
    for one in found:
        if one != "any" and not re.fullmatch("[0-9a-f]{64}", one):
            raise UnusableError(
                f"has {one[:80]!r}, which is no signer: 64 hexadecimal digits, as a list of copies shows"
            )
    return found


def words_of(kinds: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Make a parser of some of the words `kinds`, with spaces or commas between them."""

    def parse(text: str) -> tuple[str, ...]:
        found = tuple(text.lower().replace(",", " ").split())
        if strange := [one for one in found if one not in kinds]:
            raise UnusableError(f"has {strange[0]!r}, which is none of {', '.join(kinds)}")
        return found

    return parse


def directory(text: str) -> Path:
    """Take an absolute path: a relative one would be another place for cron than for a person."""
    if not text.startswith("/"):
        raise UnusableError("is not an absolute path")
    return Path(text)


def optional_directory(text: str) -> Path | None:
    """Take an absolute path, or nothing."""
    return directory(text) if text else None


def directories(text: str) -> tuple[Path, ...]:
    """Take absolute paths with colons between them, as PATH has them."""
    return tuple(directory(part) for part in text.split(":") if part)


def one_of(kind: type[Choice]) -> Callable[[str], Choice]:
    """Make a parser of the words of an enumeration."""

    def parse(text: str) -> Choice:
        try:
            return kind(text.strip().lower())
        except ValueError:
            raise UnusableError(f"is none of {', '.join(kind)}") from None

    return parse


def rules(kinds: Sequence[str], words: Sequence[str]) -> Callable[[str], Rules]:
    """Make a parser of rules for kinds: ``database: count 48, hourly 24; media: days 7``.

    Arguments:
        kinds: what there may be a rule for.
        words: what a rule gives numbers for.
    """

    def parse(text: str) -> Rules:
        found: dict[str, dict[str, int]] = {}
        faults = []
        for part in filter(None, (part.strip() for part in text.lower().split(";"))):
            kind, _, wanted = (piece.strip() for piece in part.partition(":"))
            if kind not in kinds:
                faults.append(f"has a rule for {kind!r}, which is none of {', '.join(kinds)}")
            elif kind in found:
                faults.append(f"has two rules for {kind}")
            else:
                found[kind] = {}
                faults += filter(None, (_add(one.split(), kind, found[kind], words) for one in wanted.split(",")))
        if faults:
            raise UnusableError("; it ".join(faults))
        return found

    return parse


def _add(given: Sequence[str], kind: str, rule: dict[str, int], words: Sequence[str]) -> str:
    """Add a word and its number to the rule of a kind; what is wrong with them."""
    if len(given) != 2 or given[0] not in words or not _RULE_NUMBER.fullmatch(given[1]):
        said = f"says {' '.join(given)!r} for {kind}, and not something such as 'days 7'"
        return f"{said}; the words are {', '.join(words)}, the numbers less than {MOST_KEPT}"
    if given[0] in rule:
        return f"says {given[0]} twice for {kind}"
    rule[given[0]] = int(given[1])
    return ""


def duration(text: str) -> timedelta:
    """Take a whole number with its unit: ``90s``, ``15m``, ``2h``, ``8d``."""
    found = _DURATION.fullmatch(text.strip().lower())
    if not found or timedelta(days=HUNDRED_YEARS) < (value := timedelta(**{_UNITS[found[2]]: int(found[1])})):
        raise UnusableError("is not a time such as 90s, 15m, 2h or 8d")
    return value


def command(text: str) -> tuple[str, ...]:
    """Take a program and its arguments, quoted as for a shell, which is not used; nothing for none."""
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise UnusableError(f"is not a command: {error}") from None


def web_url(text: str) -> str | None:
    """Take the URL of a page, or nothing."""
    if not text:
        return None
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UnusableError("is not a URL such as http://localhost:8000/api/v1/health")
    return text


def cron(text: str) -> str | None:
    """Take a cron expression of five fields, as in crontab(5); nothing for ``off``."""
    if text.strip().lower() == OFF:
        return None
    if why := why_no_cron(text):
        raise UnusableError(f"is neither a cron expression such as '0 2 * * *' nor {OFF} ({why})")
    return text


def why_no_cron(text: str) -> str:
    """The reason why a text is no cron expression of five fields, as in crontab(5); empty if it is one."""
    from cronsim import CronSim, CronSimError

    try:
        if len(text.split()) != _CRON_FIELDS:  # a sixth one would count seconds
            raise CronSimError("Wrong number of fields")
        CronSim(text, _ANY_MOMENT)
    except CronSimError as error:
        return str(error)
    return ""


def time_zone(text: str) -> ZoneInfo:
    """Take the name of a time zone, such as ``Europe/Berlin``."""
    try:
        return ZoneInfo(text.strip())
    except (OSError, ValueError, LookupError):
        raise UnusableError("is not a time zone such as UTC or Europe/Berlin") from None


def database_url(text: str) -> UrlParts:
    """Take a URL of a PostgreSQL database."""
    try:
        return parse_database_url(text) if text else {}
    except DatabaseUrlError as error:
        raise UnusableError(str(error)) from None


@dataclass(frozen=True, kw_only=True)
class Setting(Generic[T_co]):
    """One variable of the environment.

    Arguments:
        meaning: what the table of the documentation says.
        parse: turns the text into a value, or raises `UnusableError`.
        default: the text that counts where none is set.
        without: what the table says where there is no default.
        secret: its value is never shown, and can be given as a file by the variable with ``_FILE`` behind its name.
        empty_counts: an empty text is a value, not a variable that is not set.
    """

    name: str
    meaning: str
    parse: Callable[[str], T_co]
    default: str = ""
    without: str = "(optional)"
    secret: bool = False
    empty_counts: bool = False


def own_numbers(numbers: Mapping[str, int], *, days: int, count: int) -> dict[str, int]:
    """The numbers of a rule for one type: what it says, and nothing of the general rule.

    Only where it says neither how many days nor how many backups, it has those of the general rule.

    Arguments:
        numbers: what it says.
        days: those of the general rule; likewise `count`.
    """
    usual = {"days": 0, "count": 0} if {"days", "count"} & numbers.keys() else {"days": days, "count": count}
    return usual | dict(numbers)
