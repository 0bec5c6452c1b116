"""What leads to a moment comes back from off-site by itself, onto a machine that has nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from portal.ops.backup.config import BackupConfig
from portal.ops.backup.job import BackupJob
from portal.ops.errors import IdentityError
from portal.ops.offsite.config import OffsiteConfig
from portal.ops.offsite.copy import CopyJob
from portal.ops.pitr.offsite_wal import WalCopier
from portal.ops.pitr.plan import plan_recovery
from portal.ops.restore.config import RestoreConfig, RestoreScope
from portal.ops.restore.job import RestoreJob
from portal.ops.restore.moment_offsite import moment_at_hand
from portal.ops.retention.policy import RetentionPolicy
from portal.ops.runtime.progress import read_text, utc_now
from portal.ops.settings.load import Settings, load_settings
from portal.ops.storage.age_keys import generate
from portal.ops.storage.objects import ObjectWriter
from tests.support.wal_servers import WalPortal, a_moment, wal_portal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from pathlib import Path


@pytest.fixture(scope="module")
def portal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WalPortal]:
    """A portal with a database of its own, whose WAL is received."""
    with wal_portal(tmp_path_factory.mktemp("offsite")) as made:
        made.postgres.create_database("portal")
        with made.postgres.connect("portal") as connection:
            connection.execute("CREATE TABLE finding (number int)")
        with made.receiving():
            yield made


@pytest.fixture(scope="module")
def environ(portal: WalPortal, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The settings of the portal's machine: encrypted copies in a directory."""
    place = tmp_path_factory.mktemp("machine")
    (place / "disk").mkdir()
    (place / "uploads").mkdir()
    key = generate(place / "identity")
    address = portal.postgres.superuser("portal")
    return {
        "BACKUP_LOCAL_PATH": str(portal.repository.path),
        "BACKUP_WAL": "on",
        "BACKUP_PG_BIN_DIR": str(portal.bin_dir),
        "BACKUP_OFFSITE_URLS": f"file://{place}/disk",
        "BACKUP_ENCRYPTION_RECIPIENTS": key.recipient,
        "BACKUP_ENCRYPTION_IDENTITY_FILE": str(key.path),
        "PORTAL_UPLOAD_DIR": str(place / "uploads"),
        "DD_DATABASE_URL": f"postgres://{address.user}:{address.password}@{address.host}:{address.port}/portal",
    }


@pytest.fixture(scope="module")
def moment(portal: WalPortal, environ: dict[str, str]) -> datetime:
    """A moment with one row and one upload, of which everything is off-site; after it both were lost."""
    settings = load_settings(environ, read_text)
    assert settings.upload_dir
    (settings.upload_dir / "one.sarif").write_text("one")
    job = BackupJob(BackupConfig.from_settings(settings))
    for result in (job.backup_media(), job.backup_base()):
        assert result.success, result.error
    copied = CopyJob(OffsiteConfig.from_settings(settings), RetentionPolicy()).run()
    assert copied.success, copied.error
    with portal.postgres.connect("portal") as connection:
        connection.execute("INSERT INTO finding VALUES (1)")
        found = a_moment()
        connection.execute("DELETE FROM finding")
    portal.wait_until_covered()
    copy_wal(portal, settings)
    return found


def copy_wal(portal: WalPortal, settings: Settings) -> None:
    (destination,) = settings.offsite.destinations()
    with ObjectWriter.of(settings, destination) as writer:
        WalCopier(portal.repository, lambda: writer, shown=destination.shown).copy(writer)


def elsewhere(environ: dict[str, str], directory: Path, **changes: str) -> Settings:
    """The settings of a machine without a repository."""
    return load_settings(environ | {"BACKUP_LOCAL_PATH": str(directory / "repository")} | changes, read_text)


def test_whole_portal_comes_back(portal: WalPortal, environ: dict[str, str], moment: datetime, tmp_path: Path) -> None:
    """WAL, base backup and uploads are fetched once; rows and files are those of the moment."""
    settings = elsewhere(environ, tmp_path)
    fetched = moment_at_hand(settings, moment.isoformat(), RestoreScope.FULL)
    assert fetched[0] == "WAL"
    assert {name.partition("_")[0] for name in fetched[1:]} == {"base", "media"}
    assert moment_at_hand(settings, moment.isoformat(), RestoreScope.FULL) == ()
    config = RestoreConfig.from_settings(
        settings, media_path=tmp_path / "back", target_database="back", create_database=True
    )
    result = RestoreJob(config).restore_at(moment.isoformat())
    assert result.success, result.error
    assert (tmp_path / "back" / "one.sarif").read_text() == "one"
    with portal.postgres.connect("back") as connection:
        assert connection.execute("SELECT number FROM finding").fetchall() == [(1,)]


def test_uploads_alone_need_no_wal(environ: dict[str, str], moment: datetime, tmp_path: Path) -> None:
    """For the uploads only their archive is fetched."""
    (name,) = moment_at_hand(elsewhere(environ, tmp_path), moment.isoformat(), RestoreScope.MEDIA)
    assert name.startswith("media_")


def test_database_alone_needs_no_uploads(environ: dict[str, str], moment: datetime, tmp_path: Path) -> None:
    """For the database only the WAL and the base backup are fetched."""
    fetched = moment_at_hand(elsewhere(environ, tmp_path), moment.isoformat(), RestoreScope.DATABASE)
    assert [name.partition("_")[0] for name in fetched] == ["WAL", "base"]


def test_without_the_identity_it_says_so(environ: dict[str, str], moment: datetime, tmp_path: Path) -> None:
    """Copies that are encrypted need the secret key."""
    settings = elsewhere(environ, tmp_path, BACKUP_ENCRYPTION_IDENTITY_FILE="")
    with pytest.raises(IdentityError):
        moment_at_hand(settings, moment.isoformat(), RestoreScope.DATABASE)


@pytest.mark.usefixtures("moment")
def test_nothing_is_fetched_where_everything_is_here(environ: dict[str, str], portal: WalPortal) -> None:
    """The repository itself leads there."""
    assert moment_at_hand(load_settings(environ, read_text), "latest", RestoreScope.DATABASE) == ()
    assert plan_recovery(portal.repository, None).reached <= utc_now()
