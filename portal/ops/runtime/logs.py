"""Formats log lines: JSON for programs, a short line for a person at a terminal. Only entry points choose."""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING, Any, Final, TextIO

from portal.ops.runtime.event_log import structlog
from portal.ops.settings.load import LogFormat
from portal.ops.units import human_bytes, printable

if TYPE_CHECKING:
    from structlog.typing import EventDict, WrappedLogger

_HOST: Final = socket.gethostname()
_LABEL_WIDTH: Final = 21
_MOST_CHARACTERS: Final = 10_000
_LINES: Final = ("exception", "stack")
"""Facts that may have several lines. In others, a line break could forge a line of the log."""

_UNSAID: Final = ("timestamp", "level", "event", "backup_id", "restore_id")


def engine_log(name: str) -> Any:
    """A logger for the engine.

    Until an entry point calls `configure_logging`, or the calling program has configured structlog, events go to
    Python's logging: by default structlog would print them to standard output, which belongs to the program.
    """
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
    return structlog.get_logger(name)


def configure_logging(style: LogFormat, stream: TextIO) -> None:
    """Write every event to `stream`, one line each.

    Arguments:
        style: JSON, console, or by whether the stream is a terminal.
    """
    person = _is_for_a_person(style, stream)
    structlog.configure(
        processors=[*_facts(person), render_for_a_person if person else structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(0),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )


def foreign_handler(style: LogFormat, stream: TextIO) -> logging.Handler:
    """A handler that writes Python's own log records, by libraries, in the format of our events."""
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
