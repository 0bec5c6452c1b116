"""The parsers of settings' values, and the description of one setting.

A parser takes the text and returns a value, or raises `UnusableError`, whose message continues "the value".
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

T_co = TypeVar("T_co", covariant=True)
Choice = TypeVar("Choice", bound=StrEnum)

MOST: Final = 999_999_999
HUNDRED_YEARS: Final = 36_500
MOST_KEPT: Final = 1_000_000
"""The greatest number in a retention rule."""
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
    """Raised for an invalid value. The message continues "the value" and contains nothing of a secret."""


def as_text(text: str) -> str:
    """Accept any text."""
    return text


def as_secret(text: str) -> Secret | None:
    """Accept any text as a secret."""
    return Secret(text) if text else None


def whole_number(low: int, high: int = MOST) -> Callable[[str], int]:
    """Make a parser for whole numbers from `low` to `high`."""

    def parse(text: str) -> int:
        digits = text.strip()
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 9 and low <= int(digits) <= high):
            raise UnusableError(f"is not a whole number from {low} to {high}")
        return int(digits)

    return parse


def optional_jobs(text: str) -> int | None:
    """Parse a number of processes, or nothing."""
    return whole_number(1, 1024)(text) if text else None


def optional_port(text: str) -> int | None:
    """Parse a port, or nothing."""
    return whole_number(1, 65535)(text) if text else None


def switch(text: str) -> bool:
    """Parse ``on`` or ``off``."""
    word = text.strip().lower()
    if word not in ("on", OFF):
        raise UnusableError(f"is neither on nor {OFF}")
    return word == "on"


def optional_switch(text: str) -> bool | None:
    """Parse ``on`` or ``off``, ``true`` or ``false``, ``1`` or ``0``, or nothing."""
    word = text.strip().lower()
    if word in ("", *_YES, *_NO):
        return word in _YES if word else None
    raise UnusableError("is neither on nor off")


def destinations(text: str) -> tuple[Destination, ...]:
    """Parse URLs of off-site stores, separated by spaces."""
    try:
        return parse_destinations(text)
    except DestinationError as error:
        raise UnusableError(str(error)) from None


def recipients(text: str) -> tuple[str, ...]:
    """Split age public keys at spaces or commas; they are checked when they are used for encryption."""
    found = tuple(text.replace(",", " ").split())
    if secret := [one for one in found if one.upper().startswith("AGE-SECRET-KEY-")]:
        raise UnusableError(f"holds {len(secret)} secret key(s); expected public keys only, which start with age1")
    if not all(_RECIPIENT.fullmatch(one) for one in found):
        raise UnusableError("is not a row of age public keys (age1 and 58 letters and digits)")
    if len(set(found)) < len(found):
        raise UnusableError("names the same recipient twice")
    return found


def signers(text: str) -> tuple[str, ...]:
    """Parse public keys of 64 hexadecimal digits, separated by spaces, or the word ``any``."""
    found = tuple(text.lower().split())
    for one in found:
        if one != "any" and not re.fullmatch("[0-9a-f]{64}", one):
            raise UnusableError(
                f"has {one[:80]!r}, which is no signer: 64 hexadecimal digits, as a list of copies shows"
            )
    return found


def words_of(kinds: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Make a parser for some of the words `kinds`, separated by spaces or commas."""

    def parse(text: str) -> tuple[str, ...]:
        found = tuple(text.lower().replace(",", " ").split())
        if strange := [one for one in found if one not in kinds]:
            raise UnusableError(f"has {strange[0]!r}, which is none of {', '.join(kinds)}")
        return found

    return parse


def directory(text: str) -> Path:
    """Parse an absolute path: a relative one would mean different places to cron and to a person."""
    if not text.startswith("/"):
        raise UnusableError("is not an absolute path")
    return Path(text)


def optional_directory(text: str) -> Path | None:
    """Parse an absolute path, or nothing."""
    return directory(text) if text else None


def directories(text: str) -> tuple[Path, ...]:
    """Parse absolute paths separated by colons, as in PATH."""
    return tuple(directory(part) for part in text.split(":") if part)


def one_of(kind: type[Choice]) -> Callable[[str], Choice]:
    """Make a parser for the words of an enumeration."""

    def parse(text: str) -> Choice:
        try:
            return kind(text.strip().lower())
        except ValueError:
            raise UnusableError(f"is none of {', '.join(kind)}") from None

    return parse


