"""Results, text and errors: where they are written, and in which colour.

All text goes through `_write_lines`, `tell` or `draw_line`, which escape control characters in it: only this module
moves the cursor, sets colours or ends lines. Each call of `say` writes one line; line ends in its text are escaped too,
so that a file's name cannot imitate another line.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Self, TextIO, TypeVar

from portal.ops.units import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

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
        json: write the result as JSON to standard output; None decides by whether that is a terminal.
        quiet: show only errors and warnings, and no progress.
        colour: permit colours on a terminal.
    """

    json: bool | None = None
    quiet: bool = False
    colour: bool = True


_style = _Style()
_writing = threading.RLock()
"""Held during each write: a thread draws the activity line."""

last_write = 0.0
"""When something was last written to the terminal, by the monotonic clock."""

is_asking = False
"""Whether a question is waiting for its answer, so that nothing may be drawn."""


def configure_output(*, json: bool, quiet: bool, colour: bool) -> None:
    """Configure the output by the command line.

    Arguments:
        json: write JSON and no text, even on a terminal.
        quiet: show only errors and warnings, and a result in JSON.
        colour: not switched off by an option.
    """
    _style.json = True if json else None
    _style.quiet = quiet
    _style.colour = colour


def is_json() -> bool:
    """True if standard output gets JSON."""
    return bool(_style.json) or not sys.stdout.isatty()


def is_quiet() -> bool:
    """True if only errors and warnings are shown."""
    return _style.quiet


def is_lively() -> bool:
    """True if a person watches standard error and progress is wanted."""
    return sys.stderr.isatty() and not _style.quiet and not _style.json and not is_asking


def is_coloured(stream: TextIO) -> bool:
    """True if text on a stream is coloured: see https://no-color.org; only on terminals."""
    if not _style.colour or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return stream.isatty()


def width() -> int:
    """The number of columns for text."""
    return max(40, shutil.get_terminal_size().columns)


class UnwrittenError(Exception):
    """Raised if standard output cannot be written; its cause is the operating system's error."""


@contextmanager
def standard_output() -> Iterator[TextIO]:
    """Standard output, so that errors in writing to it are told from all others.

    Raises:
        UnwrittenError: it cannot be written.
    """
    try:
        yield sys.stdout
    except OSError as error:
        raise UnwrittenError from error


# -- text -----------------------------------------------------------------------------------------------------------


def say(line: str = "", colour: str = "") -> None:
    """Show a line: on standard output if that is a terminal, otherwise on standard error.

    Arguments:
        line: one line; leading and trailing line ends add empty lines; an error's hint gets a line of its own.
        colour: the colour of the whole line; without one, important words are coloured.
    """
    body = line.strip("\n")
    before, after = len(line) - len(line.lstrip("\n")), len(line) - len(line.rstrip("\n")) if body else 0
    _say_lines([*[""] * before, *(_with_hint(body) if body or not before else []), *[""] * after], colour)


def _say_lines(lines: Sequence[str], colour: str = "") -> None:
    if not (_style.quiet or _style.json):
        _write_lines(lines, sys.stderr if is_json() else sys.stdout, colour)


def warn(text: str) -> None:
    """Show a warning; a hint in it gets a line of its own."""
    if not _style.json:
        _write_lines(_with_hint(f"warning: {text}"), sys.stderr)


def say_error(error: OpsError | str, details: Sequence[str] = (), hint: str = "") -> None:
    """Show an error and its hint; with ``--json`` the result contains them.

    Arguments:
        error: the error, possibly with a hint.
        details: further lines.
        hint: the hint, if the error has none.
    """
    if _style.json:
        return
    last = [f"  hint: {hint}"] if hint else []
    first, *more = _with_hint(error) if isinstance(error, str) else str(error).split("\n")
    _write_lines([f"error: {first}", *more, *(f"  {one}" for one in details), *last], sys.stderr)


def _with_hint(text: str) -> list[str]:
    """A message and its hint, in the form of the engine's errors, as separate lines."""
    message, mark, hint = text.partition("\n  hint: ")
    return [message, f"  hint: {hint}"] if mark else [message]


def print_line(line: str) -> None:
    """Write a line of the result itself to standard output, even with ``--quiet``."""
    _write_lines([line], sys.stdout)


def ask(question: str) -> str:
    """Ask the person at the terminal; return the stripped answer."""
    global is_asking
    is_asking = True
    try:
        _clear(sys.stderr)
        tell(question)
        return sys.stdin.readline().strip()
    finally:
        is_asking = False


