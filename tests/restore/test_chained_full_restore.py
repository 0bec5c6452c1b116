"""Full backups that follow another archive, and what is made of them: restores, drills, extractions, copies."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.drill.job import DrillJob
from portal.ops.model import RESTORE_DIRECTORY, Component
from portal.ops.monitoring.facts import read_status
from portal.ops.pitr.timeline import read_timeline
from portal.ops.repository.catalogue import Catalogue
from portal.ops.repository.repository import Repository
from portal.ops.restore.config import RestoreScope
from portal.ops.restore.job import RestoreJob
from portal.ops.runtime.process import SystemRunner
from portal.ops.settings.load import load_settings
from tests.support.portal import Portal, execute, portal_in
from tests.support.restores import done
from tests.support.restoring import remove
from tests.support.world import change, config_of, state_of
from tools.report.page import page
from tools.report.story import read_story

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from demo.postgres import EmbeddedPostgres
    from portal.ops.restore.config import RestoreResult
    from portal.ops.settings.load import DatabaseTarget
    from tests.support.world import State


@dataclass(frozen=True, kw_only=True)
class History:
    """A portal with a complete full backup, one of an upload, and a full one that follows; it has changed after each.

    Arguments:
        moments: the state of the portal at each backup, by its id.
        ids: the backups, the oldest first.
    """

    portal: Portal
    server: EmbeddedPostgres
    ids: tuple[str, ...]
    moments: dict[str, State]

    @property
    def last(self) -> str:
        """The full backup that follows the others."""
        return self.ids[2]

    def restore(self, archive: str, method: str = "restore_full", **changes: Any) -> RestoreResult:
        """Restore, so that nothing newer stays."""
        changes.setdefault("exact", not changes.get("patterns"))
        job = RestoreJob(config_of(self.portal, **changes))
        return getattr(job, method)(archive)  # type: ignore[no-any-return]

    def state(self) -> State:
        """Database and uploads as they are."""
        tables, files = state_of(self.portal, self.server)
        return tables, {path: entry for path, entry in files.items() if not path.startswith(RESTORE_DIRECTORY)}

    def path(self, backup_id: str) -> Path:
        """An archive's file."""
        return self.portal.archives / f"{backup_id}.tar.gz"


@pytest.fixture
def history(tmp_path: Path, portal_database: DatabaseTarget, postgres: EmbeddedPostgres) -> Iterator[History]:
    """The portal."""
    portal = portal_in(tmp_path, portal_database, postgres)
    execute(portal_database, "CREATE TABLE mark AS SELECT 'first' AS value")
    job = portal.job(full_uploads="chain")
    moments = {}

    def note(result: Any) -> str:
        assert result.error is None, result.error
        moments[result.backup_id] = state_of(portal, postgres)
        return str(result.backup_id)

    first = note(job.backup_full())
    (portal.uploads / "tenant-1").mkdir(exist_ok=True)
    (portal.uploads / "tenant-1" / "early.sarif").write_text("early")
    upload = note(job.backup_media(incremental=True))
    execute(portal_database, "UPDATE mark SET value = 'third'", "DELETE FROM note WHERE id % 2 = 0")
    (portal.uploads / "tenant-1" / "late.sarif").write_text("late")
    gone, *_ = sorted(path for path in portal.uploads.rglob("*") if path.is_file())
    gone.unlink()
    (portal.audit / "audit.jsonl").open("a").close()
    third = note(job.backup_full())
    change(portal)
    yield History(portal=portal, server=postgres, ids=(first, upload, third), moments=moments)
    remove(portal_database)


def test_all_of_it_comes_back(history: History) -> None:
    """Database and uploads are what they were; a rollback gives back what was there before the restore."""
    before = history.state()
    result = done(history.restore(history.last))
    assert result.components_restored == ("database", "media", "audit_logs")
    assert history.state() == history.moments[history.last]
    done(RestoreJob(config_of(history.portal)).rollback())
    assert history.state() == before


def test_a_dry_run_says_so(history: History) -> None:
    """It looks at the whole chain and touches nothing."""
    before = history.state()
    result = done(history.restore(history.last, dry_run=True))
    assert "database, uploads, audit log" in result.plan[0]
    assert history.state() == before


def test_the_uploads_alone(history: History) -> None:
    """The tree of that moment, and the database stays."""
    tables, _ = history.state()
    done(history.restore(history.last, "restore_media"))
    assert history.state() == (tables, history.moments[history.last][1])


