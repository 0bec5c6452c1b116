"""Runs a command to its exit code: errors become messages, and signals end it in good order."""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Final, NoReturn, TextIO, cast

from portal.ops.errors import OpsError
from portal.ops.limits import limit_hint, system_errors
from portal.ops.units import printable, system_reason
from tools.terminal.output import UnwrittenError, hush, print_result, say_error
from tools.terminal.progress import Bar, BarAwareStream
from worker.command_lines import show_commands

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

    from portal.ops.runtime.progress import Step
    from portal.ops.settings.load import LogFormat, Settings

EXIT_CODES: Final = """exit codes:
  0 done          1 failed        2 wrong usage or configuration
  3 not confirmed 4 not intact    5 busy
  6 not done yet: no worker, no broker, or not in time"""

_STOPPING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ADRIFT: Final = "The current directory is gone: change to another one"
_TOLD_IN_THE_END: Final = frozenset(
    {"backup_failed", "restore_failed", "prune_failed", "drill_failed", "archive_damaged"}
)
"""The engine's events with errors that the command shows itself, with the hint."""


class StoppedError(BaseException):
    """Raised by a signal to this process, so that every `with` block undoes its part.

    Arguments:
        number: the number of the signal.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.outcome = "unfinished work has been undone"
        self.hint = "Start it again to finish it."


def run_command(main: Callable[[], int]) -> NoReturn:
    """Run a command to its end."""
    show_commands()
    _open_standard_streams()
    os.umask(os.umask(0o077) & 0o077)  # whatever others may not do, the owner of what is made may
    for number in _STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # ignored, as set by nohup
            signal.signal(number, _stop)
    try:
        with system_errors():
            code = main()
    except OpsError as error:
        _fail(error)
        code = error.exit_code
    except StoppedError as stopped:
        _fail(f"stopped by {signal.Signals(stopped.number).name}: {stopped.outcome}\n  hint: {stopped.hint}")
        code = 128 + stopped.number
    except UnwrittenError as error:
        code = _after_unwritten(error)
    except OSError as error:
        code = OpsError.exit_code
        said = f"the operating system refused: {system_reason(error)}"
        if hint := limit_hint(error):
            _fail(f"{said}\n  hint: {hint}")
        elif error.filename is None:
            first = "Check the disks, also that of TMPDIR" if _has_directory() else _ADRIFT
            _fail(f"{said}\n  hint: {first}, then start the command again.")
        else:
            said += f" ({printable(str(error.filename), most=None)})"
            _fail(f"{said}\n  hint: Check that file, its permissions and its disk, then start the command again.")
    gc.freeze()  # at exit, Python would collect garbage for 30 ms
    sys.exit(code)


def watched_log(style: LogFormat, *, line_seconds: float | None = None) -> Callable[[Step], None]:
    """Set up logging to standard error, and a progress display that does not interfere with it."""
    from portal.ops.runtime.environment import merged_environment
    from portal.ops.runtime.logs import configure_logging, configure_with_first_event, engine_log
    from portal.ops.settings.load import unbuilt_settings, unknown_settings

    log = engine_log("tools")
    bar = Bar(log) if line_seconds is None else Bar(log, line_seconds=line_seconds)
    stream = cast("TextIO", BarAwareStream(bar))
    configure_with_first_event(lambda: configure_logging(style, stream, before=(_EventFilter(style),)))
    variables = merged_environment()
    for warning in unknown_settings(variables):
        log.warning("setting_unknown", detail=warning)
    for what in unbuilt_settings(variables):
        log.warning("setting_unbuilt", detail=f"this release does not have {what}")
    return bar


def watched_settings() -> tuple[Settings, Callable[[Step], None]]:
    """The settings, with logging set up by them, and a progress display.

    Raises:
        ConfigurationError: a setting is invalid.
    """
    from portal.ops.runtime.environment import current_settings

    settings = current_settings()
    return settings, watched_log(settings.log_format)


class _EventFilter:
    """Drops events that would tell a person something twice.

    The error of a job is shown when the command ends. A person at a terminal sees a bar and the result; the steps
    between are only for logs, unless BACKUP_LOG_FORMAT requests them.
    """

    def __init__(self, style: LogFormat) -> None:
        from tools.terminal.output import is_quiet

        self._least = ("warning", "error", "critical") if is_quiet() or self._is_watched(style) else ()

    def __call__(self, _logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Drop an event, or pass it on."""
        if event["event"] in _TOLD_IN_THE_END or (self._least and method not in self._least):
            from portal.ops.runtime.event_log import structlog

            raise structlog.DropEvent
        return event

    def _is_watched(self, style: LogFormat) -> bool:
        return style.value == "auto" and sys.stderr.isatty()


def _open_standard_streams() -> None:
    """Open /dev/null for closed standard streams; otherwise the next opened file would be used as one."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, open(number, "r" if number == 0 else "w"))  # noqa: SIM115  (as long as the process)


def _has_directory() -> bool:
    """True if the current directory is still there."""
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def _fail(error: OpsError | str) -> None:
    say_error(error)
    try:
        print_result({"success": False, "error": str(error)})
    except UnwrittenError:  # the error has been shown, and decides the exit code
        hush(sys.stdout)


def _after_unwritten(error: UnwrittenError) -> int:
    """Report that the result could not be written, unless nobody reads it any more; return the exit code."""
    hush(sys.stdout)
    reason = error.__cause__
    if not isinstance(reason, OSError) or isinstance(reason, BrokenPipeError):
        return 128 + signal.SIGPIPE
    said = f"the result cannot be written to standard output: {system_reason(reason)}"
    say_error(f"{said}\n  hint: The work is done; './tools/backup.sh audit' shows how it ended.")
    return OpsError.exit_code


def _stop(number: int, _frame: object) -> NoReturn:
    for other in _STOPPING:  # a second signal must not interrupt the undoing
        signal.signal(other, lambda *_: None)
    raise StoppedError(number)
