"""What a backup answers: to a request made twice, to whoever watches, and as a result."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from portal.ops.backup.job import BackupJob, BackupType
from portal.ops.errors import RepositoryError
from portal.ops.repository.repository import Repository
from portal.ops.repository.sidecar import sidecar_of
from tests.support.backups import NOON, ROOT, manifest
from tests.support.portal import Portal, succeeded

if TYPE_CHECKING:
    from portal.ops.runtime.progress import Step


class TestResult:
    """What a caller gets."""

    def test_it_describes_the_archive(self, portal: Portal) -> None:
        """Size and checksum are the file's, and the sidecar says the same."""
        result = portal.job().backup_full()
        archive = succeeded(result)
        assert result.size_bytes == archive.stat().st_size
        assert sidecar_of(archive).read_text() == f"{result.checksum}  {archive.name}\n"
        assert result.backup_id == archive.name.removesuffix(".tar.gz")
        assert (result.backup_type, result.exit_code, result.encrypted) == (BackupType.FULL, 0, False)
        assert result.duration_seconds > 0

    def test_it_becomes_json(self, portal: Portal) -> None:
        """The dictionary of a result is JSON, with a version of its own."""
        result = portal.job().backup_media(moment=NOON)
        found = json.loads(json.dumps(result.to_dict()))
        assert found == result.to_dict()
        assert found["format_version"] == 1
        assert (found["type"], found["timestamp"], found["success"]) == ("media", "2024-01-15T12:00:00Z", True)
        assert found["path"] == result.destination_path

    def test_a_failure_becomes_json_too(self, portal: Portal) -> None:
        """The same keys, and the error in words."""
        failed = portal.job(media_path=None).backup_media().to_dict()
        assert failed.keys() == portal.job().backup_media().to_dict().keys()
        assert json.loads(json.dumps(failed))["error"].startswith("no place of the uploads is configured")

    def test_archives_are_listed(self, portal: Portal) -> None:
        """The list has what the portal's code asks for, newest first."""
        job = portal.job()
        older = job.backup_media(moment=NOON)
        newer = job.backup_database(moment=NOON + timedelta(days=1))
        listed = job.list_backups()
        assert [backup["path"] for backup in listed] == [newer.destination_path, older.destination_path]
        assert {"path", "name", "size_bytes", "modified", "checksum"} <= listed[0].keys()
        assert [backup["checksum"] for backup in listed] == [newer.checksum, older.checksum]

    def test_a_damaged_sidecar_does_not_stop_the_list(self, portal: Portal) -> None:
        """An archive whose checksum cannot be read is listed without one."""
        job = portal.job()
        sidecar_of(succeeded(job.backup_media())).write_text("nonsense")
        assert [backup["checksum"] for backup in job.list_backups()] == [None]

    def test_a_list_that_cannot_be_made_is_an_error(self, portal: Portal) -> None:
        """A repository that cannot be read is not reported as empty."""
        portal.archives.touch()
        with pytest.raises(RepositoryError, match="not a directory"):
            portal.job().list_backups()


class TestProgress:
    """What is told while it goes on."""

    def test_it_only_grows(self, portal: Portal) -> None:
        """Bytes never go back, phases come in order, and in the end all content was counted."""
        steps: list[Step] = []
        archive = succeeded(BackupJob(portal.config(), progress=steps.append).backup_full())
        assert all(before.done <= after.done for before, after in pairwise(steps))
        assert list(dict.fromkeys(step.phase for step in steps)) == ["database", "media", "audit_logs"]
        details = manifest(archive)["details"]
        assert steps[-1].done == sum(detail["bytes"] for detail in details.values())

    def test_verification_tells_as_well(self, portal: Portal) -> None:
        """A verification reports how much it has looked at."""
        archive = succeeded(portal.job().backup_media())
        steps: list[Step] = []
        BackupJob(portal.config(), progress=steps.append).verify(archive)
        assert steps[-1].phase == "verify"
        assert steps[-1].done >= manifest(archive)["details"]["media"]["bytes"]


class TestRequests:
    """The same request twice, and different ones at once."""

    def test_the_same_request_gives_the_same_answer(self, portal: Portal) -> None:
        """A second delivery finds the first one's archive, and says the same of it."""
        first = portal.job().backup_full(moment=NOON, request_id="task-1")
        again = portal.job().backup_full(moment=NOON, request_id="task-1")
        assert replace(again, duration_seconds=0) == replace(first, duration_seconds=0)
        assert len(portal.left()) == 2

    def test_the_id_is_a_function_of_the_request(self, portal: Portal) -> None:
        """Type, moment and request make the id; the moment of a slot is in it."""
        first = portal.job().backup_media(moment=NOON, request_id="task-1")
        assert re.fullmatch(r"media_20240115_120000_[0-9a-f]{6}", first.backup_id)

    def test_requests_at_once_give_one_archive(self, portal: Portal) -> None:
        """Eight processes that get the same message make one archive, and all answer with it."""
        program = (
            "import json, os\nfrom datetime import UTC, datetime\n"
            "from portal.ops.backup import create_backup_job\n"
            "moment = datetime(2024, 1, 15, 12, tzinfo=UTC)\n"
            "result = create_backup_job().backup_full(moment=moment, request_id='task-1')\n"
            "print(json.dumps(result.to_dict()))"
        )
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", program], cwd=ROOT, env=portal.environ(), stdout=subprocess.PIPE, text=True
            )
            for _ in range(8)
        ]
        answers = [json.loads(process.communicate(timeout=60)[0].splitlines()[-1]) for process in processes]
        assert len({answer["checksum"] for answer in answers}) == 1
        assert all(answer["success"] for answer in answers)
        assert len(portal.left()) == 2

    def test_different_requests_in_one_second_do_not_meet(self, portal: Portal) -> None:
        """Two backups of the same second are two archives."""
        job = portal.job()
        one, other = (job.backup_media(moment=NOON) for _ in range(2))
        assert one.backup_id != other.backup_id
        assert len(job.list_backups()) == 2

    def test_an_archive_that_was_damaged_meanwhile_is_no_answer(self, portal: Portal) -> None:
        """A second delivery whose archive cannot be read does not call it a success."""
        job = portal.job()
        archive = succeeded(job.backup_media(moment=NOON, request_id="task-1"))
        archive.write_bytes(archive.read_bytes()[:1000])
        again = job.backup_media(moment=NOON, request_id="task-1")
        assert (again.success, again.exit_code) == (False, 4)

    def test_one_that_takes_too_long_makes_the_other_busy(self, portal: Portal) -> None:
        """Who waits in vain for the same archive ends with the code for busy."""
        first = portal.job().backup_media(moment=NOON, request_id="task-1")
        repository = Repository(portal.archives)
        archive = repository.find(first.backup_id)
        archive.path.unlink()
        assert archive.backup_id is not None
        with repository.pending(archive.backup_id):
            second = portal.job(lock_timeout=0.1).backup_media(moment=NOON, request_id="task-1")
        assert (second.success, second.exit_code) == (False, 5)