def test_one_path(history: History) -> None:
    """A file that only the base has, and one that only an incremental between has."""
    wanted = history.moments[history.last][1]
    base_only = next(path for path in sorted(wanted) if path.endswith(".sarif") and "tenant-1/" not in path)
    for pattern in (base_only, "tenant-1/early.sarif"):
        (history.portal.uploads / pattern).unlink(missing_ok=True)
        done(history.restore(history.last, patterns=(pattern,)))
        assert history.state()[1][pattern][2] == wanted[pattern][2]


def test_the_database_alone_needs_no_chain(history: History) -> None:
    """It is complete in the archive, so a base that is lost does not stand against it."""
    history.path(history.ids[0]).unlink()
    done(history.restore(history.last, "restore_database"))
    assert history.state()[0] == history.moments[history.last][0]


def test_a_lost_base_stands_against_all_of_it(history: History) -> None:
    """It is named, and nothing is touched."""
    history.path(history.ids[0]).unlink()
    before = history.state()
    result = history.restore(history.last)
    assert (result.success, result.exit_code) == (False, 4)
    assert history.ids[0] in (result.error or "")
    assert history.state() == before


def test_a_drill_shows_it(history: History) -> None:
    """Restored for a test, and compared: every row and every file."""
    report = DrillJob(config_of(history.portal)).run()
    assert (report.success, report.backup_id) == (True, history.last), report.error


@pytest.mark.parametrize(
    ("member", "content"),
    [("media/tenant-1/early.sarif", "early"), ("media/tenant-1/late.sarif", "late"), ("audit/audit.jsonl", None)],
)
def test_one_file_is_extracted(history: History, tmp_path: Path, member: str, content: str | None) -> None:
    """Whichever archive of the chain has it."""
    target = tmp_path / "out"
    command = [sys.executable, "-m", "tools.backup", "extract", history.last, member, "--output", str(target)]
    subprocess.run(command, check=True, env=history.portal.environ(), capture_output=True)
    assert target.read_text() == (content or (history.portal.audit / "audit.jsonl").read_text())


def test_the_list_shows_what_it_follows(history: History) -> None:
    """It is a full backup with a parent; nothing is wrong with it."""
    entry = next(one for one in Catalogue(Repository(history.portal.archives)).entries() if one.name == history.last)
    assert (entry.type, entry.parent, entry.base, entry.fault) == ("full", history.ids[1], history.ids[0], "")
    command = [sys.executable, "-m", "tools.backup", "--json", "list"]
    shown = subprocess.run(command, check=True, env=history.portal.environ(), capture_output=True, text=True).stdout
    listed = {one["backup_id"]: one for one in json.loads(shown)["backups"]}
    assert listed[history.last]["parent"] == history.ids[1]
    assert listed[history.last]["components"] == ["database", "media", "audit_logs"]


def test_latest_is_it(history: History) -> None:
    """Whoever asks for the newest full backup gets it."""
    done(history.restore("latest"))
    assert history.state() == history.moments[history.last]


def test_status_report_and_timeline_show_it(history: History) -> None:
    """It is the newest backup of all that it holds, until its base is lost: then it counts for nothing."""
    environ = history.portal.environ()
    settings, now = load_settings(environ, lambda _: ""), datetime.now(UTC)
    status = read_status(settings, now)
    assert {one.backup_id for one in status.facts.newest.values()} == {history.last}
    assert set(status.facts.newest) == {Component.DATABASE, Component.MEDIA, Component.AUDIT_LOGS}
    assert history.last in page(read_story(settings, now))
    repository, runner = Repository(history.portal.archives), SystemRunner()
    timeline = read_timeline(repository, start=None, end=None, live_names={}, runner=runner, bin_dir=None)
    assert f"full backup {history.last}" in "\n".join(timeline.lines())
    history.path(history.ids[0]).unlink()
    assert read_status(settings, now).facts.newest == {}


def test_the_uploads_of_a_moment(history: History) -> None:
    """At a moment after it, the uploads are those that it has together with its chain; the database stays."""
    tables, _ = history.state()
    job = RestoreJob(config_of(history.portal, exact=True))
    done(job.restore_at(datetime.now(UTC).isoformat(), scope=RestoreScope.MEDIA))
    assert history.state() == (tables, history.moments[history.last][1])
