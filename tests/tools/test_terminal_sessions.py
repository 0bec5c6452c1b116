"""Sessions recorded on terminals of 80 and 200 columns: what a person sees, and that no JSON is among it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from portal.ops.model import BackupType
from portal.ops.pitr.window import Window
from tests.support.commands import BACKUP, RESTORE, answer, run
from tests.support.histories import History
from tests.support.terminals import record
from tests.support.waiting import wait_until
from tools.commands.list import window_lines

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.terminals import Session

WIDTHS = [80, 200]


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """The variables of a portal without a database: uploads, and an empty repository."""
    (tmp_path / "uploads").mkdir()
    (tmp_path / "uploads" / "scan.sarif").write_text('{"runs": []}')
    return {
        "PATH": os.environ["PATH"],
        "BACKUP_LOCAL_PATH": str(tmp_path / "archives"),
        "PORTAL_UPLOAD_DIR": str(tmp_path / "uploads"),
        "BACKUP_ENV_FILE": "/dev/null",
        "BACKUP_JOBS": "1",
        "COLUMNS": "",
    }


def on_a_terminal(environ: dict[str, str], *arguments: str, columns: int = 80) -> Session:
    return record([BACKUP, *arguments], environ, columns=columns)


class TestText:
    @pytest.mark.parametrize("columns", WIDTHS)
    def test_a_backup_ends_with_one_line(self, environ: dict[str, str], columns: int) -> None:
        """Where the archive is and how large, in one sentence, and nothing else."""
        session = on_a_terminal(environ, "media", columns=columns)
        assert session.code == 0
        assert re.fullmatch(r"backup media_\w+ is complete: [\d.]+ k?B in /.*\.tar\.gz", " ".join(session.text.split()))

    @pytest.mark.parametrize("columns", WIDTHS)
    def test_the_list_is_a_table_that_fits(self, environ: dict[str, str], columns: int) -> None:
        """A head, a row for each archive, no line wider than the terminal, and no JSON."""
        made = [answer(run("media", environ=environ))["backup_id"]]
        answer(run("verify", "latest", environ=environ))
        answer(run("pin", "latest", environ=environ))
        session = on_a_terminal(environ, "list", columns=columns)
        head, row = session.screen
        wide = ["TIME", "(UTC)", "TYPE", "SIZE", "ARCHIVE", "PARENT", "BASE", "STATE"]
        assert head.split() == (wide if columns == 200 else ["TIME", "(UTC)", "SIZE", "ARCHIVE", "STATE"])
        assert made[0] in row
        assert ("verified: contents, pinned" if columns == 200 else "verified, pinned") in row
        assert max(map(len, session.screen)) <= columns
        assert "{" not in session.text

    @pytest.mark.parametrize("columns", [60, 80, 120, 200])
    def test_the_list_names_the_parent_of_an_incremental(self, tmp_path: Path, columns: int) -> None:
        """In a column where there is room, otherwise on a line below; what is wrong is told whole at any width."""
        history = History(path=tmp_path / "archives")
        base = history.archive(BackupType.MEDIA, timedelta(days=2))
        history.archive(BackupType.MEDIA, timedelta(days=1), parent=base)
        gone = "media_20240115_120000_abc123"
        history.archive(BackupType.MEDIA, timedelta(hours=1), parent=gone)
        environ = {"PATH": os.environ["PATH"], "BACKUP_LOCAL_PATH": str(history.path), "BACKUP_ENV_FILE": "/dev/null"}
        session = on_a_terminal(environ, "list", columns=columns)
        assert session.code == 0
        assert max(map(len, session.screen)) <= columns
        words = " ".join(session.text.split())
        assert words.count(base) >= 2
        assert "NOT COMPLETE" in words
        assert gone in words

    def test_the_list_shows_the_recovery_window(self) -> None:
        """Base backups and WAL together lead to any moment of it; gaps are named."""
        start = datetime(2026, 11, 28, 14, tzinfo=UTC)
        gap = (start + timedelta(hours=1), start + timedelta(hours=2))
        lines = list(window_lines(Window(start=start, end=start + timedelta(hours=3), gaps=(gap,))))
        assert lines == [
            "\nRecovery window: 2026-11-28 14:00:00 to 2026-11-28 17:00:00 UTC",
            "  except 2026-11-28 15:00:00 to 2026-11-28 16:00:00 UTC: WAL is missing",
        ]

    @pytest.mark.parametrize("command", ["status", "schedule", "audit", "prune", "doctor", "config"])
    def test_nothing_is_followed_by_json(self, environ: dict[str, str], command: str) -> None:
        """Every command tells a person what there is as text alone."""
        run("media", environ=environ)
        session = on_a_terminal(environ, command)
        assert '"success"' not in session.text
        assert len(session.screen) >= 1

    def test_a_fault_is_told_once(self, environ: dict[str, str]) -> None:
        """One message with its hint, not a line of the log, a message and a result."""
        session = on_a_terminal(environ | {"PORTAL_UPLOAD_DIR": "/nowhere/uploads"}, "media")
        assert session.code == 1
        assert session.text.count("/nowhere/uploads") == 1
        assert session.text.count("hint:") == 1

    def test_the_access_log_is_for_people(self, environ: dict[str, str]) -> None:
        """Sizes and times have units, and a restore says of what it was in words."""
        answer(run("media", environ=environ))
        answer(run("latest", "--media-only", "--force", environ=environ, script=RESTORE))
        session = on_a_terminal(environ, "audit", columns=200)
        assert re.search(r"restore +done +media_\w+  restore_id restore_\w+  scope uploads  [0-9.]+ s", session.text)

    def test_a_restore_shows_its_plan_and_asks(self, environ: dict[str, str]) -> None:
        """The plan, the question and the result are on the screen once each."""
        run("media", environ=environ)
        session = record([RESTORE, "latest", "--media-only"], environ, keys="yes\n", until="continue: ")
        assert session.code == 0
        assert session.text.count("Type yes to continue:") == 1
        assert "restored: uploads from media_" in session.text
        assert '"success"' not in session.text


class TestWaiting:
    def test_a_command_that_takes_a_while_says_what_it_does(self, environ: dict[str, str], tmp_path: Path) -> None:
        """After a second of silence a line says what is being done; in the end it is gone."""
        run("media", environ=environ)
        lock = tmp_path / "archives" / ".lock"
        holder = subprocess.Popen(["flock", "--exclusive", lock, "cat"], stdin=subprocess.PIPE)
        wait_until(lambda: subprocess.run(["flock", "-n", lock, "true"], check=False).returncode != 0)
        session = on_a_terminal(environ | {"BACKUP_LOCK_TIMEOUT": "3"}, "media")
        holder.communicate()
        assert session.code == 5
        assert re.search(r"starting the backup \.\.\. [1-9]\d* s", session.raw)
        assert "starting the backup" not in session.text


class TestOptions:
    @pytest.mark.parametrize("arguments", [["list", "--json"], ["--json", "list"]])
    def test_json_is_there_for_who_asks(self, environ: dict[str, str], arguments: list[str]) -> None:
        """--json writes JSON and no text, on a terminal too, wherever the option stands."""
        run("media", environ=environ)
        session = on_a_terminal(environ, *arguments)
        assert len(json.loads(session.text)["backups"]) == 1

    def test_quiet_says_nothing_of_success(self, environ: dict[str, str]) -> None:
        """--quiet leaves errors, warnings and the exit code."""
        assert on_a_terminal(environ, "media", "--quiet").text == ""
        assert on_a_terminal(environ, "verify", "nothing", "--quiet").text.startswith("error: ")

    def test_a_quiet_list_is_ids(self, environ: dict[str, str]) -> None:
        """For a loop in a shell, one id on each line."""
        made = answer(run("media", environ=environ))["backup_id"]
        assert on_a_terminal(environ, "list", "--quiet").screen == [made]

    @pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
    def test_colours_can_be_switched_off(self, environ: dict[str, str], variables: dict[str, str]) -> None:
        """Colours are there on a terminal, and gone with --no-color, NO_COLOR or a dumb terminal."""
        session = on_a_terminal(environ | variables, "status")
        assert ("\x1b[31mNOT OK" in session.raw) == (not variables)
        assert "\x1b[31m" not in on_a_terminal(environ | variables, "status", "--no-color").raw

    def test_no_colours_in_a_pipe(self, environ: dict[str, str]) -> None:
        """Whoever reads a pipe gets no escape sequences."""
        ended = run("status", environ=environ)
        assert "\x1b" not in ended.stdout + ended.stderr

    @pytest.mark.parametrize("script", [BACKUP, RESTORE])
    def test_the_version(self, environ: dict[str, str], script: Path) -> None:
        """--version names the package and its version."""
        ended = run("--version", environ=environ, script=script)
        assert (ended.returncode, ended.stdout[:14]) == (0, "kekkai-backup ")


class TestMistakes:
    @pytest.mark.parametrize(
        ("script", "arguments", "meant"),
        [
            (BACKUP, ["lst"], "did you mean 'list'?"),
            (BACKUP, ["verfy", "latest"], "did you mean 'verify'?"),
            (BACKUP, ["media", "--incremntal"], "did you mean --incremental?"),
            (BACKUP, ["verify", "latest", "--level", "content"], "did you mean contents?"),
            (BACKUP, ["xyzzy"], "the commands are full, database"),
            (RESTORE, ["latest", "--dry-rn"], "did you mean --dry-run?"),
        ],
    )
    def test_the_nearest_is_suggested(
        self, environ: dict[str, str], script: Path, arguments: list[str], meant: str
    ) -> None:
        """A mistyped command, option or choice ends with 2 and names what was probably meant."""
        ended = run(*arguments, environ=environ, script=script)
        assert ended.returncode == 2
        assert meant in ended.stderr

    @pytest.mark.parametrize("command", ["list", "config"])
    def test_invalid_settings_have_a_line_each(self, environ: dict[str, str], command: str) -> None:
        """And nothing in a value begins a line."""
        wrong = environ | {"BACKUP_RETENTION_DAYS": "many", "BACKUP_JOBS": "two\nthree"}
        ended = run(command, environ=wrong)
        assert ended.returncode == 2
        said = ended.stderr[ended.stderr.index("error:") :].splitlines()
        assert said[0] == "error: some settings cannot be used:"
        assert said[1].startswith("  BACKUP_RETENTION_DAYS: 'many' is not a whole number")
        assert said[2].startswith(r"  BACKUP_JOBS: 'two\nthree' is not a whole number")
        assert said[3].startswith("  hint: correct them where they are set")

    def test_a_mistyped_setting_is_flagged(self, environ: dict[str, str], tmp_path: Path) -> None:
        """config names what is no setting with the nearest one, and --check ends with 2 for scripts."""
        file = tmp_path / "backup.env"
        file.write_text("BACKUP_RETENTON_DAYS=7\nSOMETHING=1\nBACKUP_PING_URL=https://hunter2\n")
        file.chmod(0o600)
        named = environ | {"BACKUP_ENV_FILE": str(file)}
        ended = run("config", environ=named)
        shown = answer(ended)
        assert ended.returncode == 0
        assert f"BACKUP_RETENTON_DAYS ({file}, line 1) is not a setting; did you mean BACKUP_RETENTION_DAYS?" in (
            ended.stderr
        )
        assert f"SOMETHING ({file}, line 2) is not a setting" in shown["unknown"]
        assert {one["name"]: one for one in shown["settings"]}["BACKUP_PING_URL"] == {
            "name": "BACKUP_PING_URL",
            "value": "********",
            "origin": f"{file}, line 3",
            "fault": None,
        }
        assert "hunter2" not in ended.stdout + ended.stderr
        assert run("config", "--check", environ=named).returncode == 2
        assert run("config", "--check", environ=environ).returncode == 0


class TestCompletion:
    @pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
    @pytest.mark.parametrize(
        ("program", "script", "typed", "offered"),
        [
            ("backup.sh", BACKUP, "verif", "verify"),
            ("backup.sh", BACKUP, "media --inc", "media --incremental"),
            ("restore.sh", RESTORE, "--dry", "--dry-run"),
        ],
    )
    def test_zsh_completes_commands_and_options(
        self, environ: dict[str, str], tmp_path: Path, program: str, script: Path, typed: str, offered: str
    ) -> None:
        """A person in a real zsh types a part and Tab, and has the rest."""
        completion = run("--completion", "zsh", environ=environ, script=script).stdout
        (tmp_path / f"_{program}").write_text(completion)
        start = ["PS1='READY> '", f"fpath=({tmp_path} $fpath)", "autoload -U compinit", "compinit -u"]
        instead = f'{program}() {{ print -r -- "would run: $*" }}'
        (tmp_path / ".zshrc").write_text("\n".join([*start, instead, ""]))
        variables = {"PATH": os.environ["PATH"], "ZDOTDIR": str(tmp_path), "HOME": str(tmp_path)}
        keys = f"{program} {typed}\t\nexit\n"
        session = record(["zsh", "-i"], variables, columns=200, keys=keys, until="\x1b[?2004h")
        assert f"would run: {offered}" in session.text

    def test_bash_completes_commands_and_options(self, environ: dict[str, str]) -> None:
        """The script that --completion prints completes in a real bash."""
        ended = run("--completion", "bash", environ=environ)
        assert ended.returncode == 0
        ask = (
            "COMP_WORDS=(backup.sh {0}); COMP_CWORD={1}; "
            "_shtab_backup_sh backup.sh {2} ''; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        )
        script = "\n".join([ended.stdout, ask.format("verif", 1, "verif"), ask.format("media --inc", 2, "--inc")])
        shown = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
        assert shown.stdout.split() == ["verify", "--incremental"]

    @pytest.mark.parametrize("script", [BACKUP, RESTORE])
    @pytest.mark.parametrize("shell", ["bash", "zsh"])
    def test_there_is_a_script_for_each_shell(self, environ: dict[str, str], script: Path, shell: str) -> None:
        """Both programs print one for bash and zsh."""
        ended = run("--completion", shell, environ=environ, script=script)
        assert ended.returncode == 0
        assert "--quiet" in ended.stdout
