"""`backup.sh versions`: from a file's name to the archive to extract it from."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from portal.ops.chains.versions import Wanted
from portal.ops.model import SUFFIX
from portal.ops.offsite.layout import Stem
from portal.ops.offsite.ledger import CopyRecord, Ledger
from portal.ops.repository.repository import Repository
from portal.ops.settings.destination import parse_destination
from portal.ops.settings.load import load_settings
from tests.support.commands import BACKUP, ROOT, done, run
from tests.support.incrementals import Uploads
from tests.support.terminals import record
from tools.commands.versions import wanted_path

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    """An upload with a blank in its name, in two versions, of which the newest was removed."""
    made = Uploads(directory=tmp_path)
    made.write("tenant/my scan.sarif", b"yesterday's")
    made.base()
    made.write("tenant/my scan.sarif", b"today's")
    made.write("kept")
    made.incremental()
    (made.root / "tenant" / "my scan.sarif").unlink()
    made.incremental()
    return made


def environ_of(uploads: Uploads) -> dict[str, str]:
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": str(uploads.directory),
        "BACKUP_LOCAL_PATH": str(uploads.archives),
        "PORTAL_UPLOAD_DIR": str(uploads.root),
    }


def test_yesterdays_version_of_a_lost_file(uploads: Uploads) -> None:
    """The JSON names the archives of each version, and the command that is shown takes the file out."""
    environ = environ_of(uploads)
    result, said = done("versions", "my scan.sarif", environ=environ)
    (file,) = result["files"]
    assert file["path"] == "media/tenant/my scan.sarif"
    assert [version["size_bytes"] for version in file["versions"]] == [len("today's"), len("yesterday's")]
    assert f"2 versions in 2 archives; not there any more from {file['gone_since']} on" in said
    command = said.partition("to take one out: ")[2].strip()
    program, *arguments = shlex.split(command)
    assert ROOT / program == ROOT / "tools" / "backup.sh"
    done(*arguments, "--output", str(uploads.directory / "newest"), environ=environ)
    assert (uploads.directory / "newest").read_bytes() == b"today's"
    older = file["versions"][1]["archives"][0]
    done("extract", older, file["path"], "--output", str(uploads.directory / "older"), environ=environ)
    assert (uploads.directory / "older").read_bytes() == b"yesterday's"


def test_a_file_that_no_archive_has(uploads: Uploads) -> None:
    """The exit code is 2, and the hint says what to try."""
    ended = run("versions", "nothing", environ=environ_of(uploads))
    assert ended.returncode == 2
    assert "none of 3 archives" in ended.stderr
    assert "Try a pattern" in ended.stderr


def test_archives_that_are_only_off_site_are_named(uploads: Uploads, tmp_path: Path) -> None:
    """Those that may have the file and that the repository does not have any more, by its own record of copies."""
    here = next(path.name.removesuffix(SUFFIX) for path in uploads.archives.glob(f"media_*{SUFFIX}"))
    gone = ["full_20260101_000000_abcdef", "media_20260102_000000_abcdef", "database_20260103_000000_abcdef"]
    ledger = Ledger(Repository(uploads.archives), parse_destination(f"file://{tmp_path}/disk"))
    ledger.replace(
        CopyRecord(stem=Stem(name), copied=datetime(2026, 2, 1, tzinfo=UTC), archive_sha256="0" * 64, stored_bytes=1)
        for name in (here, *gone)
    )
    environ = {
        **environ_of(uploads),
        "BACKUP_OFFSITE_URLS": f"file://{tmp_path}/disk",
        "BACKUP_OFFSITE_ENCRYPTION": "off",
    }
    result, said = done("versions", "my scan.sarif", environ=environ)
    assert result["only_offsite"] == [gone[1], gone[0]]
    told = "Not searched: 2 archives of which only off-site copies are left; "
    fetch = f"'./tools/backup.sh offsite fetch {gone[1]}' brings one back."
    assert told + fetch in said
    assert told + fetch in run("versions", "nothing", environ=environ).stderr


def test_what_a_terminal_shows(uploads: Uploads) -> None:
    """A table with a heading, and one line a version."""
    result, _ = done("versions", "my scan.sarif", environ=environ_of(uploads))
    shown = record([BACKUP, "versions", "my scan.sarif"], environ=environ_of(uploads)).screen
    (head,) = [number for number, line in enumerate(shown) if line.startswith("MODIFIED (UTC)")]
    for version, line in zip(result["files"][0]["versions"], shown[head + 1 : head + 3], strict=True):
        assert version["sha256"][:8] in line
        assert f" {version['archives'][0]} " in line


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("media/a/b", Wanted(path="media/a/b")),
        ("audit/audit.jsonl", Wanted(path="audit/audit.jsonl")),
        ("database.sql", Wanted(path="database.sql")),
        ("a/b", Wanted(path="media/a/b")),
        ("./a//b/", Wanted(path="media/a/b")),
        ("b", Wanted(path="media/b", everywhere=True)),
        ("/srv/uploads/a/b", Wanted(path="media/a/b")),
        ("/srv/uploads", Wanted(path="media")),
        ("/srv/uploads2/a", Wanted(path="media/srv/uploads2/a")),
        ("/srv/audit/audit.jsonl", Wanted(path="audit/audit.jsonl")),
    ],
)
def test_the_file_that_is_meant(given: str, wanted: Wanted) -> None:
    """A path in archives, below the uploads, or in the file system."""
    environ = {
        "BACKUP_LOCAL_PATH": "/srv/backups",
        "PORTAL_UPLOAD_DIR": "/srv/uploads",
        "PORTAL_AUDIT_DIR": "/srv/audit",
    }
    assert wanted_path(given, load_settings(environ, lambda _: "")) == wanted
