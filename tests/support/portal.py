"""A portal to back up: database, uploads, audit log, and a repository."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from demo.portal_files import write_audit_log, write_uploads
from demo.redis import EmbeddedRedis
from portal.ops.backup.job import BackupConfig, BackupJob, BackupResult
from portal.ops.repository import access_log
from portal.ops.repository.repository import LOCK_NAME
from portal.ops.settings.load import DatabaseTarget, Secret
from tests.support.sessions import session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from demo.postgres import EmbeddedPostgres

TEMPLATE = "portal_template"
"""The database that portals are copied from; the session's server has it."""

BIG_TABLE = "CREATE TABLE big AS SELECT n, repeat(md5(n::text), 30) AS text FROM generate_series(1, 30000) AS n"


@dataclass(frozen=True, kw_only=True)
class Portal:
    """A portal to back up: a database on the embedded server, uploads, an audit log, and where archives go."""

    directory: Path
    database: DatabaseTarget
    bin_dir: Path

    @property
    def uploads(self) -> Path:
        """The media."""
        return self.directory / "uploads"

    @property
    def audit(self) -> Path:
        """The audit log's directory."""
        return self.directory / "audit"

    @property
    def archives(self) -> Path:
        """The repository."""
        return self.directory / "archives"

    @property
    def password(self) -> str:
        """The database's password."""
        assert self.database.password is not None
        return self.database.password.reveal()

    def config(self, **changes: Any) -> BackupConfig:
        """How to back all of it up."""
        arguments: dict[str, Any] = {
            "local_path": self.archives,
            "db_host": self.database.host,
            "db_port": self.database.port,
            "db_name": self.database.name,
            "db_user": self.database.user,
            "db_password": self.database.password,
            "media_path": self.uploads,
            "audit_log_path": self.audit,
            "pg_bin_dir": self.bin_dir,
            "jobs": 2,
            "schedule_complete": None,  # whenever the tests run
        }
        return BackupConfig(**(arguments | changes))

    def job(self, **changes: Any) -> BackupJob:
        """A job that backs all of it up."""
        return BackupJob(self.config(**changes))

    def environ(self, **changes: str) -> dict[str, str]:
        """The same configuration as variables, for another process."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory),
            "DD_DATABASE_HOST": self.database.host,
            "DD_DATABASE_PORT": str(self.database.port),
            "DD_DATABASE_NAME": self.database.name,
            "DD_DATABASE_USER": self.database.user,
            "DD_DATABASE_PASSWORD": self.password,
            "BACKUP_LOCAL_PATH": str(self.archives),
            "PORTAL_UPLOAD_DIR": str(self.uploads),
            "PORTAL_AUDIT_DIR": str(self.audit),
            "BACKUP_PG_BIN_DIR": str(self.bin_dir),
            "BACKUP_JOBS": "2",
        } | changes

    def left(self) -> set[str]:
        """Everything in the repository but the lock and the access log."""
        found = {path.name for path in self.archives.iterdir()} if self.archives.exists() else set()
        return found - {LOCK_NAME, access_log.NAME, access_log.HEAD_NAME}


@contextmanager
def portal_database_in(postgres: EmbeddedPostgres) -> Iterator[DatabaseTarget]:
    """A filled portal database, as the superuser sees it."""
    name = f"portal_{uuid4().hex[:12]}"
    postgres.create_database(name, template=TEMPLATE)
    address = postgres.superuser(name)
    yield DatabaseTarget(
        host=address.host, port=address.port, name=name, user=address.user, password=Secret(address.password)
    )
    postgres.drop_database(name)


@contextmanager
def portal_with_broker(directory: Path, postgres: EmbeddedPostgres) -> Iterator[tuple[Portal, EmbeddedRedis]]:
    """A small portal with a database and a broker of its own, for several tests."""
    with portal_database_in(postgres) as database, EmbeddedRedis() as broker:
        yield portal_in(directory, database, postgres), broker


def portal_in(directory: Path, database: DatabaseTarget, postgres: EmbeddedPostgres) -> Portal:
    """Write the files of a small portal."""
    found = Portal(directory=directory, database=database, bin_dir=postgres.bin_dir)
    write_uploads(found.uploads, tenants=2, files_per_tenant=2, results=2)
    write_audit_log(found.audit / "audit.jsonl", entries=20)
    return found


@pytest.fixture
def portal(tmp_path: Path, portal_database: DatabaseTarget, postgres: EmbeddedPostgres) -> Portal:
    """A small portal with a database of its own."""
    return portal_in(tmp_path, portal_database, postgres)


def succeeded(result: BackupResult) -> Path:
    assert result.error is None
    assert result.success
    return Path(result.destination_path)


def execute(target: DatabaseTarget, *statements: str) -> None:
    with session(target) as connection:
        for statement in statements:
            connection.execute(statement.encode())


@contextmanager
def small_disk(place: Path, options: str) -> Iterator[None]:
    """A file system of its own at a place, as large as its options say."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={options}", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root can mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)
