"""What surrounds a change of live data: the operator's commands, the credential key, and the portal's health."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.restore.portal_health import HealthCheck
from portal.ops.runtime.commands import AroundCommands
from portal.ops.settings.database_url import Secret
from tests.support import commands
from tests.support.portal import succeeded

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.http_server import Server
    from tests.support.world import World

KEY = Secret("the portal's key")


def around(before: str = "", after: str = "") -> AroundCommands:
    words = [("sh", "-c", script) if script else () for script in (before, after)]
    return AroundCommands(before=words[0], after=words[1], timeout_seconds=20)


def test_both_commands_run(world: World, tmp_path: Path) -> None:
    """The first sees the portal as it was, the second as it is; both know the restore, and a rollback too."""
    count = f'$(ls "{world.portal.uploads}" | wc -l)'
    script = f'echo $KEKKAI_OPERATION $KEKKAI_RESULT {count} $KEKKAI_RESTORE_ID >>"{tmp_path}/told"'
    job = world.job(commands=around(script, script))
    result = job.restore_full(world.archive)
    assert result.success
    assert job.rollback().success
    lines = [line.split() for line in (tmp_path / "told").read_text().splitlines()]
    assert [line[:2] for line in lines] == [
        ["restore", "failed"],
        ["restore", "succeeded"],
        ["rollback", "failed"],
        ["rollback", "succeeded"],
    ]
    assert {line[3] for line in lines} == {result.restore_id}
    assert lines[0][2] == lines[3][2] != lines[1][2]


def test_nothing_changes_if_the_first_fails(world: World, tmp_path: Path) -> None:
    """Nothing that was staged is left, and the second command runs."""
    script = f'echo $KEKKAI_RESULT >"{tmp_path}/told"'
    result = world.job(commands=around("echo the portal is busy; exit 9", script)).restore_full(world.archive)
    assert (result.success, result.exit_code) == (False, 1)
    assert "BACKUP_BEFORE_COMMAND ended with 9: the portal is busy" in (result.error or "")
    assert world.state() == world.after
    assert (world.stages(), world.databases()) == ([], {world.portal.database.name})
    assert (tmp_path / "told").read_text() == "failed\n"
    assert world.job().restore_full(world.archive).success


def test_a_failure_of_the_second_is_a_warning(world: World) -> None:
    """The restore is done by then."""
    result = world.job(commands=around(after="echo cannot start; exit 1")).restore_media(world.archive)
    assert (result.success, result.warnings) == (True, ("BACKUP_AFTER_COMMAND ended with 1: cannot start",))


def test_a_dry_run_changes_nothing(world: World, tmp_path: Path) -> None:
    """So it runs no command, and asks no portal."""
    health = HealthCheck(url="http://127.0.0.1:1/", timeout_seconds=0)
    job = world.job(commands=around(f"touch {tmp_path}/x", f"touch {tmp_path}/x"), health=health, dry_run=True)
    result = job.restore_full(world.archive)
    assert (result.success, result.portal, (tmp_path / "x").exists()) == (True, None, False)


def test_the_portal_answers(world: World, web_server: Server) -> None:
    """The result says so, of a restore and of its rollback."""
    job = world.job(health=HealthCheck(url=f"http://{web_server.place}/health", timeout_seconds=10))
    for result in (job.restore_media(world.archive), job.rollback()):
        assert (result.success, result.warnings) == (True, ())
        assert result.portal is not None
        assert result.portal["answers"]
    assert [path for path, _ in web_server.asked] == ["/health", "/health"]


def test_the_portal_does_not_answer(world: World) -> None:
    """The restore has succeeded, and a warning names what to roll back; after the rollback it does not."""
    job = world.job(health=HealthCheck(url="http://127.0.0.1:1/health", timeout_seconds=0))
    result = job.restore_media(world.archive)
    assert result.success
    (warning,) = result.warnings
    assert "does not answer at http://127.0.0.1:1/health" in warning
    assert f"a rollback of {result.restore_id} brings the previous data back" in warning
    (warning,) = job.rollback().warnings
    assert "rollback of" not in warning


@pytest.mark.parametrize(("key", "said"), [(KEY, ""), (Secret("another"), "is not the key"), (None, "is not set here")])
def test_the_plan_compares_the_key(world: World, key: Secret | None, said: str) -> None:
    """Whoever restores the database hears it before anything is changed; a restore of the uploads needs no key."""
    archive = succeeded(world.portal.job(credential_key=KEY).backup_full())
    job = world.job(credential_key=key, dry_run=True)
    found = [warning for warning in job.restore_full(archive).warnings if "DD_CREDENTIAL_AES_256_KEY" in warning]
    assert ([said in warning for warning in found] or [not said]) == [True]
    assert not any("DD_CREDENTIAL" in warning for warning in job.restore_media(archive).warnings)


def test_the_command_reads_the_settings(world: World, web_server: Server, tmp_path: Path) -> None:
    """`restore.sh` has all of it from the environment, and tells a person that the portal answers."""
    environ = world.portal.environ(
        BACKUP_BEFORE_COMMAND=f"touch {tmp_path}/before",
        PORTAL_HEALTH_URL=f"http://{web_server.place}/api/v1/health",
    )
    found: tuple[dict[str, Any], str] = commands.done(
        world.archive.name.removesuffix(".tar.gz"), "--media-only", "--force", environ=environ, script=commands.RESTORE
    )
    assert found[0]["portal"]["answers"]
    assert "the portal answers at" in found[1]
    assert (tmp_path / "before").exists()
    assert "HTTP 200" in json.dumps(found[0])
