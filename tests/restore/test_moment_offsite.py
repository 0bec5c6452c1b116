"""What leads to a moment comes back from off-site by itself, onto a machine that has nothing."""

from __future__ import annotations

import shutil
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from demo.redis import EmbeddedRedis
from portal.ops.backup.config import BackupConfig
from portal.ops.backup.job import BackupJob
from portal.ops.errors import BusyError, IdentityError, NotIntactError
from portal.ops.offsite.config import OffsiteConfig
from portal.ops.offsite.copy import CopyJob
from portal.ops.offsite.signing import find_key
from portal.ops.pitr.offsite_wal import WalCopier
from portal.ops.pitr.plan import plan_recovery
from portal.ops.pitr.wal_archive import WalArchive
from portal.ops.repository.repository import Repository
from portal.ops.restore.config import RestoreConfig, RestoreScope
from portal.ops.restore.job import RestoreJob
from portal.ops.restore.moment_offsite import moment_at_hand
from portal.ops.retention.policy import RetentionPolicy
from portal.ops.runtime.progress import read_text, utc_now
from portal.ops.settings.load import Settings, load_settings
from portal.ops.storage.age_keys import generate
from portal.ops.storage.objects import ObjectWriter
from tests.support.commands import RESTORE, done
from tests.support.offsite import offsite_at, small_archives
from tests.support.portal import Portal
from tests.support.waiting import wait_until
from tests.support.wal_servers import WalPortal, a_moment, wal_portal
from tests.support.workers import WorkerProcess
from worker.operations import Queue

if TYPE_CHECKING:
    from collections.abc import Iterator
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
    for make in (job.backup_media, job.backup_base, job.backup_base):
        result = make()
        assert result.success, result.error
        wait_until_later_second()
    copied = CopyJob(OffsiteConfig.from_settings(settings), RetentionPolicy()).run()
    assert copied.success, copied.error
    with portal.postgres.connect("portal") as connection:
        connection.execute("INSERT INTO finding VALUES (1)")
        found = a_moment()
        connection.execute("DELETE FROM finding")
    portal.wait_until_covered()
    copy_wal(portal, settings)
    return found


def wait_until_later_second() -> None:
    """Off-site, archives are in order by the second; of one second's either may be taken first."""
    before = utc_now().replace(microsecond=0)
    wait_until(lambda: utc_now().replace(microsecond=0) > before)


def copy_wal(portal: WalPortal, settings: Settings) -> None:
    (destination,) = settings.offsite.destinations()
    with ObjectWriter.of(settings, destination) as writer:
        WalCopier(portal.repository, lambda: writer, shown=destination.shown).copy(writer)


def elsewhere(environ: dict[str, str], directory: Path, **changes: str) -> Settings:
    """The settings of a machine without a repository."""
    return load_settings(environ | {"BACKUP_LOCAL_PATH": str(directory / "repository")} | changes, read_text)


def test_whole_portal_comes_back(portal: WalPortal, environ: dict[str, str], moment: datetime, tmp_path: Path) -> None:
    """WAL, the one base backup that is needed, and uploads are fetched; rows and files are those of the moment."""
    settings = elsewhere(environ, tmp_path)
    fetched = moment_at_hand(settings, moment.isoformat(), RestoreScope.FULL)
    assert [name.partition("_")[0] for name in fetched] == ["WAL", "base", "media"]
    assert moment_at_hand(settings, moment.isoformat(), RestoreScope.FULL) == ()
    config = RestoreConfig.from_settings(
        settings, media_path=tmp_path / "back", target_database="back", create_database=True
    )
    result = RestoreJob(config).restore_at(moment.isoformat())
    assert result.success, result.error
    assert (tmp_path / "back" / "one.sarif").read_text() == "one"
    with portal.postgres.connect("back") as connection:
        assert connection.execute("SELECT number FROM finding").fetchall() == [(1,)]


def test_worker_does_all_of_it(portal: WalPortal, environ: dict[str, str], moment: datetime, tmp_path: Path) -> None:
    """Handed over and left alone, it fetches base backup and WAL onto an empty machine, and restores to the moment."""
    machine = Portal(directory=tmp_path, database=portal.target, bin_dir=portal.bin_dir)
    own = environ | {"BACKUP_LOCAL_PATH": str(machine.archives)}
    given = ("--at", moment.isoformat(), "--database-only", "--target-database", "by_worker", "--create-database")
    with EmbeddedRedis() as redis, WorkerProcess(machine, redis, Queue.RESTORE, **own) as worker:
        client = machine.environ(CELERY_BROKER_URL=redis.url) | own
        handed, _ = done(*given, "--force", "--no-wait", environ=client, script=RESTORE)
        result, said = done("--wait", handed["task_id"], environ=client, script=RESTORE)
        assert len(worker.events("offsite_fetched")) == 1
    assert result["components_restored"] == ["database"]
    assert "restored: database" in said
    assert datetime.fromisoformat(result["at"]) == moment
    with portal.postgres.connect("by_worker") as connection:
        assert connection.execute("SELECT number FROM finding").fetchall() == [(1,)]


