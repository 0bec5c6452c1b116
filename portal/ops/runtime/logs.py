"""Formats log lines: JSON for programs, a short line for a person at a terminal. Only entry points choose.

structlog is loaded with the first event: it takes a fifth of a command's start, and many commands write none.
"""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Any, Final, TextIO

from portal.ops.model import LogFormat
from portal.ops.units import human_bytes, printable

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

    import structlog
    from structlog.typing import EventDict, WrappedLogger

_HOST: Final = socket.gethostname()
_LABEL_WIDTH: Final = 21
_MOST_CHARACTERS: Final = 10_000
_LINES: Final = ("exception", "stack")
"""Facts that may have several lines. In others, a line break could forge a line of the log."""

_UNSAID: Final = ("timestamp", "level", "event", "backup_id", "restore_id")


class EngineLog:
    """A logger of the engine, with the methods of structlog's.

    Until an entry point calls `configure_logging`, or the calling program has configured structlog, events go to
    Python's logging: by default structlog would print them to standard output, which belongs to the program.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, method: str) -> Any:
        from portal.ops.runtime.event_log import structlog

        _configure_now()
        return getattr(structlog.get_logger(self._name), method)


def engine_log(name: str) -> Any:
    """A logger for the engine."""
    return EngineLog(name)


_configure: list[Callable[[], None]] = []
"""What configures structlog before the first event, if an entry point has left it to that."""

_configuring: Final = threading.RLock()


def configure_with_first_event(configure: Callable[[], None]) -> None:
    """Call a function, which calls `configure_logging`, before the first event of an `engine_log`."""
    _configure[:] = [configure]


def _configure_now() -> None:
    """Configure structlog if it is not; the first events of several threads wait for one of them to do it."""
    from portal.ops.runtime.event_log import structlog

    with _configuring:
        if _configure:
            _configure.pop()()
        if not structlog.is_configured():
            structlog.configure(
                processors=[
                    structlog.stdlib.filter_by_level,
                    structlog.contextvars.merge_contextvars,
                    structlog.processors.KeyValueRenderer(key_order=["event"]),
                ],
                logger_factory=structlog.stdlib.LoggerFactory(),
                wrapper_class=structlog.stdlib.BoundLogger,
            )


def configure_logging(style: LogFormat, stream: TextIO, *, before: tuple[structlog.typing.Processor, ...] = ()) -> None:
    """Write every event to `stream`, one line each.

    Arguments:
        style: JSON, console, or by whether the stream is a terminal.
        before: processors that see an event first, and may drop it.
    """
    from portal.ops.runtime.event_log import structlog

    person = _is_for_a_person(style, stream)
    structlog.configure(
        processors=[*before, *_facts(person), render_for_a_person if person else structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(0),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )


def foreign_handler(style: LogFormat, stream: TextIO) -> logging.Handler:
    """A handler that writes Python's own log records, by libraries, in the format of our events."""
    import logging

    from portal.ops.runtime.event_log import structlog

    person = _is_for_a_person(style, stream)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*_facts(person), structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                render_for_a_person if person else structlog.processors.JSONRenderer(),
            ],
        )
    )
    return handler


def _is_for_a_person(style: LogFormat, stream: TextIO) -> bool:
    return style is LogFormat.CONSOLE or (style is LogFormat.AUTO and stream.isatty())


def _facts(person: bool) -> list[structlog.typing.Processor]:
    """The processor that adds common facts to an event; a person at a terminal does not need the host."""
    from portal.ops.runtime.event_log import structlog

    facts: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if person else "iso", utc=not person),
    ]
    return facts if person else [*facts, _add_host]


def _add_host(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    event["host"] = _HOST
    return event


def render_for_a_person(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    """One event as a line: the time, the event, and its facts in readable units."""
    mark = {"warning": "! ", "error": "! "}.get(event["level"], "  ")
    label = f"{event['event']}".replace("_", " ")
    facts = "  ".join(_shown(name, _fact(name, value)) for name, value in event.items() if name not in _UNSAID)
    return f"{event['timestamp']} {mark}{_shown('', label):<{_LABEL_WIDTH}} {facts}".rstrip()


def _shown(name: str, text: str) -> str:
    """A fact with control characters escaped."""
    lines = text.split("\n") if name in _LINES else [text]
    return "\n".join(printable(line, _MOST_CHARACTERS) for line in lines)


def _fact(name: str, value: Any) -> str:
    if name == "bytes":
        return f"{human_bytes(value):>8}"
    if name == "seconds":
        return f"{value:6.2f} s"
    if name == "error":
        return f"{value}".partition("\n")[0]  # the command shows the hint when it ends
    if name in ("component", "detail", "path", "name"):
        return f"{value:<10}"
    return f"{name} {value}"
