"""The file of settings on the disk: which one is read, and which one is refused."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from portal.ops.backup import create_backup_job
from portal.ops.errors import ConfigurationError
from portal.ops.runtime import environment
from portal.ops.runtime.environment import current_settings

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    path = tmp_path / "backup.env"
    path.write_text("BACKUP_JOBS=3\nDD_DATABASE_PASSWORD=hunter2\n")
    path.chmod(0o600)
    return path


def refusal(path: object) -> str:
    with pytest.raises(ConfigurationError) as caught:
        current_settings({"BACKUP_ENV_FILE": str(path)})
    assert "hunter2" not in str(caught.value)
    return str(caught.value)


def test_the_file_that_is_named_is_read(env_file: Path) -> None:
    """BACKUP_ENV_FILE names the file."""
    assert current_settings({"BACKUP_ENV_FILE": str(env_file)}).jobs == 3


def test_the_default_file_is_read_if_it_is_there(env_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without BACKUP_ENV_FILE the default file counts, and a machine without it needs none."""
    monkeypatch.delenv("BACKUP_ENV_FILE", raising=False)
    monkeypatch.setattr(environment, "DEFAULT_ENV_FILE", str(env_file))
    assert current_settings().jobs == 3
    env_file.unlink()
    assert current_settings().jobs is None


def test_no_file_can_be_asked_for(env_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/null stands for no file at all."""
    monkeypatch.setattr(environment, "DEFAULT_ENV_FILE", str(env_file))
    monkeypatch.setenv("BACKUP_ENV_FILE", os.devnull)
    assert current_settings().jobs is None


def test_the_python_api_reads_it(env_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A job made by the API has the settings of the file, below its own arguments."""
    monkeypatch.setenv("BACKUP_ENV_FILE", str(env_file))
    job = create_backup_job(local_path=tmp_path / "backups")
    assert job.config.jobs == 3


@pytest.mark.parametrize(("mode", "said"), [(0o620, "changed by other users"), (0o604, "every user can read it")])
def test_a_file_that_others_can_change_or_read_is_refused(env_file: Path, mode: int, said: str) -> None:
    """Whoever changes the file decides where backups go, and a secret in it is to stay one; the hint is a command."""
    env_file.chmod(mode)
    assert said in refusal(env_file)
    assert "chmod" in refusal(env_file)


def test_a_file_without_secrets_may_be_read_by_everybody(env_file: Path) -> None:
    """A file that names a password file holds no secret."""
    env_file.write_text("BACKUP_JOBS=3\nDD_DATABASE_PASSWORD_FILE=/dev/null\n")
    env_file.chmod(0o644)
    assert current_settings({"BACKUP_ENV_FILE": str(env_file)}).jobs == 3


def test_a_secret_of_an_off_site_store_is_one(env_file: Path) -> None:
    """Variables that are no settings of ours can be secrets too."""
    env_file.write_text("AWS_SECRET_ACCESS_KEY=hunter2\n")
    env_file.chmod(0o644)
    assert "AWS_SECRET_ACCESS_KEY" in refusal(env_file)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
def test_a_file_of_another_user_is_refused(env_file: Path) -> None:
    """Its owner could change it: only root and the user of the process are trusted."""
    os.chown(env_file, 65534, 65534)
    assert "belongs to user 65534" in refusal(env_file)


def test_what_is_no_file_is_refused(env_file: Path, tmp_path: Path) -> None:
    """A file that is not there, a relative path, a directory, a pipe that nobody writes to, bytes that are no text."""
    assert "no such file" in refusal(tmp_path / "missing")
    assert "not an absolute path" in refusal("backup.env")
    assert "is a directory" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert "not a regular file" in refusal(tmp_path / "pipe")
    env_file.write_bytes(b"BACKUP_JOBS=\xff\n")
    assert "UTF-8" in refusal(env_file)
    env_file.write_bytes(b"BACKUP_JOBS=3\n" + b"#" * 1_000_000)
    assert "has more than 1,000,000 bytes" in refusal(env_file)


def test_a_line_that_makes_no_sense_is_refused(env_file: Path) -> None:
    """The error names the file and the line."""
    env_file.write_text("BACKUP_JOBS=3\nwhat is this\n")
    assert f"{env_file} cannot be used: line 2" in refusal(env_file)
