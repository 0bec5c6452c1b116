"""The code of the previous release, taken from the history of the project, and its worker as a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.support.workers import WorkerProcess

if TYPE_CHECKING:
    from demo.redis import EmbeddedRedis
    from tests.support.portal import Portal

_LAST_COMMIT: Final = "962287811dc6f1201723904d59ffbe98fa531fe9"
"""The last commit of release 0.1.0."""

_ROOT: Final = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def previous_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with its code; the test is skipped where the history is not at hand."""
    found = tmp_path_factory.mktemp("release-0.1.0")
    command = ["git", "-C", str(_ROOT), "archive", _LAST_COMMIT, "portal", "worker", "beat", "tools"]
    packed = subprocess.run(command, capture_output=True)
    if packed.returncode != 0:
        pytest.skip("the history of the project is not here")
    subprocess.run(["tar", "xf", "-", "-C", str(found)], input=packed.stdout, check=True)
    return found


class PreviousWorker(WorkerProcess):
    """The worker of the previous release.

    Arguments:
        code: the directory with its code.
    """

    command = (sys.executable, "-m", "worker")

    def __init__(self, code: Path, portal: Portal, redis: EmbeddedRedis, *arguments: str, **environ: str) -> None:
        super().__init__(portal, redis, *arguments, PYTHONPATH=str(code), **environ)


def run_previous(code: Path, portal: Portal, redis: EmbeddedRedis, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the previous release to its end: a module and its arguments."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd="/",
        env=portal.environ(PYTHONPATH=str(code), CELERY_BROKER_URL=redis.url),
        capture_output=True,
        text=True,
        timeout=60,
    )
