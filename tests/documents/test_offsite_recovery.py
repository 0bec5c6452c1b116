"""The runbook for a portal of which only off-site copies are left, followed from scratch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from demo.compare import table_contents, tree_contents
from portal.ops.offsite.config import OffsiteConfig
from portal.ops.offsite.copy import CopyJob
from portal.ops.runtime.progress import read_text
from portal.ops.settings.load import load_settings
from portal.ops.storage.age_keys import generate
from portal.ops.storage.versions import client_of
from tests.support.offsite import policy
from tests.support.portal import succeeded
from tests.support.stores import HOST

if TYPE_CHECKING:
    from demo.object_store import EmbeddedObjectStore
    from demo.postgres import EmbeddedPostgres
    from portal.ops.settings.load import Settings
    from tests.support.portal import Portal

ROOT = Path(__file__).parents[2]
RUNBOOK = ROOT / "docs" / "disaster-recovery.md"


def blocks() -> tuple[str, str]:
    """The block with this project, and the one without."""
    with_project, without = re.findall(r"```shell\n(.*?)```", RUNBOOK.read_text("utf-8"), re.DOTALL)
    return with_project, without


@pytest.fixture
def settings(portal: Portal, object_store: EmbeddedObjectStore) -> Settings:
    """A portal whose full backup has a copy on an S3 server; host and repository are gone then."""
    made = generate(portal.directory / "identity")
    prefix = f"dr-{uuid4().hex[:8]}"
    environ = {
        **portal.environ(),
        **HOST.environ(),
        "BACKUP_OFFSITE_URLS": object_store.url("backup", prefix),
        "BACKUP_ENCRYPTION_RECIPIENTS": made.recipient,
    }
    found = load_settings(environ, read_text)
    succeeded(portal.job().backup_full())
    result = CopyJob(OffsiteConfig.from_settings(found), policy()).run()
    assert result.error is None
    portal.archives.rename(portal.directory / "burnt")
    return found


def run(script: str, environ: dict[str, str], cwd: Path) -> str:
    ended = subprocess.run(
        ["/usr/bin/env", "bash", "-euc", script], cwd=cwd, env=environ, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_with_this_project(portal: Portal, settings: Settings, postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    """An empty machine, this project, the URL and the identity bring the whole portal back."""
    name = f"again_{uuid4().hex[:8]}"
    new = tmp_path / "new"
    new.mkdir()
    before = {"PATH": os.environ["PATH"], "HOME": str(new), **portal.environ()}
    environ = before | {
        "DD_DATABASE_NAME": name,
        "BACKUP_LOCAL_PATH": str(new / "backups"),
        "PORTAL_UPLOAD_DIR": str(new / "uploads"),
        "PORTAL_AUDIT_DIR": str(new / "audit"),
    }
    (place,) = settings.offsite.destinations()
    script, _ = blocks()
    for example, real in (
        (
            "s3://kekkai-copies/portal?endpoint=https://s3.example.org",
            f"{place.shown}?endpoint={place.options['endpoint']}",
        ),
        ("AWS_ACCESS_KEY_ID=…", f"AWS_ACCESS_KEY_ID={HOST.name}"),
        ("AWS_SECRET_ACCESS_KEY=…", f"AWS_SECRET_ACCESS_KEY={HOST.secret}"),
        ("/root/kekkai-identity", str(portal.directory / "identity")),
    ):
        assert example in script
        script = script.replace(example, real)
    run(script, environ, ROOT)
    with postgres.connect(name) as restored, postgres.connect(portal.database.name) as original:
        assert table_contents(restored) == table_contents(original)
    assert tree_contents(new / "uploads") == tree_contents(portal.uploads)
    postgres.drop_database(name)


@pytest.mark.skipif(shutil.which("age") is None, reason="the age command is not installed")
def test_without_this_project(portal: Portal, settings: Settings, postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    """An S3 client, age, tar and pg_restore bring the data back."""
    (place,) = settings.offsite.destinations()
    client = client_of(place, settings.store_variables)
    desk = tmp_path / "desk"
    for one in client.list_objects_v2(Bucket=place.place, Prefix=place.prefix)["Contents"]:
        target = desk / one["Key"].removeprefix(f"{place.prefix}/")
        target.parent.mkdir(parents=True, exist_ok=True)
        client.download_file(place.place, one["Key"], str(target))
    (commit,) = desk.glob("*.json")
    name = f"bare_{uuid4().hex[:8]}"
    postgres.create_database(name)
    _, script = blocks()
    for example, real in (
        ("full_20240115_120000_abc123", commit.stem),
        ("/root/kekkai-identity", str(portal.directory / "identity")),
        ("--dbname=defectdojo", f"--dbname={name}"),
    ):
        assert example in script
        script = script.replace(example, real)
    address = postgres.superuser(name)
    server = {
        "PGHOST": address.host,
        "PGPORT": str(address.port),
        "PGUSER": address.user,
        "PGPASSWORD": address.password,
    }
    said = run(script, {"PATH": f"{postgres.bin_dir}:{os.environ['PATH']}", **server}, desk)
    assert said.count(sha256((desk / f"{commit.stem}.tar.gz").read_bytes()).hexdigest()) == 2
    with postgres.connect(name) as restored, postgres.connect(portal.database.name) as original:
        assert table_contents(restored) == table_contents(original)
    assert tree_contents(desk / commit.stem / "media") == tree_contents(portal.uploads)
    postgres.drop_database(name)