def test_wal_comes_from_the_destination_that_has_it(environ: dict[str, str], moment: datetime, tmp_path: Path) -> None:
    """The first one has lost its WAL: that comes from the second, before any base backup is fetched in vain."""
    disk = copy_of_disk(environ, tmp_path)
    shutil.rmtree(disk / "wal")
    urls = f"file://{disk} {environ['BACKUP_OFFSITE_URLS']}"
    settings = elsewhere(environ, tmp_path, BACKUP_OFFSITE_URLS=urls)
    fetched = moment_at_hand(settings, moment.isoformat(), RestoreScope.DATABASE)
    assert [name.partition("_")[0] for name in fetched] == ["WAL", "base"]


def test_uploads_alone_need_no_wal(environ: dict[str, str], moment: datetime, tmp_path: Path) -> None:
    """For the uploads only their archive is fetched."""
    (name,) = moment_at_hand(elsewhere(environ, tmp_path), moment.isoformat(), RestoreScope.MEDIA)
    assert name.startswith("media_")


def test_database_alone_needs_no_uploads(environ: dict[str, str], moment: datetime, tmp_path: Path) -> None:
    """For the database only the WAL and the base backup are fetched."""
    fetched = moment_at_hand(elsewhere(environ, tmp_path), moment.isoformat(), RestoreScope.DATABASE)
    assert [name.partition("_")[0] for name in fetched] == ["WAL", "base"]


def test_uploads_are_not_fetched_for_a_database_that_cannot_be_recovered(
    environ: dict[str, str], moment: datetime, tmp_path: Path
) -> None:
    """Only uploads have copies. Nobody is asked for the identity; the plan says what is missing."""
    (tmp_path / "disk").mkdir()
    changes = {"BACKUP_OFFSITE_URLS": f"file://{tmp_path}/disk", "BACKUP_OFFSITE_TYPES": "media"}
    here = OffsiteConfig.from_settings(load_settings(environ | changes, read_text))
    assert CopyJob(here, RetentionPolicy()).run().success
    settings = elsewhere(environ, tmp_path, **changes, BACKUP_ENCRYPTION_IDENTITY_FILE="")
    assert moment_at_hand(settings, moment.isoformat(), RestoreScope.FULL) == ()
    error = RestoreJob(RestoreConfig.from_settings(settings)).restore_at(moment.isoformat()).error
    assert error
    assert error.startswith("there is nothing to recover to a moment from")


def test_without_the_identity_it_says_so(environ: dict[str, str], moment: datetime, tmp_path: Path) -> None:
    """Copies that are encrypted need the secret key."""
    settings = elsewhere(environ, tmp_path, BACKUP_ENCRYPTION_IDENTITY_FILE="")
    with pytest.raises(IdentityError):
        moment_at_hand(settings, moment.isoformat(), RestoreScope.DATABASE)


@pytest.mark.usefixtures("moment")
def test_a_moment_before_every_base_backup_is_outside(environ: dict[str, str], moment: datetime) -> None:
    """No WAL leads there, so it is no excuse that none is fetched while the service runs."""
    settings, early = load_settings(environ, read_text), moment - timedelta(days=1)
    assert moment_at_hand(settings, early.isoformat(), RestoreScope.DATABASE) == ()
    result = RestoreJob(RestoreConfig.from_settings(settings)).restore_at(
        early.isoformat(), scope=RestoreScope.DATABASE
    )
    assert result.error
    assert "lies outside the recovery window" in result.error


def test_wal_that_is_missing_is_not_fetched_while_the_service_runs(
    environ: dict[str, str], moment: datetime, tmp_path: Path
) -> None:
    """There is a base backup for the moment; the error says what stands in the way of its WAL."""
    settings = elsewhere(environ, tmp_path)
    moment_at_hand(settings, moment.isoformat(), RestoreScope.DATABASE)
    archive = WalArchive.current(Repository(settings.local_path))
    assert archive
    archive.remove(set(archive.files()))
    with archive.receiving_alone(), pytest.raises(BusyError, match=r"^no WAL is fetched from off-site while"):
        moment_at_hand(settings, moment.isoformat(), RestoreScope.DATABASE)


