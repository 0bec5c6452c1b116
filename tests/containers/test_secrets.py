"""The script that makes the secrets of the containers."""

from __future__ import annotations

import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.compose_file import ROOT, make_secrets, read_compose

if TYPE_CHECKING:
    from pathlib import Path


def test_secrets_are_made_once(tmp_path: Path) -> None:
    """The script that makes secrets leaves alone what is there, and lets nobody else read it."""
    directory = tmp_path / "secrets"
    assert make_secrets(directory, typed="what the database wants\n").returncode == 0
    files = {path.name: path.read_text() for path in directory.iterdir()}
    assert files.keys() == read_compose()["secrets"].keys()
    assert files["database_password"] == "what the database wants"
    assert files["redis_password"] in files["broker_url"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o440}
    assert make_secrets(directory, typed="").returncode == 0
    assert {path.name: path.read_text() for path in directory.iterdir()} == files


def test_secrets_need_a_password(tmp_path: Path) -> None:
    """Without a password for the database the script makes nothing, and says what to do."""
    ended = make_secrets(tmp_path / "secrets", typed="")
    assert (ended.returncode, list((tmp_path / "secrets").iterdir())) == (2, [])
    assert "hint: " in ended.stderr


def test_a_broker_url_of_an_earlier_release_is_replaced(tmp_path: Path) -> None:
    """One that the script made itself names the queue as it is called now; one that somebody wrote stays."""
    assert make_secrets(tmp_path).returncode == 0
    url, password = tmp_path / "broker_url", (tmp_path / "redis_password").read_text()
    made = url.read_text()
    for text, expected in [
        (f"redis://:{password}@redis:6379/0", made),
        ("redis://elsewhere:6379/5",) * 2,
    ]:
        url.unlink()
        url.write_text(text)
        assert make_secrets(tmp_path).returncode == 0
        assert url.read_text() == expected


def test_an_instance_has_its_secrets_where_its_env_file_says(tmp_path: Path) -> None:
    """The script reads the file that Compose is given, so that the second instance's secrets are its own."""
    (tmp_path / "second.env").write_text(f"KEKKAI_SECRETS={tmp_path}/second\n")
    script = [str(ROOT / "tools" / "secrets.sh"), "--env-file", str(tmp_path / "second.env")]
    subprocess.run(script, input="secret\n", text=True, check=True, capture_output=True)
    assert (tmp_path / "second" / "broker_url").exists()


def test_a_docker_without_compose_is_mentioned(tmp_path: Path) -> None:
    """Secrets can be made for another machine, so a missing Compose is no fault; it is named."""
    _fake_docker(tmp_path / "bin", "26.1.5", "")
    ended = make_secrets(tmp_path / "secrets", PATH=f"{tmp_path}/bin:/usr/bin:/bin")
    assert (ended.returncode, "Compose 2.24 or newer is needed" in ended.stderr) == (0, True)


@pytest.mark.parametrize(
    ("engine", "compose", "said"),
    [
        ("26.1.5+dfsg1", "2.26.1-4", ""),
        ("25.0.0", "v2.24.0", ""),
        ("28.0.1", "v5.0.0", ""),
        ("24.0.9", "2.26.1", "Docker Engine 24.0.9 is too old"),
        ("26.1.5", "2.23.3", "Docker Compose 2.23.3 is too old"),
    ],
)
def test_an_old_docker_is_refused(tmp_path: Path, engine: str, compose: str, said: str) -> None:
    """Releases that do not know what the compose file uses are named before anything is made."""
    _fake_docker(tmp_path / "bin", engine, compose)
    ended = make_secrets(tmp_path / "secrets", PATH=f"{tmp_path}/bin:/usr/bin:/bin")
    assert said in ended.stderr
    assert (ended.returncode, (tmp_path / "secrets").exists()) == ((2, False) if said else (0, True))


def _fake_docker(directory: Path, engine: str, compose: str) -> None:
    """A `docker` that knows nothing but its versions; without a version, there is no Compose."""
    directory.mkdir()
    program = directory / "docker"
    program.write_text(
        f"#!/bin/sh\n[ $1 = compose ] || exec echo '{engine}'\n[ -n '{compose}' ] || exit 1\necho '{compose}'\n"
    )
    program.chmod(0o755)
