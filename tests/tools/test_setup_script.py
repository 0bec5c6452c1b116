"""The set-up: made once, made again where it is not what it should be; and what its files have to agree on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest

from tests.support.unprivileged import run_as_nobody
from tests.support.waiting import LONG_SECONDS

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted([*ROOT.glob("tools/**/*.sh"), ROOT / ".ci" / "run"])
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

UV = """#!/bin/bash
# Stands for uv: makes an environment that holds an interpreter and nothing else.
echo "$*" >>"$CALLS"
[[ -z ${UV_BREAKS:-} ]] || kill -9 "$PPID"
sleep "${UV_SECONDS:-0}"
mkdir -p "$UV_PROJECT_ENVIRONMENT/bin"
ln -sf "$(command -v python3)" "$UV_PROJECT_ENVIRONMENT/bin/python"
"""


class Tree:
    """A copy of the project with a stub in the place of uv: nothing is installed, and every call is remembered."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "project"
        (self.root / "tools").mkdir(parents=True)
        for name in ("pyproject.toml", "uv.lock", "tools/setup.sh", "tools/backup.sh", "tools/constraints.txt"):
            shutil.copy(ROOT / name, self.root / name)
        for name in ("portal", "worker", "beat"):
            (self.root / name).mkdir()
        (directory / "bin").mkdir()
        (directory / "bin" / "uv").write_text(UV)
        (directory / "bin" / "uv").chmod(0o755)
        (directory / "bin" / "python3").symlink_to(os.path.realpath(sys.executable))
        self._calls = directory / "calls"
        self._environ = {"PATH": f"{directory}/bin:/usr/bin:/bin", "HOME": str(directory), "CALLS": str(self._calls)}

    def setup(self, *extras: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run setup.sh."""
        return subprocess.run(
            [self.root / "tools" / "setup.sh", *extras],
            env=self._environ | environ,
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )

    def start(self, **environ: str) -> subprocess.Popen[bytes]:
        """Start setup.sh, and let it run."""
        return subprocess.Popen(
            [self.root / "tools" / "setup.sh"], env=self._environ | environ, stderr=subprocess.DEVNULL
        )

    @property
    def calls(self) -> list[str]:
        """What uv was asked for, each time."""
        return self._calls.read_text().splitlines() if self._calls.exists() else []


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A project that has not been set up yet."""
    return Tree(tmp_path)


class TestOnce:
    """What is done, and what is not done again."""

    def test_the_first_time_makes_the_environment(self, tree: Tree) -> None:
        """Where there is nothing, the environment is made from the lock, without downloading a Python."""
        ended = tree.setup()
        assert ended.returncode == 0
        assert (tree.root / ".venv" / "bin" / "python").exists()
        (call,) = tree.calls
        assert "--frozen" in call
        assert "--no-python-downloads" in call
        assert ended.stdout == ""
        assert "setup: ready after" in ended.stderr

    def test_the_second_time_does_nothing(self, tree: Tree) -> None:
        """Where all is well, nothing is done, and nothing is said."""
        tree.setup()
        again = tree.setup()
        assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
        assert len(tree.calls) == 1

    def test_another_extra_is_added(self, tree: Tree) -> None:
        """An extra that is asked for later is added to those that are there."""
        tree.setup("dev")
        tree.setup("demo")
        assert "--extra=demo --extra=dev" in tree.calls[1]
        tree.setup("dev")
        tree.setup()
        assert len(tree.calls) == 2

    def test_two_at_once_make_one(self, tree: Tree) -> None:
        """A second set-up waits for the first, and then has nothing to do."""
        both = [tree.start(UV_SECONDS="0.3") for _ in range(2)]
        assert [process.wait(LONG_SECONDS) for process in both] == [0, 0]
        assert len(tree.calls) == 1


class TestAgain:
    """An environment that is not what it should be."""

    def test_one_that_was_interrupted(self, tree: Tree) -> None:
        """A set-up that was killed half way leaves an environment that the next one does not take for whole."""
        assert tree.setup(UV_BREAKS="1").returncode < 0
        assert tree.setup().returncode == 0
        assert len(tree.calls) == 2

    def test_one_without_its_stamp(self, tree: Tree) -> None:
        """What was not finished is made anew, from nothing."""
        tree.setup()
        (tree.root / ".venv" / "stamp").unlink()
        (tree.root / ".venv" / "leftover").touch()
        tree.setup()
        assert not (tree.root / ".venv" / "leftover").exists()
        assert len(tree.calls) == 2

    @pytest.mark.parametrize("name", ["pyproject.toml", "tools/constraints.txt"])
    def test_one_of_an_older_project(self, tree: Tree, name: str) -> None:
        """When what the project asks for has changed, the environment is brought up to it."""
        tree.setup()
        with (tree.root / name).open("a") as file:
            file.write("# changed\n")
        tree.setup()
        assert len(tree.calls) == 2

    def test_one_that_was_moved(self, tree: Tree) -> None:
        """An environment holds absolute paths, so it is made again where the project was moved."""
        tree.setup()
        tree.root = tree.root.rename(tree.root.with_name("moved"))
        tree.setup()
        assert len(tree.calls) == 2

    def test_one_whose_python_is_gone(self, tree: Tree) -> None:
        """When the interpreter was removed by an upgrade, the environment is made again."""
        tree.setup()
        (tree.root / ".venv" / "bin" / "python").unlink()
        tree.setup()
        assert len(tree.calls) == 2


class TestRefused:
    """What ends with 2, and says what to do."""

    def test_an_unknown_extra(self, tree: Tree) -> None:
        """A misspelt extra is wrong usage."""
        ended = tree.setup("develop")
        assert ended.returncode == 2
        assert "no extra called 'develop'" in ended.stderr
        assert "usage: tools/setup.sh [demo] [dev] [admin]" in ended.stderr
        assert tree.calls == []

    def test_no_python(self, tree: Tree, tmp_path: Path) -> None:
        """Without a Python that is new enough, the package to install is named."""
        tools = tmp_path / "few"
        tools.mkdir()
        for name in ("bash", "readlink", "flock", "rm", "env", "mkdir"):
            (tools / name).symlink_to(str(shutil.which(name)))
        ended = tree.setup(PATH=str(tools))
        assert ended.returncode == 2
        assert "no Python 3.11 or newer was found" in ended.stderr
        assert "apt-get install python3" in ended.stderr

    def test_a_user_who_may_not_make_it(self) -> None:
        """Another user is told which command to run once, and as whom; the command that was to run does not."""
        if os.geteuid() != 0:
            pytest.skip("only root can become somebody else")
        with tempfile.TemporaryDirectory(dir="/tmp") as directory:
            Path(directory).chmod(0o755)
            tree = Tree(Path(directory))
            ended = run_as_nobody([tree.root / "tools" / "backup.sh", "full"], {"PATH": "/usr/bin:/bin"})
            assert (ended.returncode, ended.stdout) == (2, "")
            assert f"run once: sudo -u root {tree.root}/tools/setup.sh" in ended.stderr


def test_the_commands_prepare_the_environment(tree: Tree) -> None:
    """A command that finds no environment makes it first; its standard output stays its own."""
    ended = subprocess.run(
        [tree.root / "tools" / "backup.sh", "list"], env=tree._environ, capture_output=True, text=True, check=False
    )
    assert len(tree.calls) == 1
    assert ended.stdout == ""
    assert "No module named" in ended.stderr  # the stub installs nothing


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_pip_gets_the_versions_of_the_lock() -> None:
    """constraints.txt and uv.lock name the same packages at the same versions."""
    lock = tomllib.loads((ROOT / "uv.lock").read_text())
    locked = {package["name"]: package["version"] for package in lock["package"] if "registry" in package["source"]}
    lines = (ROOT / "tools" / "constraints.txt").read_text().splitlines()
    pinned = dict(re.split(r"==|\s*;", line)[:2] for line in lines if line and not line.startswith("#"))
    assert {normalised(name): version for name, version in pinned.items()} == locked


def test_the_lock_knows_what_the_project_asks_for() -> None:
    """Every dependency and every extra of pyproject.toml is in uv.lock."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lock = tomllib.loads((ROOT / "uv.lock").read_text())
    locked = {package["name"] for package in lock["package"]}
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *(name for names in extras.values() for name in names)]
    assert {normalised(re.split(r"[\[<>=!~ ;]", name)[0]) for name in asked} <= locked


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    """Every relative link of a document is to a file that is there."""
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL))
    places = [link.partition("#")[0] for link in links if not re.match(r"[a-z]+:", link)]
    assert [place for place in places if place and not (document.parent / place).exists()] == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
class TestShell:
    """Every script of the project."""

    def test_it_stops_at_the_first_failure(self, script: Path) -> None:
        """Each script has the strict mode on, at least where it is not sourced."""
        assert re.search(r"^\s*set -euo pipefail$", script.read_text(), re.MULTILINE)

    def test_bash_understands_it(self, script: Path) -> None:
        """Each script is free of errors of syntax."""
        assert subprocess.run(["/bin/bash", "-n", script], capture_output=True, check=False).stderr == b""

    def test_it_can_be_started(self, script: Path) -> None:
        """Each script is executable, and names its interpreter in a way that works everywhere."""
        assert os.access(script, os.X_OK)
        assert script.read_text().startswith("#!/usr/bin/env bash\n")


def test_the_guides_directory_is_a_link() -> None:
    """`scripts` leads to `tools`, by a relative link."""
    assert os.readlink(ROOT / "scripts") == "tools"
