"""The backup command, as people, cron and programs start it: what it says where, and how it ends."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.runtime.progress import Step
from portal.ops.settings.load import LogFormat
from tests.support.commands import BACKUP, ROOT, Ended, answer, run
from tools.terminal import progress
from tools.terminal.run import watched_log

if TYPE_CHECKING:
    from tests.support.portal import Portal

SCRIPT = ROOT / "scripts" / "backup.sh"
KEYS = {"success", "backup_id", "path", "size_bytes", "type", "checksum", "components", "duration_seconds"}


def events(ended: Ended) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ended.stderr.splitlines() if line.startswith("{")]


class TestOutput:
    """What goes to standard output and what to standard error."""

    @pytest.mark.parametrize("script", [BACKUP, SCRIPT])
    def test_a_backup_is_one_json_object(self, portal: Portal, script: Path) -> None:
        """Through both names of the directory a full backup works, and answers with one JSON object alone."""
        ended = run("full", environ=portal.environ(), script=script, cwd=portal.directory)
        found = answer(ended)
        assert ended.returncode == 0
        assert found.keys() >= KEYS
        assert found["components"] == ["database", "media", "audit_logs"]
        assert Path(found["path"]).stat().st_size == found["size_bytes"]

    def test_a_failure_is_one_json_object(self, portal: Portal) -> None:
        """A backup that fails has the same keys, and the error in them; it ends with 1."""
        ended = run("full", environ=portal.environ(DD_DATABASE_PORT="1"))
        found = answer(ended)
        assert ended.returncode == 1
        assert found.keys() >= KEYS
        assert "no PostgreSQL server answers" in found["error"]
        assert f"error: {found['error']}\n" in ended.stderr

    def test_no_word_means_a_full_backup(self, portal: Portal) -> None:
        """Without a word, everything is backed up."""
        assert answer(run(environ=portal.environ()))["type"] == "full"

    def test_events_are_json_where_no_person_is(self, files: dict[str, str]) -> None:
        """Without a terminal every event is a line of JSON with a time, a level and the backup's id."""
        ended = run("media", environ=files)
        assert [event["event"] for event in events(ended)] == [
            "component_collected",
            "archive_finished",
            "archive_published",
        ]
        assert all(event.keys() >= {"timestamp", "level", "backup_id", "seconds"} for event in events(ended))
        others = [line for line in ended.stderr.splitlines() if not line.startswith("{")]
        assert [line.startswith("backup media_") for line in others] == [True]

    def test_events_are_lines_for_people_where_they_want_it(self, files: dict[str, str]) -> None:
        """BACKUP_LOG_FORMAT=console writes short lines without a terminal too."""
        ended = run("media", environ=files | {"BACKUP_LOG_FORMAT": "console"})
        assert events(ended) == []
        assert re.search(r"^\d\d:\d\d:\d\d   archive published ", ended.stderr, re.MULTILINE)

    def test_a_variable_that_is_misspelt_is_warned_about(self, files: dict[str, str]) -> None:
        """A name that nearly is a setting is in a warning, and the backup goes on."""
        ended = run("media", environ=files | {"BACKUP_RETENTION_DAY": "3"})
        assert events(ended)[0]["event"] == "setting_unknown"
        assert (
            events(ended)[0]["detail"] == "BACKUP_RETENTION_DAY is not a setting; did you mean BACKUP_RETENTION_DAYS?"
        )
        assert ended.returncode == 0

    @pytest.mark.parametrize("style", ["auto", "console", "json"])
    def test_a_failure_is_told_once(self, portal: Portal, style: str) -> None:
        """A person reads the error once, with what to do next; the log does not repeat it."""
        ended = run("full", environ=portal.environ(DD_DATABASE_PORT="1", BACKUP_LOG_FORMAT=style))
        assert ended.stderr.count("no PostgreSQL server answers") == 1
        assert ended.stderr.count("hint:") == 1

    def test_help_is_for_people(self, files: dict[str, str]) -> None:
        """--help shows commands, examples and exit codes, and does nothing."""
        ended = run("--help", environ=files)
        assert ended.returncode == 0
        assert all(
            word in ended.stdout for word in ("full", "verify", "extract", "examples:", "exit codes:", "settings.md")
        )
        assert not Path(files["BACKUP_LOCAL_PATH"]).exists()