def tell(text: str) -> None:
    """Write our own text to standard error, such as a log line or a question, without a line end."""
    _tell("\n".join(printable(line, most=None) for line in text.split("\n")))


def clear_line() -> None:
    """Clear the terminal's current line."""
    _tell(_CLEAR_LINE)


def draw_line(text: str, colour: str = "") -> None:
    """Draw over the terminal's current line, cut to its width."""
    _tell(_CLEAR_LINE + _coloured(printable(text)[: width() - 1], colour, sys.stderr))


class Lines:
    """Shows many lines, written in batches."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._write()

    def say(self, line: str, colour: str = "") -> None:
        """Show a line soon, or at once if it has a colour."""
        if colour:
            self._write()
            say(line, colour)
            return
        self._lines.append(line)
        if len(self._lines) >= _LINES_AT_ONCE:
            self._write()

    def passed(self, line: str, item: T) -> T:
        """Show a line about an item; return the item."""
        self.say(line)
        return item

    def _write(self) -> None:
        if self._lines:
            _say_lines(self._lines)
        self._lines.clear()


def _write_lines(lines: Sequence[str], stream: TextIO, colour: str = "") -> None:
    """Write lines, each of which stays one line, with control characters escaped."""
    shown = [line if line.isprintable() else printable(line, most=None) for line in lines]
    broken = [_broken(line, _columns(stream)) for line in shown]
    if is_coloured(stream):
        broken = [[_coloured(one, colour, stream) for one in some] if colour else _highlighted(some) for some in broken]
    text = "".join(f"{one}\n" for some in broken for one in some)
    with _writing:
        _clear(stream)
        if stream is sys.stdout:
            with standard_output():
                stream.write(text)
                stream.flush()
        else:
            _tell(text)


def _clear(stream: TextIO) -> None:
    """Clear a drawn line before something is written to a stream."""
    if sys.stderr.isatty() and (stream is sys.stdout or stream.isatty()):
        _tell(_CLEAR_LINE)


def _coloured(text: str, colour: str, stream: TextIO) -> str:
    """The text with a colour, if there is one and the stream supports it."""
    return f"{_COLOURS[colour]}{text}{_RESET}" if colour and is_coloured(stream) else text


def _highlighted(lines: Sequence[str]) -> list[str]:
    """Colour important words, in the first of the lines that one line was broken into."""
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


def fitted(text: str) -> str:
    """Text of several lines with those broken that are wider than the terminal of standard output, if it is one."""
    columns = _columns(sys.stdout)
    broken = ((line, _broken(line, columns)) for line in text.split("\n"))
    return "\n".join(one if line.startswith(" ") else one.lstrip() for line, some in broken for one in some)


def _broken(line: str, columns: int) -> list[str]:
    """A line as the lines of a terminal; the module that breaks it is needed for few."""
    if not columns or len(line) <= columns:
        return [line]
    from tools.terminal.wrap import wrapped

    return wrapped(line, columns)


def _tell(text: str) -> None:
    """Write to standard error unchanged."""
    global last_write
    try:
        with _writing:
            sys.stderr.write(text)
            sys.stderr.flush()
            last_write = time.monotonic()
    except OSError:  # continue even if nobody reads it any more, or the log's disk is full
        hush(sys.stderr)


def hush(stream: TextIO) -> None:
    """Discard everything still to be written to a stream."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


# -- results --------------------------------------------------------------------------------------------------------


def print_result(result: Mapping[str, Any]) -> None:
    """Write a result as the only JSON object on standard output, unless a person reads text there."""
    if not is_json():
        return
    text = json.dumps(result, indent=2 if sys.stdout.isatty() else None)
    with standard_output() as stream:
        stream.write(f"{text}\n")
        stream.flush()


def print_listing(name: str, items: Iterable[Mapping[str, Any]], **others: Any) -> int:
    """Write a result with a list of any length without holding it in memory; return the number of items."""
    if not is_json():
        return sum(1 for _ in items)
    newline = "\n  " if sys.stdout.isatty() else " "
    fields = "".join(f"{json.dumps(key)}: {json.dumps(value)},{newline}" for key, value in others.items())
    with standard_output() as stream:
        stream.write("{" + newline.rstrip(" ") + fields + f"{json.dumps(name)}: [")
    count, rest = 0, iter(items)
    while some := list(islice(rest, _LINES_AT_ONCE)):
        with standard_output() as stream:
            stream.write((f",{newline}" if count else "") + json.dumps(some)[1:-1])
        count += len(some)
    with standard_output() as stream:
        stream.write("]}\n")
        stream.flush()
    return count
