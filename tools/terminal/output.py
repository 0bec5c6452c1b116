"""Results, text and errors: what is written where, and in which colour."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import threading
import time
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Self, TextIO, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from portal.ops.errors import OpsError

T = TypeVar("T")

_LINES_AT_ONCE: Final = 1000
_CLEAR_LINE: Final = "\r\x1b[K"
_RESET: Final = "\x1b[0m"
_COLOURS: Final = {"good": "\x1b[32m", "warning": "\x1b[33m", "bad": "\x1b[31m", "head": "\x1b[1m", "dim": "\x1b[2m"}
_WORDS: Final = (
    (
        re.compile(r"\bNOT OK\b|\bMISSED\b|\bFAULT\b|\bDAMAGED\b|\bNOT COMPLETE\b[^\n]*|\bBROKEN\b|^error:|^fault:"),
        "bad",
    ),
    (re.compile(r"^OK\b|\bok\b(?= |$)|\bverified\b"), "good"),
    (re.compile(r"^warning\b:?|\bcut off\b"), "warning"),
    (re.compile(r"^ +(?:hint|fix):"), "dim"),
)


@dataclass(kw_only=True)
class _Style:
    """What this process writes.

    Arguments:
        json: a result is written as JSON to standard output; nothing decides by whether that is a terminal.
        quiet: only errors and warnings are told, and no progress.
        colour: text on a terminal may be coloured.
    """

    json: bool | None = None
    quiet: bool = False
    colour: bool = True


_style = _Style()
_writing = threading.RLock()
"""Held while something is written: the activity line is drawn by a thread of its own."""

last_write = 0.0
"""When something was written to the terminal last, on the monotonic clock."""

is_asking = False
"""Whether a question waits for its answer, so that nothing may be drawn."""


def configure_output(*, json: bool, quiet: bool, colour: bool) -> None:
    """Set what the command line asks for.

    Arguments:
        json: JSON and no text, even on a terminal.
        quiet: only errors and warnings, besides a result in JSON.
        colour: not switched off by an option.
    """
    _style.json = True if json else None
    _style.quiet = quiet
    _style.colour = colour


def is_json() -> bool:
    """Whether standard output gets the result as JSON."""
    return bool(_style.json) or not sys.stdout.isatty()


def is_quiet() -> bool:
    """Whether only errors and warnings are told."""
    return _style.quiet


def is_lively() -> bool:
    """Whether a person watches standard error and wants to see what is being done."""
    return sys.stderr.isatty() and not _style.quiet and not _style.json and not is_asking


def is_coloured(stream: TextIO) -> bool:
    """Whether text on a stream is coloured: https://no-color.org, and not where nobody sees it."""
    if not _style.colour or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return stream.isatty()


def width() -> int:
    """The columns that text may take."""
    return max(40, shutil.get_terminal_size().columns)


# -- text -----------------------------------------------------------------------------------------------------------


def say(text: str = "") -> None:
    """Tell a person something: on standard output if that is a terminal, otherwise on standard error."""
    if _style.quiet or _style.json:
        return
    _write_text(text, sys.stderr if is_json() else sys.stdout)


def warn(text: str) -> None:
    """Tell a person something that should not be missed."""
    if not _style.json:
        _write_text(f"warning: {text}", sys.stderr)


def say_error(error: OpsError | str) -> None:
    """Tell a person what went wrong, and what to do about it; with ``--json`` the result says it."""
    if not _style.json:
        _write_text(f"error: {error}", sys.stderr)


def coloured(text: str, colour: str, stream: TextIO) -> str:
    """The text in a colour, if the stream has colours."""
    return f"{_COLOURS[colour]}{text}{_RESET}" if is_coloured(stream) else text


def ask(question: str) -> str:
    """Ask the person at the terminal; the answer, without blanks around it."""
    global is_asking
    is_asking = True
    start = _CLEAR_LINE if sys.stderr.isatty() else ""
    try:
        tell(f"{start}{question}")
        return sys.stdin.readline().strip()
    finally:
        is_asking = False


class Lines:
    """Many lines for a person, written many at a time."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._write()

    def say(self, line: str) -> None:
        """Say a line, soon."""
        self._lines.append(line)
        if len(self._lines) >= _LINES_AT_ONCE:
            self._write()

    def passed(self, line: str, item: T) -> T:
        """Say a line about an item on its way; the item."""
        self.say(line)
        return item

    def _write(self) -> None:
        if self._lines:
            say("\n".join(self._lines))
        self._lines.clear()


def _write_text(text: str, stream: TextIO) -> None:
    if is_coloured(stream):
        text = "\n".join(_highlighted(line) for line in text.split("\n"))
    if stream is sys.stdout:
        with _writing:
            if sys.stderr.isatty():
                tell(_CLEAR_LINE)
            stream.write(f"{text}\n")
            stream.flush()
    else:
        start = _CLEAR_LINE if stream.isatty() else ""
        tell(f"{start}{text}\n")


def _highlighted(line: str) -> str:
    """Colour the words that a person looks for; a line that has colours already stays as it is."""
    if "\x1b" in line:
        return line
    for pattern, colour in _WORDS:
        line, count = pattern.subn(lambda found, colour=colour: f"{_COLOURS[colour]}{found[0]}{_RESET}", line)  # type: ignore[misc]
        if count:
            break
    return line


def tell(text: str) -> None:
    """Write to standard error as it is."""
    global last_write
    try:
        with _writing:
            sys.stderr.write(text)
            sys.stderr.flush()
            last_write = time.monotonic()
    except OSError:  # the work goes on, even if nobody listens any more or the log's disk is full
        hush(sys.stderr)


def hush(stream: TextIO) -> None:
    """Discard whatever is still to be written to a stream."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


# -- results --------------------------------------------------------------------------------------------------------


def print_result(result: Mapping[str, Any]) -> None:
    """Write the one JSON object of standard output, unless a person reads text there."""
    if not is_json():
        return
    json.dump(result, sys.stdout, indent=2 if sys.stdout.isatty() else None)
    sys.stdout.write("\n")
    sys.stdout.flush()


def print_listing(name: str, items: Iterable[Mapping[str, Any]], **others: Any) -> int:
    """Write a result that holds a list of any length, without holding it in memory; how many items there were."""
    if not is_json():
        return sum(1 for _ in items)
    newline = "\n  " if sys.stdout.isatty() else " "
    fields = "".join(f"{json.dumps(key)}: {json.dumps(value)},{newline}" for key, value in others.items())
    sys.stdout.write("{" + newline.rstrip(" ") + fields + f"{json.dumps(name)}: [")
    count, rest = 0, iter(items)
    while some := list(islice(rest, _LINES_AT_ONCE)):
        sys.stdout.write((f",{newline}" if count else "") + json.dumps(some)[1:-1])
        count += len(some)
    sys.stdout.write("]}\n")
    sys.stdout.flush()
    return count