class TestTerminal:
    """What a person sees."""

    def test_a_bar(self, portal: Portal) -> None:
        """On a terminal there is a bar with a rate, and neither JSON nor the lines of a log."""
        (portal.uploads / "noise").write_bytes(os.urandom(120 << 20))  # a fast machine has to take a moment, too
        code, output, screen = on_a_terminal(portal.environ())
        assert code == 0
        assert json.loads(output)["success"]
        assert re.search(r"(database|uploads) +[\d.]+ [kM]?B +[\d.]+ [kM]?B/s", screen)
        assert re.search(r"\[#*\.*\] +\d+ %", screen)
        assert "component collected" not in screen
        assert '"event"' not in screen

    def test_the_bar_is_gone_in_the_end(self, portal: Portal) -> None:
        """Nothing of the bar stays on the line of the last sentence."""
        _, _, screen = on_a_terminal(portal.environ())
        last = screen.rstrip().splitlines()[-1]
        assert last.rpartition("\x1b[K")[2].startswith("backup full_")

    def test_the_steps_are_shown_if_wanted(self, portal: Portal) -> None:
        """BACKUP_LOG_FORMAT=console writes a line for each step, on a terminal too."""
        _, _, screen = on_a_terminal(portal.environ(BACKUP_LOG_FORMAT="console"))
        assert re.search(r"\d\d:\d\d:\d\d   component collected +database", screen)

    def test_json_where_a_person_wants_it(self, portal: Portal) -> None:
        """BACKUP_LOG_FORMAT=json writes JSON on a terminal too."""
        _, _, screen = on_a_terminal(portal.environ(BACKUP_LOG_FORMAT="json"))
        assert '"event": "archive_published"' in screen


def on_a_terminal(environ: dict[str, str]) -> tuple[int, str, str]:
    """Run a full backup whose standard error is a terminal: exit code, standard output, and what the terminal got."""
    ours, theirs = pty.openpty()
    seen: list[bytes] = []

    def watch() -> None:
        while True:
            try:
                seen.append(os.read(ours, 65536))
            except OSError:  # nobody has the other end any more
                return

    thread = threading.Thread(target=watch)
    thread.start()
    with subprocess.Popen([BACKUP, "full"], env=environ, stdout=subprocess.PIPE, stderr=theirs, text=True) as process:
        os.close(theirs)
        output, _ = process.communicate(timeout=60)
    thread.join()
    os.close(ours)
    return process.returncode, output, b"".join(seen).decode()


class TestExitCodes:
    """0 done, 1 failed, 2 wrong usage or configuration, 4 not intact, 5 busy."""

    @pytest.mark.parametrize(
        "arguments",
        [
            ["fall"],
            ["--dry-run"],
            ["full", "extra"],
            ["verify"],
            ["extract", "latest"],
            ["full", "--level", "dump"],
            [""],
        ],
    )
    def test_wrong_usage(self, files: dict[str, str], arguments: list[str]) -> None:
        """A word or an option that there is not ends with 2 and the usage, and backs nothing up."""
        ended = run(*arguments, environ=files)
        assert ended.returncode == 2
        assert "usage: backup.sh" in ended.stderr
        assert not Path(files["BACKUP_LOCAL_PATH"]).exists()

    @pytest.mark.parametrize("kind", ["full", "database", "media"])
    @pytest.mark.parametrize("asked", [{"BACKUP_S3_REGION": "offsite"}, {"BACKUP_ENCRYPTION": "true"}])
    def test_what_is_not_built(self, portal: Portal, kind: str, asked: dict[str, str]) -> None:
        """Nobody gets an archive that is plain and here, and believes it to be encrypted or on S3."""
        ended = run(kind, environ=portal.environ(**asked))
        assert ended.returncode == 2
        assert f"this release does not have {'encryption' if 'true' in asked.values() else 'S3'}" in ended.stderr
        assert f"({next(iter(asked))})\n  hint: Leave it out" in answer(ended)["error"]
        assert not list(portal.archives.glob("*.tar.gz"))

    def test_what_is_not_built_is_not_handed_over(self, files: dict[str, str]) -> None:
        """Where a worker would do it, who asks for encryption is refused before the broker is asked."""
        nobody = {"CELERY_BROKER_URL": "redis://127.0.0.1:1/5", "BACKUP_ENCRYPTION": "yes"}
        ended = run("media", environ=files | nobody)
        assert ended.returncode == 2
        assert "this release does not have encryption" in answer(ended)["error"]

    def test_others_warn_of_what_is_not_built(self, files: dict[str, str]) -> None:
        """What is there can be listed, whatever the environment asks of backups; the doctor calls it a fault."""
        asked = files | {"BACKUP_ENCRYPTION": "true"}
        run("media", environ=files)
        ended = run("list", environ=asked)
        assert ended.returncode == 0
        assert len(answer(ended)["backups"]) == 1
        (event,) = events(ended)
        assert event["event"] == "setting_unbuilt"
        assert event["detail"] == "this release does not have encryption (BACKUP_ENCRYPTION)"
        findings = {one["name"]: one for one in answer(run("doctor", environ=asked))["findings"]}
        assert findings["settings"]["state"] == "fault"
        assert "encryption (BACKUP_ENCRYPTION)" in findings["settings"]["what"]

    def test_wrong_configuration(self, files: dict[str, str]) -> None:
        """Variables that cannot be used are named all at once, as JSON too."""
        ended = run("media", environ=files | {"BACKUP_JOBS": "none", "BACKUP_LOCAL_PATH": "relative"})
        assert ended.returncode == 2
        assert "BACKUP_JOBS: 'none' is not a whole number" in answer(ended)["error"]
        assert "BACKUP_LOCAL_PATH: 'relative' is not an absolute path" in ended.stderr

    def test_an_archive_that_is_not_there(self, files: dict[str, str]) -> None:
        """Asking for what is not there is wrong usage."""
        ended = run("verify", "full_2020", environ=files)
        assert ended.returncode == 2
        assert answer(ended)["success"] is False

    @pytest.mark.parametrize("name", ["x" * 300, "a/" * 3000])
    def test_a_name_that_cannot_be(self, files: dict[str, str], name: str) -> None:
        """A name that no file can have is one of an archive that is not there."""
        for arguments in (["verify", name], ["extract", name, "media/scan.sarif"]):
            ended = run(*arguments, environ=files)
            assert ended.returncode == 2
            assert "Traceback" not in ended.stderr

    def test_an_archive_that_is_not_intact(self, files: dict[str, str]) -> None:
        """A damaged archive ends with 4."""
        path = Path(answer(run("media", environ=files))["path"])
        path.write_bytes(path.read_bytes()[:-1])
        ended = run("verify", "latest", environ=files)
        assert ended.returncode == 4
        assert answer(ended)["damages"]

    def test_busy(self, files: dict[str, str]) -> None:
        """A repository that is locked for longer than one waits ends with 5, and says what to do."""
        directory = Path(files["BACKUP_LOCAL_PATH"])
        directory.mkdir()
        (directory / ".lock").touch()
        holder = subprocess.Popen(["flock", "--exclusive", directory / ".lock", "cat"], stdin=subprocess.PIPE)
        try:
            while subprocess.run(["flock", "-n", directory / ".lock", "true"], check=False).returncode == 0:
                pass
            ended = run("media", environ=files | {"BACKUP_LOCK_TIMEOUT": "0"})
        finally:
            holder.communicate()
        assert ended.returncode == 5
        assert "is locked by process" in answer(ended)["error"]


