"""What a person reads in the log: a line for each event, whatever names and messages of others have in them."""

from __future__ import annotations

import io
import logging

import pytest
import structlog

from portal.ops.model import LogFormat
from portal.ops.runtime.logs import configure_logging, foreign_handler

EVIL = "\x1b[2J\u202egnp.\r\n12:00:00   backup finished"


@pytest.mark.parametrize("style", [LogFormat.CONSOLE, LogFormat.JSON])
@pytest.mark.parametrize("fact", ["name", "error", "detail", "who", "event"])
def test_a_fact_is_one_line_without_control_characters(style: LogFormat, fact: str) -> None:
    """It neither moves a cursor nor passes for another line."""
    stream = io.StringIO()
    configure_logging(style, stream)
    try:
        facts = {"event": "file_skipped", fact: EVIL}
        structlog.get_logger().info(facts.pop("event"), **facts)
    finally:
        structlog.reset_defaults()
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text.rstrip("\n").isprintable()


def test_what_celery_says_is_one_line_too() -> None:
    """Names of tasks come from the broker."""
    stream = io.StringIO()
    handler = foreign_handler(LogFormat.CONSOLE, stream)
    handler.handle(logging.LogRecord("celery", logging.ERROR, "", 0, "Received unregistered task %s", (EVIL,), None))
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().rstrip("\n").isprintable()


def test_a_traceback_keeps_its_lines() -> None:
    """It is for a person to read."""
    stream = io.StringIO()
    handler = foreign_handler(LogFormat.CONSOLE, stream)
    try:
        raise ValueError(EVIL)
    except ValueError as error:
        info = (ValueError, error, error.__traceback__)
    handler.handle(logging.LogRecord("celery", logging.ERROR, "", 0, "it failed", (), info))
    assert stream.getvalue().count("\n") > 3
    assert "\x1b" not in stream.getvalue()
