"""The installer: what it learns of a portal, on a root of its own, and that a second time changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portal.ops.runtime.environment import read_env_file
from portal.ops.settings.env_format import parse_env_file
from tests.support.commands import ROOT
from tools.installer.needs import missing_programs
from tools.installer.plan import quoted

if TYPE_CHECKING:
    from pathlib import Path

INSTALL = ROOT / "tools" / "install.sh"
PASSWORD = "pa$$ 'word\" \\ #1"
DOCKER = """#!/bin/sh
case $1 in
    ps) echo one two ;;
    inspect) cat "$FAKE_CONTAINERS" ;;
esac
"""
CONTAINERS = [
    {
        "Name": "/dojo-uwsgi-1",
        "Config": {"Env": ["DD_DATABASE_URL=postgresql://dojo:secret@postgres:5432/defectdojo", "PATH=/bin"]},
        "NetworkSettings": {"Networks": {"dojo": {"Aliases": ["uwsgi"], "IPAddress": "172.20.0.5"}}, "Ports": {}},
        "Mounts": [{"Source": "/var/lib/docker/volumes/dojo_media/_data", "Destination": "/app/media"}],
    },
    {
        "Name": "/dojo-postgres-1",
        "Config": {"Env": ["POSTGRES_PASSWORD=other"]},
        "NetworkSettings": {"Networks": {"dojo": {"Aliases": ["postgres"], "IPAddress": "172.20.0.2"}}, "Ports": {}},
        "Mounts": [],
    },
]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the installer needs root")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A fresh root file system, as far as the installer looks at it."""
    root = tmp_path / "root"
    for name in ("etc/systemd/system", "var/log", "var/backups"):
        (root / name).mkdir(parents=True)
    (root / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\nwww:x:1001:1002::/:/bin/false\n")
    (root / "etc" / "group").write_text("root:x:0:\nwww:x:1002:\n")
    (root / "etc" / "shadow").write_text("root:*:1::::::\nwww:*:1::::::\n")
    (root / "etc" / "gshadow").write_text("root:*::\nwww:*::\n")
    return root


def install(root: Path, *arguments: str, code: int = 0, **environ: str) -> str:
    """Run the installer; what it says."""
    path = os.pathsep.join(["/usr/sbin", "/sbin", os.environ["PATH"]])
    ended = subprocess.run(
        [INSTALL, "--root", root, *arguments],
        env={"PATH": path, **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == code, ended.stderr
    return ended.stderr


def state(root: Path) -> dict[str, tuple[int, int, int, float]]:
    found = {}
    for path in sorted(root.rglob("*")):
        status = path.stat()
        found[str(path.relative_to(root))] = (status.st_mode, status.st_uid, status.st_gid, status.st_mtime)
    return found


def settings_of(root: Path) -> dict[str, str]:
    path = root / "etc" / "kekkai-backup" / "backup.env"
    return dict(parse_env_file(path.read_text(), str(path), {}).values)


class TestInstall:
    def test_a_dry_run_changes_nothing(self, root: Path) -> None:
        """It shows the plan, and the root file system is as before."""
        before = state(root)
        assert "Dry run: nothing was changed." in install(root, "--dry-run")
        assert state(root) == before

    @pytest.mark.parametrize("given", ["BACKUP_WAL", "A B=1", "=1", "1A=1"])
    def test_what_is_no_setting_is_refused(self, root: Path, given: str) -> None:
        """A line of the settings file that no command could read is never written."""
        before = state(root)
        assert "is not NAME=VALUE" in install(root, "--yes", "--set", given, code=2)
        assert state(root) == before

    def test_secrets_are_not_shown(self, root: Path) -> None:
        """Nor those of stores, which are no settings of ours."""
        names = ("BACKUP_REPLICATION_URL", "BACKUP_OFFSITE_SFTP_PASSWORD", "AWS_SECRET_ACCESS_KEY", "DD_DATABASE_URL")
        said = install(root, "--dry-run", *(f"--set={name}=sesame" for name in names))
        assert "sesame" not in said
        assert all(f"{name}=********" in said for name in names)

    def test_without_a_yes_nothing_is_changed(self, root: Path) -> None:
        """Nobody answers, so nothing is done, with exit code 3."""
        before = state(root)
        assert "Not confirmed; nothing was changed." in install(root, code=3)
        assert state(root) == before

    def test_it_makes_user_directories_settings_and_units(self, root: Path) -> None:
        """With the right owners and modes, and units that name this project."""
        said = install(root, "--yes", "--set", f"DD_DATABASE_PASSWORD={PASSWORD}")
        assert PASSWORD not in said
        entry = next(
            line for line in (root / "etc/passwd").read_text().splitlines() if line.startswith("kekkai-backup:")
        )
        uid, gid = map(int, entry.split(":")[2:4])
        repository = (root / "var/backups/kekkai").stat()
        assert (repository.st_uid, stat.S_IMODE(repository.st_mode)) == (uid, 0o700)
        settings = (root / "etc/kekkai-backup/backup.env").stat()
        assert (settings.st_uid, settings.st_gid, stat.S_IMODE(settings.st_mode)) == (0, gid, 0o640)
        assert settings_of(root) == {"BACKUP_LOCAL_PATH": "/var/backups/kekkai", "DD_DATABASE_PASSWORD": PASSWORD}
        unit = (root / "etc/systemd/system/kekkai-backup.service").read_text()
        assert f"ExecStart={ROOT}/tools/backup.sh full\n" in unit
        assert "User=kekkai-backup\n" in unit

    def test_the_engine_takes_the_file(self, root: Path) -> None:
        """Owner, modes and quoting are those that the engine asks for."""
        install(root, "--yes", "--set", f"DD_DATABASE_PASSWORD={PASSWORD}")
        file = read_env_file({"BACKUP_ENV_FILE": str(root / "etc/kekkai-backup/backup.env")})
        assert file.values["DD_DATABASE_PASSWORD"] == PASSWORD

    def test_a_second_time_changes_nothing(self, root: Path) -> None:
        """Everything is done already, and a settings file that was edited is kept."""
        install(root, "--yes")
        (root / "etc/kekkai-backup/backup.env").write_text("BACKUP_JOBS=1\n")
        before = state(root)
        assert "Nothing is to be done." in install(root, "--yes")
        assert state(root) == before

    def test_the_owner_of_the_uploads_backs_up(self, root: Path, tmp_path: Path) -> None:
        """Nobody else may read private uploads."""
        uploads = root / "srv" / "uploads"
        uploads.mkdir(parents=True)
        os.chown(uploads, 1001, 1002)
        install(root, "--yes", "--set", "PORTAL_UPLOAD_DIR=/srv/uploads")
        assert (root / "var/backups/kekkai").stat().st_uid == 1001
        assert "User=1001\nGroup=www\n" in (root / "etc/systemd/system/kekkai-backup.service").read_text()
        assert "kekkai-backup" not in (root / "etc/passwd").read_text()

    def test_a_repository_in_a_home_directory_can_be_written(self, root: Path) -> None:
        """The units protect home directories, unless something of the backup lies there."""
        install(root, "--yes")
        unit = root / "etc/systemd/system/kekkai-backup.service"
        assert "ProtectHome=read-only" in unit.read_text()
        install(root, "--yes", "--set", "BACKUP_LOCAL_PATH=/home/backup/archives")
        assert "ProtectHome" not in unit.read_text()

    def test_the_service_needs_a_queue(self, root: Path) -> None:
        """Without a broker, worker, beat and watcher could not start."""
        assert "the service needs a queue" in install(root, "--units", "service", "--dry-run", code=2)
        install(root, "--yes", "--units", "service", "--set", "CELERY_BROKER_URL=redis://localhost:6379/5")
        units = {path.name for path in (root / "etc/systemd/system").iterdir()}
        assert units == {f"kekkai-backup-{name}.service" for name in ("worker", "beat", "watcher")}

    def test_uninstalling_leaves_the_archives(self, root: Path) -> None:
        """Units, settings, logs and user are gone; archives are not."""
        before = {name for name in state(root) if not name.endswith("-")}
        install(root, "--yes")
        archive = root / "var/backups/kekkai/full.tar.gz"
        archive.touch()
        install(root, "--uninstall", "--yes")
        left = {name for name in state(root) if not name.endswith("-")} - before
        assert left == {"var/backups/kekkai", "var/backups/kekkai/full.tar.gz"}
        assert "kekkai-backup" not in (root / "etc/passwd").read_text()

    def test_uninstalling_leaves_keys_beside_the_settings(self, root: Path) -> None:
        """A key or password file that somebody has put beside the settings is not ours to remove, and is named."""
        install(root, "--yes")
        key = root / "etc/kekkai-backup/identity"
        key.write_text("AGE-SECRET-KEY-1")
        assert "/etc/kekkai-backup stays, for it holds more than the settings: identity" in install(
            root, "--uninstall", "--yes"
        )
        assert key.read_text() == "AGE-SECRET-KEY-1"
        assert not (root / "etc/kekkai-backup/backup.env").exists()

    @pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="Debian has it in systemd")
    def test_systemd_takes_the_units(self, root: Path) -> None:
        """What is installed passes systemd's own verification."""
        install(root, "--yes")
        units = sorted((root / "etc/systemd/system").iterdir())
        checked = [str(unit) for unit in units]
        ended = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", *checked], capture_output=True, text=True, check=False
        )
        ours = [line for line in ended.stderr.splitlines() if "kekkai" in line]
        assert ours == [], ended.stderr


def test_missing_client_programs_are_told_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without PostgreSQL's client programs the plan says what to install; with them it says nothing."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert any("postgresql-client" in note for note in missing_programs(clients=str(tmp_path)))
    program = tmp_path / "17" / "bin" / "pg_dump"
    program.parent.mkdir(parents=True)
    program.touch()
    assert not any("postgresql-client" in note for note in missing_programs(clients=str(tmp_path)))


class TestLearning:
    def test_it_learns_from_containers(self, root: Path, tmp_path: Path) -> None:
        """The URL is taken apart, the server's address outside of its network is found, and so are the uploads."""
        (tmp_path / "bin").mkdir()
        docker = tmp_path / "bin" / "docker"
        docker.write_text(DOCKER)
        docker.chmod(0o755)
        (tmp_path / "containers.json").write_text(json.dumps(CONTAINERS))
        path = f"{tmp_path / 'bin'}:/usr/sbin:/sbin:{os.environ['PATH']}"
        said = install(root, "--yes", PATH=path, FAKE_CONTAINERS=str(tmp_path / "containers.json"))
        assert settings_of(root) == {
            "BACKUP_LOCAL_PATH": "/var/backups/kekkai",
            "DD_DATABASE_HOST": "172.20.0.2",
            "DD_DATABASE_PORT": "5432",
            "DD_DATABASE_NAME": "defectdojo",
            "DD_DATABASE_USER": "dojo",
            "DD_DATABASE_PASSWORD": "secret",
            "PORTAL_UPLOAD_DIR": "/var/lib/docker/volumes/dojo_media/_data",
        }
        assert "secret" not in said
        assert "container dojo-uwsgi-1" in said

    def test_it_learns_from_a_compose_env_file(self, root: Path, tmp_path: Path) -> None:
        """Database, uploads and audit log are taken; the portal's own queue is not, since ours needs another one."""
        (tmp_path / ".env").write_text(
            "DD_DATABASE_HOST=db\nDD_DATABASE_PASSWORD='x y'\nPORTAL_UPLOAD_DIR=/srv/up\nCELERY_BROKER_URL=redis://r/0\n"
        )
        install(root, "--yes", "--from", str(tmp_path))
        assert settings_of(root) == {
            "BACKUP_LOCAL_PATH": "/var/backups/kekkai",
            "DD_DATABASE_HOST": "db",
            "DD_DATABASE_PASSWORD": "x y",
            "PORTAL_UPLOAD_DIR": "/srv/up",
        }


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1))
def test_every_value_comes_back_as_it_was(value: str) -> None:
    """Whatever is in a password, also at its ends, the settings file gives it back."""
    assert parse_env_file(f"A={quoted(value)}\n", "x", {}).values["A"] == value
