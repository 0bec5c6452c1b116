"""The queues that a command line names."""

from __future__ import annotations

import argparse

import pytest

from worker.operations import Queue
from worker.queue_option import add_queues, chosen_queues


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    """A command line with queues."""
    made = argparse.ArgumentParser()
    add_queues(made)
    return made


@pytest.mark.parametrize(
    ("words", "queues"),
    [
        ([], list(Queue)),
        (["restore"], [Queue.RESTORE]),
        (["backup", "restore", "backup"], [Queue.BACKUP, Queue.RESTORE]),
    ],
)
def test_queues(parser: argparse.ArgumentParser, words: list[str], queues: list[Queue]) -> None:
    """All by default; one that is named twice has one worker."""
    assert chosen_queues(parser.parse_args(words)) == queues


def test_no_queue(parser: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str]) -> None:
    """Another word is an error that names the queues."""
    with pytest.raises(SystemExit):
        parser.parse_args(["foo"])
    assert "'foo' is no queue; there are backup, restore, maintenance, offsite\n" in capsys.readouterr().err