class TestList:
    """What there is."""

    def test_an_empty_repository(self, files: dict[str, str]) -> None:
        """Where there is nothing, the list is empty, and a person is told how to begin, or that it is not there."""
        ended = run("list", environ=files)
        assert (ended.returncode, answer(ended)["backups"]) == (0, [])
        place = Path(files["BACKUP_LOCAL_PATH"])
        assert f"{place} is not there: BACKUP_LOCAL_PATH names another directory" in ended.stderr
        place.mkdir()
        assert "backup.sh full' makes the first one" in run("list", environ=files).stderr

    def test_archives(self, files: dict[str, str]) -> None:
        """Archives are in the JSON with all their facts, and in a line each for people."""
        made = answer(run("media", environ=files))
        ended = run("list", environ=files)
        (backup,) = answer(ended)["backups"]
        assert {key: backup[key] for key in ("path", "size_bytes", "checksum", "backup_id", "type")} == {
            key: made[key] for key in ("path", "size_bytes", "checksum", "backup_id", "type")
        }
        assert re.search(rf"media +[\d.]+ k?B +{made['backup_id']}", ended.stderr)

    def test_a_repository_that_cannot_be_read(self, files: dict[str, str]) -> None:
        """A file in its place is a failure, not an empty list."""
        Path(files["BACKUP_LOCAL_PATH"]).touch()
        ended = run("list", environ=files)
        assert ended.returncode == 1
        assert "not a directory" in answer(ended)["error"]


