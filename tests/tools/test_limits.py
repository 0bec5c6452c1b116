"""Limits of a user or a service: work that meets one fails with its name, and leaves nothing."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import tempfile
from pathlib import Path
from threading import Thread

import pytest

from portal.ops.backup.job import BackupConfig, BackupJob
from portal.ops.limits import limit_hint, system_errors
from tests.support.commands import BACKUP, RESTORE, answer, done
from tests.support.unprivileged import done_by_nobody


def limited(*arguments: str, environ: dict[str, str], script: Path, limit: int, most: int) -> tuple[int, str]:
    """Run a command with a limit; its exit code, and the error of its result."""
    ended = subprocess.run(
        [script, *arguments],
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(limit, (most, most)),
    )
    assert "Traceback" not in ended.stderr
    return ended.returncode, answer(ended)["error"]


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EMFILE, "ulimit -n"),
        (errno.ENFILE, "fs.file-max"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EAGAIN, "ulimit -u"),
        (errno.ENOMEM, "ulimit -v"),
    ],
)
def test_each_limit_has_its_hint(number: int, says: str) -> None:
    """With the name that a shell has for it; other errors have none."""
    assert says in limit_hint(OSError(number, os.strerror(number)))
    assert limit_hint(OSError(errno.EACCES, "no")) == limit_hint(OSError("no number")) == ""


@pytest.mark.parametrize(
    ("raised", "number"), [(MemoryError(), errno.ENOMEM), (RuntimeError("can't start new thread"), errno.EAGAIN)]
)
def test_what_python_calls_otherwise_is_an_error_of_the_system(raised: Exception, number: int) -> None:
    """So it is explained as one; an error of the program stays what it is."""
    with pytest.raises(OSError, match=r".") as caught, system_errors():
        raise raised
    assert caught.value.errno == number
    with pytest.raises(RuntimeError, match="a fault"), system_errors():
        raise RuntimeError("a fault")


def test_a_backup_without_another_thread_fails_with_the_limit() -> None:
    """Its result says what to raise, and the repository holds nothing of it. Tried as a user whom limits bind."""

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
        with pytest.raises(RuntimeError):
            Thread(target=id, args=[0]).start()
        config = BackupConfig(local_path=here / "archives", media_path=here / "uploads", db_name="portal", jobs=2)
        result = BackupJob(config).backup_media()
        assert not result.success
        assert result.error is not None
        assert "ulimit -u" in result.error, result.error
        assert "nothing of this one is left" in result.error
        assert not [path for path in (here / "archives").iterdir() if "media_" in path.name]

    with tempfile.TemporaryDirectory(prefix="kekkai-limits-", dir="/tmp") as reachable:
        here = Path(reachable)
        (here / "uploads").mkdir()
        (here / "uploads" / "scan.sarif").write_text("{}")
        done_by_nobody(here, work)


@pytest.mark.parametrize(
    ("limit", "most", "says"),
    [(resource.RLIMIT_FSIZE, 100_000, "ulimit -f"), (resource.RLIMIT_NOFILE, 13, "ulimit -n")],
)
def test_commands_name_the_limit(files: dict[str, str], limit: int, most: int, says: str) -> None:
    """A backup, and a restore, which is undone; a large file is not called a full disk."""
    uploads = Path(files["PORTAL_UPLOAD_DIR"])
    content = os.urandom(300_000)
    (uploads / "large").write_bytes(content)
    code, error = limited("media", environ=files, script=BACKUP, limit=limit, most=most)
    assert code == 1
    assert says in error
    assert not list(Path(files["BACKUP_LOCAL_PATH"]).glob("*media*"))
    done("media", environ=files)
    (uploads / "large").write_bytes(b"changed")
    arguments = ("latest", "--media-only", "--force")
    code, error = limited(*arguments, environ=files, script=RESTORE, limit=limit, most=most)
    assert code == 1
    assert says in error
    assert (uploads / "large").read_bytes() == b"changed"
    done(*arguments, environ=files, script=RESTORE)
    assert (uploads / "large").read_bytes() == content
