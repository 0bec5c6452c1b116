"""Results, text and errors: what is written where, and in which colour.

Every text passes `_write_lines`, `tell` or `draw_line`, which let no control characters of others through: whatever
moves the cursor, colours or ends lines comes from this module. Each call of `say` writes one line; ends of lines within
it are escaped too, so that a file's name cannot pass for a line of ours.
"""

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

from portal.ops.units import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

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
    (re.compile(r"^warning\b:?|\binterrupted\b"), "warning"),
    (re.compile(r"^ +(?:hint|fix):"), "dim"),
)


@dataclass(kw_only=True)
class _Style:
    """The output of this process.

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
    """True if standard output gets the result as JSON."""
    return bool(_style.json) or not sys.stdout.isatty()


def is_quiet() -> bool:
    """True if only errors and warnings are told."""
    return _style.quiet


def is_lively() -> bool:
    """True if a person watches standard error and wants to see what is being done."""
    return sys.stderr.isatty() and not _style.quiet and not _style.json and not is_asking


def is_coloured(stream: TextIO) -> bool:
    """True if text on a stream is coloured: https://no-color.org, and not where nobody sees it."""
    if not _style.colour or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return stream.isatty()


def width() -> int:
    """The columns that text may take."""
    return max(40, shutil.get_terminal_size().columns)


# -- text -----------------------------------------------------------------------------------------------------------


def say(line: str = "", colour: str = "") -> None:
    """Tell a person something: on standard output if that is a terminal, otherwise on standard error.

    Arguments:
        line: one line, with empty ones before and after it if it begins and ends with ends of lines; the hint of an
            error in it stands on a line of its own.
        colour: of the whole line; without one, the words that a person looks for are coloured.
    """
    body = line.strip("\n")
    before, after = len(line) - len(line.lstrip("\n")), len(line) - len(line.rstrip("\n")) if body else 0
    _say_lines([*[""] * before, *(_with_hint(body) if body or not before else []), *[""] * after], colour)


def _say_lines(lines: Sequence[str], colour: str = "") -> None:
    if not (_style.quiet or _style.json):
        _write_lines(lines, sys.stderr if is_json() else sys.stdout, colour)


def warn(text: str) -> None:
    """Tell a person something that should not be missed; a hint in it stands on a line of its own."""
    if not _style.json:
        _write_lines(_with_hint(f"warning: {text}"), sys.stderr)


def say_error(error: OpsError | str, details: Sequence[str] = (), hint: str = "") -> None:
    """Tell a person what went wrong, and what to do about it; with ``--json`` the result says it.

    Arguments:
        error: what went wrong, perhaps with a hint of its own.
        details: what belongs to it, one line each.
        hint: what to do, if the error does not say that itself.
    """
    if _style.json:
        return
    last = [f"  hint: {hint}"] if hint else []
    _write_lines([*_with_hint(f"error: {error}"), *(f"  {one}" for one in details), *last], sys.stderr)


def _with_hint(text: str) -> list[str]:
    """A message and its hint, as an error of the engine writes them, as the lines that they are."""
    message, mark, hint = text.partition("\n  hint: ")
    return [message, f"  hint: {hint}"] if mark else [message]


def print_line(line: str) -> None:
    """Write a line of the result itself to standard output, which ``--quiet`` leaves."""
    _write_lines([line], sys.stdout)


def ask(question: str) -> str:
    """Ask the person at the terminal; the answer, without blanks around it."""
    global is_asking
    is_asking = True
    try:
        _clear(sys.stderr)
        tell(question)
        return sys.stdin.readline().strip()
    finally:
        is_asking = False


def tell(text: str) -> None:
    """Write text of ours to standard error, such as a log's line or a question, without an end of line added."""
    _tell("\n".join(printable(line, most=None) for line in text.split("\n")))


def clear_line() -> None:
    """Take away what is drawn on the current line of the terminal."""
    _tell(_CLEAR_LINE)


def draw_line(text: str, colour: str = "") -> None:
    """Draw a line over the current one of the terminal, cut to its width."""
    _tell(_CLEAR_LINE + _coloured(printable(text)[: width() - 1], colour, sys.stderr))


class Lines:
    """Many lines for a person, written many at a time."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._write()

    def say(self, line: str, colour: str = "") -> None:
        """Say a line, soon; in a colour of its own at once."""
        if colour:
            self._write()
            say(line, colour)
            return
        self._lines.append(line)
        if len(self._lines) >= _LINES_AT_ONCE:
            self._write()

    def passed(self, line: str, item: T) -> T:
        """Say a line about an item on its way; the item."""
        self.say(line)
        return item

    def _write(self) -> None:
        if self._lines:
            _say_lines(self._lines)
        self._lines.clear()


def _write_lines(lines: Sequence[str], stream: TextIO, colour: str = "") -> None:
    """Write lines, each of which stays one line and moves nothing, whatever is in it."""
    shown = [line if line.isprintable() else printable(line, most=None) for line in lines]
    broken = [_broken(line, _columns(stream)) for line in shown]
    if is_coloured(stream):
        broken = [[_coloured(one, colour, stream) for one in some] if colour else _highlighted(some) for some in broken]
    text = "".join(f"{one}\n" for some in broken for one in some)
    with _writing:
        _clear(stream)
        if stream is sys.stdout:
            stream.write(text)
            stream.flush()
        else:
            _tell(text)


def _clear(stream: TextIO) -> None:
    """Take a drawn line away before something is written to a stream."""
    if sys.stderr.isatty() and (stream is sys.stdout or stream.isatty()):
        _tell(_CLEAR_LINE)


def _coloured(text: str, colour: str, stream: TextIO) -> str:
    """The text in a colour, if there is one and the stream has colours."""
    return f"{_COLOURS[colour]}{text}{_RESET}" if colour and is_coloured(stream) else text


def _highlighted(lines: Sequence[str]) -> list[str]:
    """Colour the words that a person looks for, in the first line of what is one line of ours."""
    first, *rest = lines
    for pattern, colour in _WORDS:
        first, count = pattern.subn(lambda found, colour=colour: f"{_COLOURS[colour]}{found[0]}{_RESET}", first)  # type: ignore[misc]
        if count:
            break
    return [first, *rest]


def _columns(stream: TextIO) -> int:
    """The columns of the terminal behind a stream; 0 where there is none, or none that says how wide it is."""
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        return 0


def _broken(line: str, columns: int) -> list[str]:
    """A line as the lines of a terminal; the module that breaks it is needed for few."""
    if not columns or len(line) <= columns:
        return [line]
    from tools.terminal.wrap import wrapped

    return wrapped(line, columns)


def _tell(text: str) -> None:
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
