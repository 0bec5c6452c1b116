"""The queues on the command lines of the worker and its health check."""

from __future__ import annotations

import argparse

from worker.operations import Queue


def add_queues(parser: argparse.ArgumentParser) -> None:
    """Let a command line name queues; `chosen_queues` returns them."""
    parser.add_argument(
        "queues", nargs="*", metavar="QUEUE", type=_queue, help=f"a queue: {', '.join(Queue)} (default: all)"
    )


def chosen_queues(arguments: argparse.Namespace) -> list[Queue]:
    """The queues of a command line, each once; all if it names none."""
    return list(dict.fromkeys(arguments.queues)) or list(Queue)


def _queue(text: str) -> Queue:
    try:
        return Queue(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no queue; there are {', '.join(Queue)}") from None
