"""Repositories to work in, what is published there, and a user without rights."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from portal.ops.model import BackupId
from portal.ops.repository.repository import LOCK_NAME, Repository

if TYPE_CHECKING:
    from collections.abc import Iterator


ROOT = Path(__file__).parents[2]
CONTENT = b"an archive, as far as the repository cares"
DIGEST = sha256(CONTENT).hexdigest()
NOBODY = 65534


def backup_id(text: str = "full_20240115_120000_abc123") -> BackupId:
    parsed = BackupId.parse(text)
    assert parsed is not None
    return parsed


def publish(repository: Repository, name: str = "full_20240115_120000_abc123", content: bytes = CONTENT) -> Path:
    with repository.pending(backup_id(name)) as draft:
        assert draft is not None
        draft.out.write(content)
        return draft.commit(draft.out.finish())


def names(repository: Repository) -> set[str]:
    """Everything in the directory but the lock."""
    return {path.name for path in repository.path.iterdir()} - {LOCK_NAME}


def python(program: str, *arguments: str | Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """An empty repository that waits half a second at the most."""
    repository = Repository(tmp_path / "repository", lock_timeout=0.5)
    repository.prepare()
    return repository


@pytest.fixture
def public_directory() -> Iterator[Path]:
    """A directory that every user can reach, which pytest's own is not."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Be a user without rights for a while."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
