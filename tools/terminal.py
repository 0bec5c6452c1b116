"""What every command does the same way: results, errors, signals, and a bar that shows how far it is."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import sys
import time
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, TextIO, TypeVar, cast

from portal.ops.errors import OpsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from portal.ops.runtime.progress import Step
    from portal.ops.settings.load import LogFormat, Settings

EXIT_CODES: Final = """exit codes:
  0 done          1 failed        2 wrong usage or configuration
  3 not confirmed 4 not intact    5 busy
  6 not done yet: no worker, no broker, or not in time"""

T = TypeVar("T")

_LINES_AT_ONCE: Final = 1000
_REDRAW_SECONDS: Final = 0.1
_LINE_SECONDS: Final = 10.0
_CLEAR_LINE: Final = "\r\x1b[K"
_STOPPING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StoppedError(BaseException):
    """A signal asked this process to end; as an exception, so that every `with` on the way out takes back its part.

    Arguments:
        number: which signal.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.outcome = "what was not finished has been taken back"
        self.hint = "Start it again to have it done."


class Bar:
    """How far a job is: a bar with rate and time left on a terminal, a log line now and then elsewhere.

    Arguments:
        log: what writes the line where there is no terminal. It is asked for its method each time: it is set up later.
    """

    def __init__(self, log: Any, *, line_seconds: float = _LINE_SECONDS) -> None:
        self._log = log
        self._terminal = sys.stderr.isatty()
        self._interval = _REDRAW_SECONDS if self._terminal else line_seconds
        self._started = self._last = time.monotonic()
        self._done = 0

    def __call__(self, step: Step) -> None:
        """Show the state; cheap enough to be called for every block."""
        now = time.monotonic()
        if step.done < self._done:  # another part of the job, with a rate of its own
            self._started = now
        self._done = step.done
        if now - self._last < self._interval:
            return
        self._last = now
        phase, done, total = step.phase, step.done, step.expect()
        rate = done / max(now - self._started, 0.001)
        if self._terminal:
            self._draw(phase, done, total, rate)
        else:
            self._log.info("job_progressed", phase=phase, bytes=done, total=total, bytes_per_second=int(rate))

    def clear(self) -> None:
        """Take the bar off the screen."""
        if self._terminal:
            _tell(_CLEAR_LINE)

    def _draw(self, phase: str, done: int, total: int | None, rate: float) -> None:
        from portal.ops.units import human_bytes

        text = f"{phase:<10} {human_bytes(done):>8}  {human_bytes(rate)}/s"
        if total and done <= total:
            width = max(10, min(40, shutil.get_terminal_size().columns - 60))
            full = width * done // total
            text += f"  [{'#' * full}{'.' * (width - full)}] {100 * done // total:3d} %"
            text += f"  {_duration((total - done) / max(rate, 1))} left"
        _tell(_CLEAR_LINE + text)


class BarAwareStream:
    """Standard error, with the bar taken away before a line is written."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar

    def write(self, text: str) -> int:
        """Write over the bar."""
        self._bar.clear()
        _tell(text)
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def isatty(self) -> bool:
        """Whether a person is there."""
        return sys.stderr.isatty()


def watched_log(style: LogFormat, *, line_seconds: float = _LINE_SECONDS) -> Callable[[Step], None]:
    """Set up logging to standard error; what shows how far a job is, without the two getting mixed up."""
    import structlog

    from portal.ops.runtime.environment import merged_environment
    from portal.ops.runtime.logs import configure_logging
    from portal.ops.settings.load import unbuilt_settings, unknown_settings

    log = structlog.get_logger("tools")
    bar = Bar(log, line_seconds=line_seconds)
    configure_logging(style, cast("TextIO", BarAwareStream(bar)))
    variables = merged_environment()
    for warning in unknown_settings(variables):
        log.warning("setting_unknown", detail=warning)
    for what in unbuilt_settings(variables):
        log.warning("setting_unbuilt", detail=f"this release does not have {what}")

    return bar


def watched_settings() -> tuple[Settings, Callable[[Step], None]]:
    """The settings that the environment has; logging is set up as they say. And what shows people how far a job is.

    Raises:
        ConfigurationError: a setting cannot be used.
    """
    from portal.ops.runtime.environment import current_settings

    settings = current_settings()
    return settings, watched_log(settings.log_format)


def print_result(result: Mapping[str, Any]) -> None:
    """Write the one JSON object of standard output: on one line, unless a person is looking."""
    json.dump(result, sys.stdout, indent=2 if sys.stdout.isatty() else None)
    sys.stdout.write("\n")
    sys.stdout.flush()


def print_listing(name: str, items: Iterable[Mapping[str, Any]], **others: Any) -> int:
    """Write a result that holds a list of any length, without holding it in memory; how many items there were."""
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


class Lines:
    """Many lines for a person, on standard error, written many at a time."""

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


def say(text: str = "") -> None:
    """Tell a person something, on standard error; over the bar, if one is there."""
    start = _CLEAR_LINE if sys.stderr.isatty() else ""
    _tell(f"{start}{text}\n")


def say_error(error: OpsError | str) -> None:
    """Tell a person what went wrong, and what to do about it."""
    say(f"error: {error}")


def run_command(main: Callable[[], int]) -> NoReturn:
    """Run a command to its exit: errors become messages and codes, signals end it in good order."""
    _open_standard_streams()
    for number in _STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup wants it
            signal.signal(number, _stop)
    try:
        code = main()
    except OpsError as error:
        _fail(str(error))
        code = error.exit_code
    except StoppedError as stopped:
        _fail(f"stopped by {signal.Signals(stopped.number).name}: {stopped.outcome}\n  hint: {stopped.hint}")
        code = 128 + stopped.number
    except BrokenPipeError:
        _hush(sys.stdout)
        code = 128 + signal.SIGPIPE
    except OSError as error:
        code = OpsError.exit_code
        if error.filename is None:
            _hush(sys.stdout)
            said = f"the result cannot be written to standard output: {error.strerror}"
            say_error(f"{said}\n  hint: It is done all the same: './tools/backup.sh audit' shows how it ended.")
        else:
            said = f"the operating system refused: {error.strerror} ({error.filename})"
            _fail(f"{said}\n  hint: Look at that file, its permissions and its disk, then start it again.")
    gc.freeze()  # on its way out Python would look through all there is for garbage, which takes 30 ms
    sys.exit(code)


def _open_standard_streams() -> None:
    """Fill the places of streams that are closed: the next file opened would be taken for one, and be written to."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, open(number, "r" if number == 0 else "w"))  # noqa: SIM115  (as long as the process)


def _tell(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:  # the work goes on, even if nobody listens any more or the log's disk is full
        _hush(sys.stderr)


def _hush(stream: TextIO) -> None:
    """Let whatever is still to be said go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _fail(error: str) -> None:
    say_error(error)
    print_result({"success": False, "error": error})


def _stop(number: int, _frame: object) -> NoReturn:
    for other in _STOPPING:  # taking back is not to be interrupted by somebody's impatience
        signal.signal(other, lambda *_: None)
    raise StoppedError(number)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02d} h"
    return f"{minutes}:{rest:02d} min" if minutes else f"{rest} s"
