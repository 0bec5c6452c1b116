"""Lines that are too long for a terminal are broken between words."""

from __future__ import annotations

import pytest

from tools.terminal.wrap import wrapped


def test_a_line_that_fits_is_left_alone() -> None:
    """Nothing is done to a line of the terminal's width."""
    assert wrapped("x" * 40, 40) == ["x" * 40]


@pytest.mark.parametrize(
    ("line", "second"),
    [
        ("Room on the server for a second copy: about 48.6 MB, and much more text", "    "),
        ("  - the newest backup of the uploads is 3 days old, and 26 h are allowed", "    "),
        ("restores   restore_20260101_000000_abc123 of full_20260101_000000_abc123", " " * 11),
        ("           too little history (0 whole days) to say how long that lasts", " " * 13),
        ("  hint: set it in the file of settings, and then start the command again", "      "),
    ],
)
def test_a_continuation_stands_where_the_text_began(line: str, second: str) -> None:
    """Behind the label of a column or the sign of a list; otherwise four columns further, where no hint stands."""
    lines = wrapped(line, 60)
    assert len(lines) == 2
    assert lines[1].startswith(second)
    assert not lines[1].startswith(second + " ")
    assert all(len(one) <= 60 for one in lines)
    assert " ".join(" ".join(lines).split()) == " ".join(line.split())


def test_a_path_and_a_command_stay_whole() -> None:
    """What is copied from the terminal is the path or the command again, however narrow it is."""
    command = "'createuser --host=db.example.org --username=postgres --createdb --pwprompt defectdojo'"
    path = "/srv/" + "x" * 80
    lines = wrapped(f"the server's user is not there; {command} makes it, as {path} says", 60)
    assert [one for one in lines if command in one]
    assert [one for one in lines if path in one]
