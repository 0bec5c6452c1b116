"""Where and as whom the backup command is started."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.commands import BACKUP, ROOT, Ended, answer, run
from tests.support.unprivileged import NOBODY, run_as_nobody

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.portal import Portal


SYSTEM_PYTHON = Path("/usr/bin/python3")


class TestSurroundings:
    """Where and as whom it is started."""

    def test_the_guides_cron_lines_work(self, portal: Portal) -> None:
        """The two lines of the guide, as cron runs them, leave two archives and a log in which both results are."""
        log = portal.directory / "kekkai-backup.log"
        environ = portal.environ(PATH="/usr/bin:/bin", SHELL="/bin/sh")
        for line in (
            "/opt/kekkai/scripts/backup.sh full >> /var/log/kekkai-backup.log 2>&1",
            "/opt/kekkai/scripts/backup.sh database >> /var/log/kekkai-backup.log 2>&1",
        ):
            command = line.replace("/opt/kekkai", str(ROOT)).replace("/var/log/kekkai-backup.log", str(log))
            subprocess.run(["/bin/sh", "-c", command], env=environ, cwd="/", stdin=subprocess.DEVNULL, check=True)
        results = [json.loads(line) for line in log.read_text().splitlines() if line.startswith('{"success"')]
        assert [result["type"] for result in results] == ["full", "database"]
        assert len(portal.left()) == 4

    def test_a_hostile_directory_is_not_trusted(self, files: dict[str, str], tmp_path: Path) -> None:
        """Modules that lie in the caller's directory are not imported, by the command or by its helpers."""
        hostile = tmp_path / "hostile"
        for name in ("json.py", "struct.py", "portal/__init__.py", "tools/__init__.py", "sitecustomize.py"):
            (hostile / name).parent.mkdir(parents=True, exist_ok=True)
            (hostile / name).write_text(f"open({str(tmp_path / 'harmed')!r}, 'w').close()\n")
        ended = run("media", environ=files | {"PYTHONPATH": str(hostile)}, cwd=hostile)
        assert ended.returncode == 0
        assert not (tmp_path / "harmed").exists()

    @pytest.mark.parametrize("variable", ["PYTHONHOME", "PYTHONSTARTUP", "PYTHONSAFEPATH", "LANG", "TMPDIR"])
    def test_a_strange_environment_does_no_harm(self, files: dict[str, str], variable: str) -> None:
        """Variables that are meant for other Pythons, or are invalid, do not stop a backup."""
        assert run("media", environ=files | {variable: "/nonexistent"}).returncode == 0

    @pytest.mark.parametrize("mask", ["0", "0277", "0777"])
    def test_any_umask(self, files: dict[str, str], mask: str) -> None:
        """What is made is its owner's to read and write, and nobody else's."""
        for kind in (["media"], ["pin", "latest", "--reason", "umask"]):
            command = ["/bin/sh", "-c", f'umask {mask}; exec "$0" "$@"', str(BACKUP), *kind]
            subprocess.run(command, env=files, stdin=subprocess.DEVNULL, capture_output=True, check=True)
        repository = Path(files["BACKUP_LOCAL_PATH"])
        modes = {stat.S_IMODE(path.stat().st_mode) for path in (repository, *repository.rglob("*")) if path.is_dir()}
        assert modes == {0o700}
        modes = {stat.S_IMODE(path.stat().st_mode) for path in repository.rglob("*") if path.is_file()}
        assert modes == {0o600}

    def test_a_current_directory_that_is_gone(self, files: dict[str, str], tmp_path: Path) -> None:
        """A backup needs none; who asks for a file in it is told why there is none."""
        gone = tmp_path / "gone"
        for arguments, code in ((["media"], 0), (["report"], 1)):
            gone.mkdir()
            command = ["/bin/sh", "-c", 'rmdir "$PWD"; exec "$0" "$@"', str(BACKUP), *arguments]
            ended = subprocess.run(
                command, env=files, cwd=gone, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
            )
            assert ended.returncode == code, ended.stderr
            assert ("The current directory is gone" in ended.stderr) is (code == 1)

    def test_no_environment_at_all(self, files: dict[str, str]) -> None:
        """Started with hardly a variable, as by systemd, it works."""
        kept = {name: value for name, value in files.items() if name != "PATH"}
        assert run("media", environ=kept).returncode == 0

    @pytest.mark.parametrize(
        ("redirection", "code"),
        [
            ("2>&-", 0),
            (">&-", 0),
            ("<&- >&- 2>&-", 0),
            ("2>/dev/full", 0),
            (">/dev/full", 1),
            ("2> >(exec true)", 0),
            ("> >(exec true)", 141),
        ],
    )
    def test_a_backup_does_not_depend_on_its_audience(self, files: dict[str, str], redirection: str, code: int) -> None:
        """Streams that are closed, full or read by nobody do not cost the archive."""
        command = f"exec '{BACKUP}' media {redirection}"
        ended = subprocess.run(["/bin/bash", "-c", command], env=files, capture_output=True, text=True, check=False)
        assert ended.returncode == code
        assert "Traceback" not in ended.stderr
        (path,) = Path(files["BACKUP_LOCAL_PATH"]).glob("media_*.tar.gz")
        assert run("verify", str(path), environ=files).returncode == 0

    @pytest.mark.parametrize("redirection", [">/dev/full", "> >(exec true)"])
    def test_an_error_does_not_depend_on_its_audience(self, files: dict[str, str], redirection: str) -> None:
        """Its exit code counts, and it is told, where the result cannot be written."""
        command = f"exec '{BACKUP}' verify nonexistent {redirection}"
        ended = subprocess.run(["/bin/bash", "-c", command], env=files, capture_output=True, text=True, check=False)
        assert ended.returncode == 2
        assert "archive not found" in ended.stderr
        assert "Traceback" not in ended.stderr

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EPIPE])
    def test_a_fault_elsewhere_is_not_taken_for_one_of_standard_output(self, number: int) -> None:
        """An error of the operating system that names no file is told as such, and the result is written."""
        program = (
            "import os\nfrom tools.terminal import run_command\n"
            f"def main():\n    raise OSError({number}, os.strerror({number}))\n"
            "run_command(main)"
        )
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert ended.returncode == 1
        assert json.loads(ended.stdout)["error"].startswith(
            f"the operating system refused: {os.strerror(number).lower()}"
        )
        assert "the work is done" not in ended.stderr.lower()

    def test_a_user_without_rights(self, unprivileged: Portal) -> None:
        """A user of no rights backs up and verifies what is theirs, where the environment was prepared for them."""
        for arguments in (["full"], ["verify", "latest", "--level", "dump"]):
            ended = as_nobody(unprivileged, *arguments)
            assert ended.returncode == 0, ended.stderr
            assert answer(ended)["success"]

    def test_an_upload_that_the_user_may_not_read(self, unprivileged: Portal) -> None:
        """An upload that cannot be read fails the whole backup, is named, and nothing is left."""
        (unprivileged.uploads / "secret.json").touch(mode=0o600)
        ended = as_nobody(unprivileged, "full")
        assert ended.returncode == 1
        assert f"cannot read {unprivileged.uploads}/secret.json: permission denied" in answer(ended)["error"]
        assert unprivileged.left() == set()

    def test_a_directory_of_another_user_in_the_uploads(self, unprivileged: Portal) -> None:
        """What only its owner may give the backup's attributes is in the way; single files need the right to write."""
        tenant = unprivileged.uploads / "tenant-001"
        (tenant / "notes").write_text("as backed up")
        os.chown(tenant / "notes", NOBODY, NOBODY)
        assert as_nobody(unprivileged, "media").returncode == 0
        os.chown(tenant, 0, 0)
        tenant.chmod(0o777)
        found = sorted(path.relative_to(unprivileged.uploads) for path in tenant.rglob("*"))
        for how in ("--dry-run", "--force"):
            ended = as_nobody(unprivileged, "latest", how, tool="restore.sh")
            assert ended.returncode == 1, ended.stderr
            assert "this user may not change tenant-001: another user owns it" in answer(ended)["error"]
            assert ended.stderr.count("In the way: ") == 1
        assert sorted(path.relative_to(unprivileged.uploads) for path in tenant.rglob("*")) == found
        for mode, code, content in ((0o755, 1, "changed"), (0o777, 0, "as backed up")):
            tenant.chmod(mode)
            (tenant / "notes").write_text("changed")
            ended = as_nobody(unprivileged, "latest", "--path", "tenant-001/notes", "--force", tool="restore.sh")
            assert ended.returncode == code, ended.stderr
            assert (tenant / "notes").read_text() == content


