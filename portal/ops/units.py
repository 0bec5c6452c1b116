"""Formats amounts, times and operating system errors for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import timedelta

_UNITS: Final = ("B", "kB", "MB", "GB", "TB")


def printable(text: str, most: int | None = 500) -> str:
    """Escape control characters in text from outside, for a terminal, a page or a log.

    Otherwise line ends, cursor movements and reversed text could imitate other output.

    Arguments:
        most: the most characters to show; None for all.
    """
    if text.isprintable():
        return text[:most]
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text[:most])


def human_bytes(count: float) -> str:
    """A number of bytes for people, such as ``210 MB``."""
    size = float(count)
    for unit in _UNITS:
        if size < 1000 or unit == _UNITS[-1]:
            break
        size /= 1000
    return f"{size:.0f} {unit}" if size >= 100 or unit == "B" else f"{size:.1f} {unit}"


def first_line(said: str) -> str:
    """The first line with words of what a server or a program said, and ``it says nothing`` if there is none."""
    return next((line.strip() for line in said.splitlines() if line.strip()), "it says nothing")


def counted(count: int, noun: str, plural: str = "") -> str:
    """A number of things: ``1 table``, ``2,000 tables``."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def span(time: timedelta) -> str:
    """An age for people: ``90 s``, ``45 min``, ``26 h``, ``3 days``."""
    seconds = max(0, round(time.total_seconds()))
    for size, most, unit in ((1, 120, "s"), (60, 120, "min"), (3600, 48, "h")):
        if seconds < most * size:
            return f"{seconds // size} {unit}"
    return f"{seconds // 86400} days"


def duration(seconds: float) -> str:
    """A duration, to the second: ``45 s``, ``2:09 min``, ``1:02:09 h``."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{rest:02d} h"
    return f"{minutes}:{rest:02d} min" if minutes else f"{rest} s"


def exact_duration(seconds: float) -> str:
    """A duration, with tenths of a second below a minute: ``0.4 s``, ``2:09 min``."""
    return f"{seconds:.1f} s" if seconds < 59.95 else duration(seconds)


def system_reason(error: OSError) -> str:
    """The reason of an operating system error, as the end of a sentence: ``permission denied``."""
    said = error.strerror or str(error)
    if not said:
        return type(error).__name__
    return said[:1].lower() + said[1:] if said[1:2].islower() else said