class TestVerifyAndExtract:
    """Looking at archives, and taking files out."""

    @pytest.fixture
    def made(self, files: dict[str, str]) -> dict[str, Any]:
        """A media archive."""
        return answer(run("media", environ=files))

    def test_verify(self, files: dict[str, str], made: dict[str, Any]) -> None:
        """An intact archive ends with 0, with its checksum in the JSON and a sentence for people."""
        ended = run("verify", made["backup_id"][:10], environ=files)
        found = answer(ended)
        assert (ended.returncode, found["success"], found["checksum"]) == (0, True, made["checksum"])
        assert f"{made['backup_id']} is intact: " in ended.stderr

    def test_paths_are_relative_to_the_callers_directory(
        self, files: dict[str, str], made: dict[str, Any], tmp_path: Path
    ) -> None:
        """What is written relatively is looked for, and put, where the caller is."""
        name = Path(made["path"]).name
        assert run("verify", f"../archives/{name}", environ=files, cwd=tmp_path / "elsewhere").returncode == 0
        ended = run(
            "extract",
            f"../archives/{name}",
            "media/scan.sarif",
            "--output",
            "here.sarif",
            environ=files,
            cwd=tmp_path / "elsewhere",
        )
        assert answer(ended)["path"] == str(tmp_path / "elsewhere" / "here.sarif")
        assert (tmp_path / "elsewhere" / "here.sarif").read_text() == '{"runs": []}'

    def test_extract_keeps_the_name(self, files: dict[str, str], made: dict[str, Any], tmp_path: Path) -> None:
        """Without --output a file keeps its name, and its mode and time."""
        source = tmp_path / "uploads" / "scan.sarif"
        run("extract", made["path"], "media/scan.sarif", environ=files, cwd=tmp_path / "elsewhere")
        found = tmp_path / "elsewhere" / "scan.sarif"
        assert found.stat().st_mtime_ns == source.stat().st_mtime_ns
        assert found.stat().st_mode == source.stat().st_mode

    def test_extract_needs_no_configuration(self, made: dict[str, Any], tmp_path: Path) -> None:
        """A file can be taken out of an archive by its path where nothing is set up."""
        ended = run(
            "extract",
            made["path"],
            "media/scan.sarif",
            environ={"PATH": os.environ["PATH"], "BACKUP_JOBS": "x"},
            cwd=tmp_path,
        )
        assert ended.returncode == 0

    def test_a_hard_link_can_be_extracted(self, files: dict[str, str], tmp_path: Path) -> None:
        """A file of two names can be taken out by either."""
        (tmp_path / "uploads" / "twin.sarif").hardlink_to(tmp_path / "uploads" / "scan.sarif")
        made = answer(run("media", environ=files))
        for name in ("scan.sarif", "twin.sarif"):
            ended = run("extract", made["path"], f"media/{name}", environ=files, cwd=tmp_path / "elsewhere")
            assert ended.returncode == 0
            assert (tmp_path / "elsewhere" / name).read_text() == '{"runs": []}'

    def test_a_file_that_is_not_there(self, files: dict[str, str], made: dict[str, Any], tmp_path: Path) -> None:
        """A member that the archive does not have is wrong usage, with the way to list them."""
        ended = run("extract", "latest", "media/none", environ=files, cwd=tmp_path / "elsewhere")
        assert ended.returncode == 2
        assert f"tar tzf {made['path']}" in answer(ended)["error"]

    def test_damage_leaves_nothing(self, files: dict[str, str], tmp_path: Path) -> None:
        """A file that is damaged in the archive is not written, and the code is that of damage."""
        (tmp_path / "uploads" / "noise").write_bytes(os.urandom(3 << 20))
        path = Path(answer(run("media", environ=files))["path"])
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        ended = run("extract", str(path), "media/noise", environ=files, cwd=tmp_path / "elsewhere")
        assert ended.returncode == 4
        assert "media/noise" in answer(ended)["error"]
        assert list((tmp_path / "elsewhere").iterdir()) == []

    def test_a_place_that_cannot_be_written(self, files: dict[str, str], made: dict[str, Any], tmp_path: Path) -> None:
        """Where the file cannot be put is said, with the option that names another place."""
        ended = run("extract", made["path"], "media/scan.sarif", "--output", str(tmp_path / "no/where"), environ=files)
        assert ended.returncode == 2
        assert "--output FILE" in answer(ended)["error"]

    def test_an_archive_without_an_index(self, files: dict[str, str], tmp_path: Path) -> None:
        """What tar and gzip made is refused with tar's own command, and not called damaged."""
        subprocess.run(["tar", "czf", tmp_path / "old.tar.gz", "-C", tmp_path, "uploads"], check=True)
        ended = run("extract", str(tmp_path / "old.tar.gz"), "media/scan.sarif", environ=files)
        assert ended.returncode == 2
        assert "use tar: tar xzf" in answer(ended)["error"]


def test_progress_goes_where_the_log_goes(capsys: pytest.CaptureFixture[str]) -> None:
    """A long job that no terminal watches tells how far it is on standard error, and nothing on standard output."""
    show = watched_log(LogFormat.JSON, line_seconds=0)
    show(Step(phase="media", done=1))
    out, err = capsys.readouterr()
    assert out == ""
    assert json.loads(err)["event"] == "job_progressed"


def test_each_part_of_a_job_has_a_rate_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What begins to count anew is not held against the time that went before."""
    now = 1000.0
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now))
    show = watched_log(LogFormat.JSON, line_seconds=0)
    show(Step(phase="verify", done=1 << 30))
    now += 0.25
    show(Step(phase="media", done=0))
    show(Step(phase="media", done=1 << 20))
    now += 0.25
    show(Step(phase="media", done=2 << 20))
    last = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert last["bytes_per_second"] == 4 << 20
