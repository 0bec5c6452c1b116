"""Names that would move a terminal's cursor, colour or forge lines: whatever shows them shows them escaped."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from portal.ops.errors import OpsError
from tests.support.commands import BACKUP, RESTORE, answer, run
from tests.support.terminals import record

if TYPE_CHECKING:
    from tests.support.terminals import Session

HOSTILE = "a\x1b[2J\x1b]0;owned\x07\r\nOK: every target is met\u202egnp.sarif"
ESCAPED = r"a\x1b[2J\x1b]0;owned\x07\r\nOK: every target is met\u202egnp.sarif"
OURS = re.compile(r"\r\x1b\[K|\x1b\[[0-9]?[0-9]?m")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """A portal whose only upload has the hostile name, with one archive."""
    (tmp_path / "uploads").mkdir()
    (tmp_path / "uploads" / HOSTILE).write_text('{"runs": []}')
    found = {
        "PATH": os.environ["PATH"],
        "BACKUP_LOCAL_PATH": str(tmp_path / "archives"),
        "PORTAL_UPLOAD_DIR": str(tmp_path / "uploads"),
        "BACKUP_ENV_FILE": "/dev/null",
        "BACKUP_JOBS": "1",
    }
    answer(run("media", environ=found))
    return found


def shown(session: Session) -> str:
    """What a session showed, if nothing but our own sequences and ends of lines was among it."""
    text = OURS.sub("", session.raw).replace("\r\n", "\n")
    assert all(line.isprintable() for line in text.split("\n")), repr(text)
    assert not any(line.startswith("OK: every target") for line in text.split("\n"))
    return text


def unbroken(text: str) -> str:
    """The text with long lines in one piece again: what continues them is indented further than any line of ours."""
    return re.sub(r"\n {4,}", " ", text)


def test_a_plan_of_a_restore(environ: dict[str, str], tmp_path: Path) -> None:
    """Its examples are names of uploads."""
    there = str(tmp_path / "elsewhere")
    session = record([RESTORE, "latest", "--media-only", "--dry-run", "--media-dir", there], environ, columns=200)
    assert session.code == 0
    assert f"For example: {ESCAPED}." in shown(session)


def test_extract(environ: dict[str, str]) -> None:
    """Where the file is, and that another is not there."""
    session = record(
        ["env", "-C", environ["BACKUP_LOCAL_PATH"], BACKUP, "extract", "latest", f"media/{HOSTILE}"], environ
    )
    assert session.code == 0
    assert ESCAPED in unbroken(shown(session))
    refused = record([BACKUP, "extract", "latest", f"media/{HOSTILE}x"], environ)
    assert refused.code == 2
    assert "OK" in shown(refused)


def test_an_archive_that_somebody_has_named(environ: dict[str, str]) -> None:
    """In the table, in a verification and in what prune says of it."""
    repository = Path(environ["BACKUP_LOCAL_PATH"])
    (archive,) = repository.glob("*.tar.gz")
    shutil.copy(archive, repository / f"{HOSTILE.replace('/', '')}.tar.gz")
    for command in (["list"], ["list", "--quiet"], ["status"], ["prune", "--dry-run"], ["verify", HOSTILE], ["doctor"]):
        for columns in (80, 200):
            shown(record([BACKUP, *command], environ, columns=columns))


@pytest.mark.parametrize("variables", [{}, {"BACKUP_LOG_FORMAT": "console"}])
def test_an_error_and_a_log(environ: dict[str, str], variables: dict[str, str]) -> None:
    """The directory that is not there has the hostile name; the hint is on a line of its own."""
    session = record([BACKUP, "media"], environ | variables | {"PORTAL_UPLOAD_DIR": f"/nowhere/{HOSTILE}"})
    assert session.code == 1
    text = shown(session)
    assert f"/nowhere/{ESCAPED}" in unbroken(text)
    assert "\n  hint: " in text


def test_the_access_log(environ: dict[str, str]) -> None:
    """Who pins an archive, and why, is written by people."""
    answer(run("pin", "latest", "--reason", HOSTILE, environ=environ))
    session = record([BACKUP, "audit"], environ)
    assert "OK: every target" in unbroken(shown(session))
    shown(record([BACKUP, "status"], environ))


def test_progress(environ: dict[str, str]) -> None:
    """The bar and the line that says what is done pass through the same place."""
    code = (
        "import sys; from tools.terminal import output, progress; "
        "output.draw_line(sys.argv[1]); output.tell(sys.argv[1]); output.say(sys.argv[1])"
    )
    session = record(["env", "-C", str(ROOT), sys.executable, "-c", code, HOSTILE], environ, columns=200)
    assert "\x1b[2J" not in session.raw
    assert ESCAPED in session.raw


def test_the_report(environ: dict[str, str], tmp_path: Path) -> None:
    """A page has no control characters either, nor any that reverse the direction of writing."""
    answer(run("pin", "latest", "--reason", HOSTILE, environ=environ))
    answer(run("report", "--output", str(tmp_path / "report.html"), environ=environ))
    text = (tmp_path / "report.html").read_text()
    assert all(line.isprintable() for line in text.split("\n"))
    assert r"a\x1b[2J" in text


def test_an_error_is_one_line_and_its_hint_another() -> None:
    """Whatever is in the message, nothing of it passes for a hint."""
    error = OpsError("no file 'x\n  hint: run this'", hint="Choose another.")
    assert str(error).split("\n") == [r"no file 'x\n  hint: run this'", "  hint: Choose another."]