def as_nobody(portal: Portal, *arguments: str, tool: str = "backup.sh") -> Ended:
    return run_as_nobody([portal.directory / "kekkai" / "scripts" / tool, *arguments], portal.environ())


@pytest.fixture
def unprivileged(portal: Portal) -> Iterator[Portal]:
    """The portal as another user's, with an installation that this user can run and not change."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    python = Path(os.path.realpath(SYSTEM_PYTHON))
    if os.geteuid() != 0 or python.name != f"python{version}":
        pytest.skip("needs root, and a Python of this version that everybody can run")
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        directory = Path(name)
        directory.chmod(0o755)
        install_for_everybody(directory / "kekkai", python)
        found = replace(portal, directory=directory)
        for source in (portal.uploads, portal.audit):
            shutil.copytree(source, directory / source.name)
        found.archives.mkdir()
        for path in (found.archives, *found.uploads.rglob("*"), *found.audit.rglob("*"), found.uploads, found.audit):
            os.chown(path, NOBODY, NOBODY)
        yield found


def install_for_everybody(root: Path, python: Path) -> None:
    """Prepare an environment as setup.sh does, from the packages that are installed here."""
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("portal", "worker", "beat", "tools"):
        shutil.copytree(ROOT / name, root / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", root)
    (root / "scripts").symlink_to("tools")
    packages = root / ".venv" / "lib" / python.name / "site-packages"
    packages.mkdir(parents=True)
    installed = ROOT / ".venv" / "lib" / python.name / "site-packages"
    (packages / "here.pth").write_text(f"{root}\n{installed}\n")
    (root / ".venv" / "bin").mkdir()
    (root / ".venv" / "bin" / "python").symlink_to(python)
    (root / ".venv" / "pyvenv.cfg").write_text(f"home = {python.parent}\n")
    pins = "".join((root / file).read_text() for file in ("pyproject.toml", "tools/constraints.txt"))
    (root / ".venv" / "stamp").write_text(f"{root}\n{python}\n\n{pins}")