@pytest.mark.usefixtures("moment")
def test_nothing_is_fetched_where_everything_is_here(environ: dict[str, str], portal: WalPortal) -> None:
    """The repository itself leads there."""
    assert moment_at_hand(load_settings(environ, read_text), "latest", RestoreScope.DATABASE) == ()
    assert plan_recovery(portal.repository, None).reached <= utc_now()


def test_damaged_copy_is_passed_over(environ: dict[str, str], moment: datetime, tmp_path: Path) -> None:
    """Where the newest base backup is damaged, an older one and more WAL lead there; where none is left, it is said."""
    disk = copy_of_disk(environ, tmp_path)
    settings = elsewhere(environ, tmp_path, BACKUP_OFFSITE_URLS=f"file://{disk}")
    older, newer = sorted(disk.glob("base_*/"))
    damage(newer)
    fetched = moment_at_hand(settings, moment.isoformat(), RestoreScope.DATABASE)
    assert fetched == ("WAL", older.name)
    damage(older)
    (settings.local_path / f"{older.name}.tar.gz").unlink()
    with pytest.raises(NotIntactError, match=newer.name):
        moment_at_hand(settings, moment.isoformat(), RestoreScope.DATABASE)


def test_forged_copy_is_passed_over(environ: dict[str, str], moment: datetime, tmp_path: Path) -> None:
    """A newer archive that somebody else has put there keeps nobody from the genuine one."""
    disk = copy_of_disk(environ, tmp_path)
    (tmp_path / "forger").mkdir()
    recipient = environ["BACKUP_ENCRYPTION_RECIPIENTS"]
    forger = offsite_at(tmp_path / "forger", f"file://{disk}", BACKUP_ENCRYPTION_RECIPIENTS=recipient)
    small_archives(forger.uploads)
    forger.uploads.base()
    forger.copied()
    key = find_key(Repository(load_settings(environ, read_text).local_path))
    assert key is not None
    assert utc_now() > moment
    settings = elsewhere(environ, tmp_path, BACKUP_OFFSITE_URLS=f"file://{disk}", BACKUP_OFFSITE_SIGNERS=key.signer)
    (name,) = moment_at_hand(settings, utc_now().isoformat(), RestoreScope.MEDIA)
    assert name.startswith("media_")
    assert (disk / name).is_dir()
    assert name not in {path.name.partition(".")[0] for path in forger.uploads.archives.iterdir()}


def test_base_is_fetched_while_the_service_receives(environ: dict[str, str], moment: datetime, tmp_path: Path) -> None:
    """The WAL service keeps the WAL from being fetched, and not a base backup that is lost."""
    settings = elsewhere(environ, tmp_path)
    _, base = moment_at_hand(settings, moment.isoformat(), RestoreScope.DATABASE)
    (settings.local_path / f"{base}.tar.gz").unlink()
    archive = WalArchive.current(Repository(settings.local_path))
    assert archive is not None
    with archive.receiving_alone():
        assert moment_at_hand(settings, moment.isoformat(), RestoreScope.DATABASE) == (base,)


def test_base_is_chosen_by_our_clock(
    portal: WalPortal, environ: dict[str, str], moment: datetime, tmp_path: Path
) -> None:
    """Moments are by the server's clock: where that is known to be slow, a base backup is not too young for them."""
    settings, received = elsewhere(environ, tmp_path), portal.look().archive
    assert received is not None
    repository, late = Repository(settings.local_path), timedelta(minutes=90)
    repository.prepare()
    state = {"server_clock": (moment - late).isoformat(), "updated": moment.isoformat()}
    WalArchive.prepare(repository, received.cluster).save_state(state)
    fetched = moment_at_hand(settings, (moment - late).isoformat(), RestoreScope.DATABASE)
    assert {name.partition("_")[0] for name in fetched} == {"WAL", "base"}


def copy_of_disk(environ: dict[str, str], directory: Path) -> Path:
    """The same copies in another place, to be spoiled."""
    place = directory / "spoiled"
    shutil.copytree(environ["BACKUP_OFFSITE_URLS"].removeprefix("file://"), place)
    return place


def damage(copy: Path) -> None:
    """Change the end of a copy's last segment."""
    last = max(copy.iterdir())
    last.chmod(0o600)
    last.write_bytes(last.read_bytes()[:-16] + bytes(16))