def rules(kinds: Sequence[str], words: Sequence[str]) -> Callable[[str], Rules]:
    """Make a parser for rules by kind: ``database: count 48, hourly 24; media: days 7``.

    Arguments:
        kinds: the permitted kinds.
        words: the permitted words, each followed by a number.
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
    """Add a word and its number to the rule for a kind; return an error message, if any."""
    if len(given) != 2 or given[0] not in words or not _RULE_NUMBER.fullmatch(given[1]):
        said = f"says {' '.join(given)!r} for {kind}, and not something such as 'days 7'"
        return f"{said}; the words are {', '.join(words)}, the numbers less than {MOST_KEPT}"
    if given[0] in rule:
        return f"says {given[0]} twice for {kind}"
    rule[given[0]] = int(given[1])
    return ""


def duration(text: str) -> timedelta:
    """Parse a whole number with a unit: ``90s``, ``15m``, ``2h``, ``8d``."""
    found = _DURATION.fullmatch(text.strip().lower())
    if not found or timedelta(days=HUNDRED_YEARS) < (value := timedelta(**{_UNITS[found[2]]: int(found[1])})):
        raise UnusableError("is not a time such as 90s, 15m, 2h or 8d")
    return value


def command(text: str) -> tuple[str, ...]:
    """Parse a program and its arguments, quoted as for a shell, which is not used."""
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise UnusableError(f"is not a command: {error}") from None


def web_url(text: str) -> str | None:
    """Parse the URL of a web page, or nothing."""
    if not text:
        return None
    try:
        parts = urlsplit(text)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_usable = False
    if not is_usable:
        raise UnusableError("is not a URL such as http://localhost:8000/api/v1/health")
    return text


def cron(text: str) -> str | None:
    """Parse a cron expression of five fields, as in crontab(5); None for ``off``."""
    if text.strip().lower() == OFF:
        return None
    if why := why_no_cron(text):
        raise UnusableError(f"is neither a cron expression such as '0 2 * * *' nor {OFF} ({why})")
    return text


def why_no_cron(text: str) -> str:
    """Why a text is no cron expression of five fields; empty if it is one."""
    from cronsim import CronSim, CronSimError

    try:
        if len(text.split()) != _CRON_FIELDS:  # a sixth field would be seconds
            raise CronSimError("Wrong number of fields")
        CronSim(text, _ANY_MOMENT)
    except CronSimError as error:
        return str(error)
    return ""


def time_zone(text: str) -> ZoneInfo:
    """Parse the name of a time zone, such as ``Europe/Berlin``."""
    try:
        return ZoneInfo(text.strip())
    except (OSError, ValueError, LookupError):
        raise UnusableError("is not a time zone such as UTC or Europe/Berlin") from None


def database_url(text: str) -> UrlParts:
    """Parse the URL of a PostgreSQL database."""
    try:
        return parse_database_url(text) if text else {}
    except DatabaseUrlError as error:
        raise UnusableError(str(error)) from None


@dataclass(frozen=True, kw_only=True)
class Setting(Generic[T_co]):
    """One variable of the environment.

    Arguments:
        meaning: the description in the documentation's table.
        parse: converts the text to a value, or raises `UnusableError`.
        default: the text that is used if none is set.
        without: what the table shows if there is no default.
        secret: whether the value is never shown, and can be given as a file in the variable with the suffix ``_FILE``.
        empty_counts: whether an empty text is a value, and does not mean that the variable is not set.
    """

    name: str
    meaning: str
    parse: Callable[[str], T_co]
    default: str = ""
    without: str = "(optional)"
    secret: bool = False
    empty_counts: bool = False


def own_numbers(numbers: Mapping[str, int], *, days: int, count: int) -> dict[str, int]:
    """The numbers of a type's rule, without those of the general rule.

    Only if it has neither days nor a count, it gets those of the general rule.

    Arguments:
        numbers: the numbers of the type's rule.
        days: the days of the general rule; likewise `count`.
    """
    usual = {"days": 0, "count": 0} if {"days", "count"} & numbers.keys() else {"days": days, "count": count}
    return usual | dict(numbers)
