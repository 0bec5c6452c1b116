"""Scratch servers without a server: places, what is left of killed ones, programs, states, and what is delivered."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import pytest

from portal.ops.errors import ClientToolError, ConfigurationError, DiskFullError, RepositoryError, RestoreError
from portal.ops.pitr import combine, data_dir, scratch, scratch_server
from portal.ops.pitr.data_dir import _alter_system_aside, _commands, _complete, _move, plan_delivery
from portal.ops.pitr.scratch import (
    DIRECTORY,
    Owner,
    check_room,
    reachable,
    scratch_directory,
    scratch_parent,
    server_owner,
    sweep_scratch,
)
from portal.ops.pitr.scratch_server import Progress, ScratchServer, find_server_program
from portal.ops.repository.repository import Repository
from tests.support.fake_runner import FakeRunner, Script

if TYPE_CHECKING:
    from collections.abc import Callable

NOON: Final = datetime(2026, 11, 29, 12, tzinfo=UTC)
DEAF: Final = (
    "import signal, time\nsignal.signal(signal.SIGQUIT, signal.SIG_IGN)\nprint(1, flush=True)\ntime.sleep(60)\n"
)
NOBODY: Final = Owner(65534, 65534, "nobody")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository(tmp_path / "repository")
    made.prepare()
    return made


class TestPlaces:
    @pytest.mark.parametrize(
        ("mode", "owner", "expected"),
        [
            (0o100, (7, 8), True),
            (0o011, (7, 8), False),
            (0o010, (9, 8), True),
            (0o101, (9, 8), False),
            (0o001, (9, 9), True),
            (0o110, (9, 9), False),
        ],
    )
    def test_who_may_pass(
        self, monkeypatch: pytest.MonkeyPatch, mode: int, owner: tuple[int, int], expected: bool
    ) -> None:
        """By the bit of owner, group or others, as the system decides."""
        monkeypatch.setattr(Path, "stat", lambda _: SimpleNamespace(st_uid=7, st_gid=8, st_mode=mode))
        assert reachable(Path("/x"), Owner(*owner, "x")) is expected

    def test_a_path_for_a_socket(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Short and plain; otherwise another place is taken."""
        monkeypatch.setattr("portal.ops.pitr.scratch.tempfile.gettempdir", lambda: "/tmp/x y")
        short = Path("/tmp") / f"k{os.getpid()}"
        short.mkdir()
        try:
            assert scratch_parent(short, None) == short / DIRECTORY
            (short / DIRECTORY).mkdir()
            assert scratch_parent(short, None) == short / DIRECTORY
        finally:
            (short / DIRECTORY).rmdir()
            short.rmdir()
        assert scratch_parent(Path("/tmp") / ("l" * 51 + "o"), None) == Path("/var/tmp")
        assert scratch_parent(Path("/tmp/a b"), None) == Path("/var/tmp")
        monkeypatch.setattr(scratch, "_suits", lambda *_: False)
        assert scratch_parent(short, None) == Path("/tmp")

    def test_a_repository_that_others_may_pass(self) -> None:
        """The directory that is made in it is for its owner alone, before and after it is there."""
        short = Path("/tmp") / f"k{os.getpid()}"
        short.mkdir(mode=0o755)
        try:
            assert scratch_parent(short, NOBODY) == Path(tempfile.gettempdir()).resolve()
            (short / DIRECTORY).mkdir(mode=0o700)
            assert scratch_parent(short, NOBODY) == Path(tempfile.gettempdir()).resolve()
            mine = Owner(os.getuid(), os.getgid(), "mine")
            assert scratch_parent(short, mine) == short / DIRECTORY
            (short / DIRECTORY).rmdir()
            assert scratch_parent(short, mine) == short / DIRECTORY
        finally:
            shutil.rmtree(short)

    def test_the_servers_user(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nobody else's where this is not root's process; else postgres or nobody, if there is one."""
        users = {"nobody": SimpleNamespace(pw_uid=5, pw_gid=6)}
        monkeypatch.setattr("portal.ops.pitr.scratch.pwd.getpwnam", lambda name: users[name])
        monkeypatch.setattr("portal.ops.pitr.scratch.os.geteuid", lambda: 1)
        assert server_owner() is None
        monkeypatch.setattr("portal.ops.pitr.scratch.os.geteuid", lambda: 0)
        assert server_owner() == Owner(5, 6, "nobody")
        users["postgres"] = SimpleNamespace(pw_uid=3, pw_gid=4)
        assert server_owner() == Owner(3, 4, "postgres")
        users.clear()
        with pytest.raises(RepositoryError, match="a scratch server cannot run as root"):
            server_owner()

    def test_room(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """To the byte; of the directory that is there already."""
        monkeypatch.setattr(
            "portal.ops.pitr.scratch.os.statvfs", lambda _: SimpleNamespace(f_bavail=1000, f_frsize=1000)
        )
        check_room(tmp_path, 1_000_000)
        with pytest.raises(DiskFullError) as caught:
            check_room(tmp_path / "none/none", 1_000_001)
        assert caught.value.message == f"a scratch server needs about 1.0 MB in {tmp_path}, and 1.0 MB are free"
        assert "TMPDIR" in caught.value.hint

    def test_a_directory_of_its_own(self, repository: Repository, tmp_path: Path) -> None:
        """For its owner only, recorded and locked while it is used, and removed after an error too."""
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(KeyError), scratch_directory(repository, None, 0, parent=tmp_path) as directory:
            (directory / "x").mkdir()
            assert directory.parent == tmp_path
            assert directory.stat().st_mode & 0o777 == 0o700
            (record,) = (repository.path / DIRECTORY).iterdir()
            assert (record.name, record.read_text()) == (f"{directory.name}.lock", str(directory))
            assert sweep_scratch(repository) == []
            raise KeyError
        assert not directory.exists()
        assert list((repository.path / DIRECTORY).iterdir()) == []
        assert len(os.listdir("/proc/self/fd")) == before

    def test_it_cannot_be_made(self, tmp_path: Path) -> None:
        """The reason is told, and what names another place."""
        (tmp_path / "file").write_text("")
        with (
            pytest.raises(RepositoryError, match=r"^cannot make a directory for a scratch server in ") as caught,
            scratch_directory(Repository(tmp_path / "file"), None, 0, parent=tmp_path),
        ):
            pass
        assert "TMPDIR" in caught.value.hint

    def test_what_killed_ones_have_left(self, repository: Repository, tmp_path: Path) -> None:
        """The directory of a record's own name goes, and nothing else that a record names."""
        assert sweep_scratch(Repository(tmp_path / "none")) == []
        records = repository.path / DIRECTORY
        records.mkdir()
        own, other = tmp_path / "kekkai-scratch-a", tmp_path / "kekkai-scratch-b"
        for path in (own, other):
            path.mkdir()
        (records / "kekkai-scratch-a.lock").write_text(str(own))
        (records / "kekkai-scratch-c.lock").write_text(str(other))
        (records / "other.lock").write_text(str(other))
        assert sweep_scratch(repository) == [str(own), str(other)]
        assert (own.exists(), other.exists()) == (False, True)
        assert [path.name for path in records.iterdir()] == ["other.lock"]

    def test_a_tree_that_does_not_go(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is tried again and again, and then left."""
        tried: list[object] = []
        monkeypatch.setattr("portal.ops.pitr.scratch.shutil.rmtree", lambda *_, **__: tried.append(1))
        monkeypatch.setattr("portal.ops.pitr.scratch.time.sleep", lambda seconds: tried.append(seconds))
        scratch._remove(tmp_path)
        assert tried == [1, 0.1] * 50
        tried.clear()
        scratch._remove(tmp_path / "gone")
        assert tried == [1]


class TestProgress:
    def test_a_server_that_hangs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """After ten minutes without a change; each change begins anew."""
        now = [0.0]
        monkeypatch.setattr("portal.ops.pitr.scratch_server.time.monotonic", lambda: now[0])
        progress = Progress(since=0.0)
        progress.note((1,), "starts")
        now[0] = 600.0
        progress.note((1,), "starts")
        progress.note((2,), "replays")
        now[0] = 1200.0
        progress.note((2,), "replays")
        now[0] = 1200.1
        with pytest.raises(RestoreError) as caught:
            progress.note((2,), "replays")
        assert caught.value.message == ("the scratch server hangs: it replays, and has done nothing more for 10:00 min")


def server(directory: Path, **more: Any) -> ScratchServer:
    data = directory / "data"
    data.mkdir(exist_ok=True)
    given: dict[str, Any] = {
        "directory": directory,
        "data": data,
        "owner": None,
        "major": 17,
        "superuser": "root",
        "limits": {},
        "runner": FakeRunner({}),
    }
    return ScratchServer(**{**given, **more})


class TestServer:
    def test_its_state(self, tmp_path: Path) -> None:
        """The eighth line of its pid file, once it is there."""
        made = server(tmp_path)
        made._process = SimpleNamespace(poll=lambda: None)  # type: ignore[assignment]
        pid = made.data / "postmaster.pid"
        assert made._state() == ""
        pid.write_text("1\n2\n3\n4\n5\n6\n7\n")
        assert made._state() == ""
        pid.write_text("1\n2\n3\n4\n5\n6\n7\nready   \n")
        assert made._state() == "ready"
        feed: Any = SimpleNamespace(failure=None)
        assert made._accepts_connections(feed)
        pid.write_text("1\n2\n3\n4\n5\n6\n7\nstarting\n")
        assert not made._accepts_connections(feed)
        pid.write_bytes(b"\xff\xfe")
        assert made._state() == ""
        with pytest.raises(RestoreError, match=r"^the WAL cannot be used: damaged\n"):
            made._accepts_connections(SimpleNamespace(failure="damaged"))  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("said", "why"),
        [
            ("LOG:  starting\nFATAL:  no space\nLOG:  shut down\n", "no space"),
            ("PANIC:  first\nERROR:  second\n", "second"),
            ("LOG:  one\nLOG:  last\n", "last"),
            ("cannot be run\n", "cannot be run"),
            ("", "it says nothing"),
            ("FATAL:  too early\n" + "x" * 20_000 + "\nlast\n", "last"),
        ],
    )
    def test_it_has_ended(self, tmp_path: Path, said: str, why: str) -> None:
        """The last grave line of its log is told, or its last words."""
        made = server(tmp_path)
        (tmp_path / "server.log").write_text(said)
        made._process = SimpleNamespace(poll=lambda: 1)  # type: ignore[assignment]
        with pytest.raises(RestoreError) as caught:
            made._state()
        assert caught.value.message == f"the scratch server ended: {why}"

    @pytest.mark.parametrize(("fast", "number"), [(True, signal.SIGINT), (False, signal.SIGQUIT)])
    def test_it_is_stopped(self, tmp_path: Path, fast: bool, number: int) -> None:
        """With a checkpoint, whose failure is an error, or at once."""
        made = server(tmp_path)
        (tmp_path / "server.log").write_text("FATAL:  no checkpoint\n")
        made.stop()
        sent: list[int] = []
        for code in (0, 1):
            made._process = SimpleNamespace(send_signal=sent.append, wait=lambda _, code=code: code)  # type: ignore[assignment]
            if fast and code:
                with pytest.raises(RestoreError, match="no checkpoint"):
                    made.stop(fast=True)
            else:
                made.stop(fast=fast)
            assert made._process is None
        assert sent == [number] * 2

    def test_one_that_does_not_stop(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is killed with all of its group."""
        monkeypatch.setattr(scratch_server, "_STOP_SECONDS", 0.05)
        made = server(tmp_path)
        made._process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                DEAF,
            ],
            start_new_session=True,
            stdout=subprocess.PIPE,
        )
        process = made._process
        assert process.stdout
        process.stdout.readline()
        made.stop()
        assert process.returncode == -signal.SIGKILL
        process.stdout.close()

    def test_how_it_is_asked(self, tmp_path: Path) -> None:
        """Through its own socket, as its superuser, without anything that would run code."""
        newer, older = server(tmp_path).target("db"), server(tmp_path, major=16).target("db")
        assert (newer.host, newer.port, newer.name, newer.user) == (f"{tmp_path}/socket", 5432, "db", "root")
        assert older.options["options"] == "-c session_preload_libraries= -c local_preload_libraries="
        assert newer.options["options"] == f"{older.options['options']} -c event_triggers=off"

    def test_how_it_is_started(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """With a configuration of our own, limits as high as the source's, and durable only where that is asked for."""
        asked: list[Any] = []
        monkeypatch.setattr(scratch_server, "find_server_program", lambda *_, **__: Path("/bin/postgres"))
        monkeypatch.setattr(scratch_server, "launch_command", lambda command, **given: (command, given))
        monkeypatch.setattr(
            "portal.ops.pitr.scratch_server.subprocess.Popen", lambda command, **given: asked.append((command, given))
        )
        limits = {"max_connections": 300, "max_worker_processes": 2, "max_wal_senders": 5}
        server(tmp_path, limits=limits).start({"port": "7"})
        server(tmp_path, is_durable=True, major=16).start()
        ((first, how), given), ((second, _), _) = asked
        one, other = (
            dict(word[2:].split("=", 1) for word in map(str, command) if word.startswith("--"))
            for command in (first, second)
        )
        assert first[:3] == [Path("/bin/postgres"), "-D", f"{tmp_path}/data"]
        assert (one["max_connections"], one["max_worker_processes"], one["max_wal_senders"]) == ("300", "8", "5")
        assert (one["fsync"], one["full_page_writes"], one["port"], one["event_triggers"]) == ("off", "off", "7", "off")
        assert (other["fsync"], other["full_page_writes"], other["port"]) == ("on", "on", "5432")
        assert "event_triggers" not in other
        assert (one["hba_file"], one["ident_file"]) == (f"{tmp_path}/hba.conf", f"{tmp_path}/empty.conf")
        assert (tmp_path / "hba.conf").read_text() == "local all all trust\n"
        assert how == {"owner": None, "death_signal": signal.SIGQUIT}
        assert given["env"] == {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC", "HOME": str(tmp_path)}
        assert (given["cwd"], given["start_new_session"]) == (tmp_path, True)
        assert (tmp_path / "socket").stat().st_mode & 0o777 == 0o700

    def test_its_program(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of the same major version, and one that its user may run."""
        runner = FakeRunner({"postgres": Script(stdout=b"postgres (PostgreSQL) 17.4\n")})
        (tmp_path / "postgres").write_text("")
        (tmp_path / "postgres").chmod(0o755)
        tmp_path.chmod(0o700)
        found = find_server_program(17, None, runner=runner, bin_dir=tmp_path)
        assert found == tmp_path / "postgres"
        with pytest.raises(ClientToolError, match=r"^a recovery needs a server of version 16, and there is only 17.4"):
            find_server_program(16, None, runner=runner, bin_dir=tmp_path)
        with pytest.raises(ClientToolError, match=r"^a scratch server runs as user nobody, who may not run ") as caught:
            find_server_program(17, NOBODY, runner=runner, bin_dir=tmp_path)
        assert "postgresql-17" in caught.value.hint
        monkeypatch.setattr(scratch_server, "reachable", lambda *_: True)
        assert find_server_program(17, NOBODY, runner=runner, bin_dir=tmp_path) == found


class TestCombining:
    def program(self, tmp_path: Path, script: str) -> Path:
        """A program in the place of pg_combinebackup."""
        path = tmp_path / "pg_combinebackup"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    def test_how_it_is_asked(self, tmp_path: Path) -> None:
        """Parts that nothing else uses are linked, where the program can."""
        program = self.program(tmp_path, 'echo "$@" >>"$(dirname "$0")/asked"; env | sort >"$(dirname "$0")/env"')
        for major in (17, 18):
            combine._combine(program, major, [tmp_path / "0", tmp_path / "1"], tmp_path / "data", None)
        plain, linked = (tmp_path / "asked").read_text().splitlines()
        assert plain == f"--no-sync --no-manifest --output={tmp_path}/data {tmp_path}/0 {tmp_path}/1"
        assert linked == f"--no-sync --no-manifest --output={tmp_path}/data --link {tmp_path}/0 {tmp_path}/1"
        assert "LC_ALL=C" in (tmp_path / "env").read_text()

    @pytest.mark.parametrize(("said", "why"), [("echo first >&2; echo last >&2; ", "last"), ("", "it says nothing")])
    def test_it_fails(self, tmp_path: Path, said: str, why: str) -> None:
        """Its last words are told."""
        with pytest.raises(RestoreError) as caught:
            combine._combine(self.program(tmp_path, f"{said}exit 1"), 17, [tmp_path], tmp_path / "data", None)
        assert caught.value.message == f"the base backups cannot be combined: {why}"
        assert caught.value.hint

    @pytest.mark.parametrize(
        ("reason", "kind", "advice"),
        [
            ("No space left on device", DiskFullError, "Make room in "),
            ("Permission denied", RestoreError, "Look at the disk and the permissions of "),
            ("Input/output error", RestoreError, "Look at the disk and the permissions of "),
        ],
    )
    def test_the_machine_is_at_fault(
        self, tmp_path: Path, reason: str, kind: type[RestoreError | DiskFullError], advice: str
    ) -> None:
        """Another base backup would not help then."""
        program = self.program(tmp_path, f"echo 'error: could not open file \"x\": {reason}' >&2; exit 1")
        with pytest.raises(kind) as caught:
            combine._combine(program, 17, [tmp_path], tmp_path / "data", None)
        assert caught.value.message.endswith(reason)
        assert caught.value.hint.startswith(f"{advice}{tmp_path}")

    def test_a_chain_and_one_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """One alone needs no program; of a chain each is unpacked beside the data, and the parts go."""
        unpacked: list[tuple[Path, Path]] = []

        def unpack(archive: Path, place: Path, **_: object) -> None:
            unpacked.append((archive, place))
            place.mkdir()

        combined: list[Any] = []
        monkeypatch.setattr(combine, "unpack_cluster", unpack)
        monkeypatch.setattr(combine, "_combine", lambda *given: combined.append(given))
        monkeypatch.setattr(combine, "find_combiner", lambda *_, **__: Path("/program"))
        data, line = tmp_path / "data", [tmp_path / "a", tmp_path / "b"]
        given: Any = {"major": 17, "owner": None, "runner": FakeRunner({}), "bin_dir": None, "jobs": 1}
        combine.unpack_bases(line, data, **given)
        parts = [tmp_path / "bases/0", tmp_path / "bases/1"]
        assert unpacked == list(zip(line, parts, strict=True))
        assert combined == [(Path("/program"), 17, parts, data, None)]
        assert not (tmp_path / "bases").exists()
        combine.unpack_bases(line[:1], data, **given)
        assert unpacked[2:] == [(line[0], data)]
        assert len(combined) == 1


class TestDelivery:
    def test_configuration(self, tmp_path: Path) -> None:
        """What the old server had stays; what is lacking is written, for its owner only."""
        (tmp_path / "postmaster.opts").write_text("")
        (tmp_path / "pg_hba.conf").write_text("own\n")
        said = _complete(tmp_path, None, {"max_b": 2, "max_a": 1})
        assert said == ("the old server had its configuration elsewhere; a minimal one was written",)
        assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
            "postgresql.conf": "max_a = 1\nmax_b = 2\n",
            "pg_hba.conf": "own\n",
            "pg_ident.conf": "",
        }
        assert (tmp_path / "postgresql.conf").stat().st_mode & 0o777 == 0o600
        (tmp_path / "pg_hba.conf").unlink()
        assert _complete(tmp_path, None, {}) == ("the configuration is the old server's; look at it before the start",)
        assert "samehost scram-sha-256" in (tmp_path / "pg_hba.conf").read_text()

    def test_settings_of_administrators(self, tmp_path: Path) -> None:
        """They are put aside, and come back; where there were none, there are none."""
        auto = tmp_path / "postgresql.auto.conf"
        for before in ("work_mem = 1\n", ""):
            auto.write_text(before)
            with _alter_system_aside(tmp_path):
                assert auto.read_text() == ""
            assert auto.read_text() == before

    def test_it_is_moved(self, tmp_path: Path) -> None:
        """Onto an empty directory; on anything else it is refused."""
        (tmp_path / "data").mkdir()
        (tmp_path / "target").mkdir()
        _move(tmp_path / "data", tmp_path / "target")
        assert [path.name for path in tmp_path.iterdir()] == ["target"]
        (tmp_path / "target/x").write_text("")
        (tmp_path / "data").mkdir()
        with pytest.raises(RestoreError, match=r"^cannot put the cluster to .*: directory not empty\n"):
            _move(tmp_path / "data", tmp_path / "target")

    def test_commands(self) -> None:
        """As the server's user, to whom the directory has to belong."""
        place, program = Path("/new data"), Path("/bin/postgres")
        start = "/bin/pg_ctl -D '/new data' -l '/new data.log' start"
        assert _commands(place, None, program) == (start,)
        assert _commands(place, Owner(1, 1, "postgres"), program) == (f"runuser -u postgres -- {start}",)
        assert _commands(place, NOBODY, program) == (
            "chown -R postgres:postgres '/new data'",
            f"runuser -u postgres -- {start}",
        )

    @pytest.mark.parametrize(
        ("prepare", "name", "why"),
        [
            (lambda path: (path / "t").write_text(""), "t", "is not an empty directory"),
            (lambda path: (path / "t/x").mkdir(parents=True), "t", "is not an empty directory"),
            (lambda _: None, "none/t", "does not exist"),
        ],
    )
    def test_targets_that_cannot_be(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare: Callable[[Path], object], name: str, why: str
    ) -> None:
        """Nothing is overwritten, and nothing is made above it."""
        monkeypatch.setattr(data_dir, "plan_recovery", lambda *_: "plan")
        monkeypatch.setattr(data_dir, "server_owner", lambda: None)
        prepare(tmp_path)
        with pytest.raises(ConfigurationError, match=why):
            plan_delivery(Repository(tmp_path), NOON, tmp_path / name)

    def test_targets_that_can_be(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """An empty one, or none; the server's user has to reach it."""
        monkeypatch.setattr(data_dir, "plan_recovery", lambda *_: "plan")
        monkeypatch.setattr(data_dir, "server_owner", lambda: NOBODY)
        (tmp_path / "empty").mkdir()
        tmp_path.chmod(0o700)
        with pytest.raises(ConfigurationError, match=f"^user nobody, who replays the WAL, cannot reach {tmp_path}"):
            plan_delivery(Repository(tmp_path), NOON, tmp_path / "empty")
        monkeypatch.setattr(data_dir, "reachable", lambda *_: True)
        for name in ("empty", "none"):
            assert str(plan_delivery(Repository(tmp_path), NOON, tmp_path / name)) == "plan"
