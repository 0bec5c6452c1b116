"""What Kekkai's own code relies on, and this engine installed next to or instead of Kekkai's `portal` package."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING

import pytest

import portal.ops
from portal.ops import BackupJob, RestoreConfig
from portal.ops.errors import UnsupportedError
from tests.support.commands import ROOT
from tests.support.incrementals import Uploads

if TYPE_CHECKING:
    from pathlib import Path

STAND_IN = {
    "portal/__init__.py": '"""The portal."""\n',
    "portal/web.py": 'NAME = "the portal\'s own"\n',
    "portal/ops/__init__.py": "from .backup import BackupJob\nfrom .restore import RestoreJob\n",
    "portal/ops/backup.py": "class BackupJob:\n    theirs = True\n",
    "portal/ops/restore.py": "from .backup import BackupJob\n\nclass RestoreJob:\n    theirs = True\n",
}
"""The layout of Kekkai's package: a regular package, with modules where this engine has packages."""

ASK = "import portal.web, portal.ops, portal.ops.backup as b; print(b.BackupJob.__module__, portal.web.NAME)"


@pytest.fixture
def kekkai(tmp_path: Path) -> Path:
    """A directory of packages in which Kekkai's portal is installed."""
    for name, text in STAND_IN.items():
        path = tmp_path / "packages" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "packages"


def install(place: Path) -> None:
    """Put our packages into a directory, as an installer of the wheel does: over what is there."""
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    for name in packages["packages"]:
        shutil.copytree(ROOT / name, place / name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))


def python(program: str, *paths: Path) -> str:
    lines = f"import sys; sys.path[:0] = {[str(path) for path in paths]}\n{program}"
    ended = subprocess.run(
        [sys.executable, "-I", "-c", lines], capture_output=True, text=True, check=False, cwd="/", timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def test_beside_it_kekkais_package_hides_ours(kekkai: Path) -> None:
    """In one environment without ours installed over it, the portal's own package wins: both cannot be imported."""
    assert python(ASK, kekkai, ROOT) == "portal.ops.backup the portal's own"
    assert python("import portal.ops.backup as b; print(b.BackupJob.theirs)", kekkai, ROOT) == "True"


def test_installed_over_it_ours_takes_its_place(kekkai: Path) -> None:
    """Installed into the same directory, the engine is ours, and the rest of the portal stays Kekkai's."""
    install(kekkai)
    assert python(ASK, kekkai) == "portal.ops.backup.job the portal's own"
    assert python("from portal.ops.restore import RestoreJob as r; print(r.__module__)", kekkai) == (
        "portal.ops.restore.job"
    )


def test_in_an_environment_of_its_own_ours_is_alone(kekkai: Path) -> None:
    """The commands run isolated: a PYTHONPATH of the portal does not reach them."""
    ended = subprocess.run(
        [ROOT / "tools" / "backup.sh", "--version"],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(kekkai)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stdout.startswith("kekkai-backup ")


def test_public_names_come_from_the_top() -> None:
    """``from portal.ops import BackupJob`` works, for every public name, and for no other."""
    assert BackupJob.__module__ == "portal.ops.backup.job"
    assert all(getattr(portal.ops, name).__name__ == name for name in portal.ops.__all__)
    with pytest.raises(AttributeError):
        _ = portal.ops.Nothing


def test_a_restore_that_is_to_stop_services_is_refused_with_an_explanation() -> None:
    """Neither ignored nor a TypeError; without it the default is the guide's uploads directory."""
    with pytest.raises(UnsupportedError, match="does not stop services"):
        RestoreConfig(stop_services=True)
    with pytest.raises(UnsupportedError, match="not encrypted"):
        RestoreConfig(encryption_key="hunter2")
    assert str(RestoreConfig(stop_services=False).media_path) == "/var/lib/kekkai-portal/uploads"


def test_the_words_that_callers_look_for(tmp_path: Path) -> None:
    """Messages have "not found", "checksum", "mismatch" and "verification failed", as Kekkai's own have."""
    uploads = Uploads(directory=tmp_path)
    uploads.write("scan.json", b"{}")
    job = uploads.job()
    archive = job.backup_media().destination_path
    assert "not found" in job.verify_backup("/nowhere/backup.tar.gz")[1]
    sidecar = tmp_path.joinpath("archives") / f"{archive.rpartition('/')[2]}.sha256"
    sidecar.write_text(f"{'0' * 64}  {archive.rpartition('/')[2]}\n")
    valid, message = job.verify_backup(archive)
    assert not valid
    assert "checksum mismatch" in message
    restore = portal.ops.create_restore_job(backup_job=job, media_path=tmp_path / "elsewhere", environ={})
    error = restore.restore_media(archive).error or ""
    assert "verification failed" in error.lower()
