"""The whole stack with a database of its own, from the first `up` to the loss of everything but the repository.

One check after the other, on the same stack: each leaves it as the next one expects it.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from tests.containers.smoke.stack import IMAGE, Engine, Stack, eventually

if TYPE_CHECKING:
    from collections.abc import Iterable

OURS = ("worker", "beat", "watcher", "flower")
STOP_SECONDS = 60

CAN_DO_LITTLE = """
grep -q 'CapBnd:.*0000000000000000' /proc/1/status
grep -q 'NoNewPrivs:.*1' /proc/1/status
[ "$(id -u)" != 0 ]
! touch /x 2>/dev/null
touch /tmp/x
"""

DECOY = """
import socket
server = socket.create_server(("", 6379))
print("listening", flush=True)
while True:
    server.accept()
    print("connected", flush=True)
"""


def test_everything_is_healthy(demo: Stack) -> None:
    """`up --build --wait` brings up every service, and each is healthy."""
    assert demo.services().keys() >= {*OURS, "redis", "postgres"}
    assert {found["Health"] for found in demo.services().values()} == {"healthy"}


def test_the_image_says_what_it_is(demo: Stack, engine: Engine) -> None:
    """Version and revision are labels, and one image serves every service."""
    labels: dict[str, str] = json.loads(engine.docker("image", "inspect", "--format", "{{json .Config.Labels}}", IMAGE))
    assert labels["org.opencontainers.image.version"][0].isdigit()
    assert labels["org.opencontainers.image.revision"] == "0123abcd"
    images = {engine.docker("inspect", "--format", "{{.Image}}", demo.containers()[name]) for name in OURS}
    assert len(images) == 1


def test_the_programs_of_postgres_are_there(demo: Stack, engine: Engine) -> None:
    """Of every version that was asked for: what dumps, what restores, and what recovers a moment of the past."""
    assert engine.majors
    for major in engine.majors:
        for program in ("pg_dump", "pg_restore", "pg_basebackup", "pg_receivewal", "postgres", "pg_ctl", "pg_waldump"):
            assert f" {major}." in demo.inside("worker", f"/usr/lib/postgresql/{major}/bin/{program}", "--version")
        if int(major) >= 17:
            demo.inside("worker", f"/usr/lib/postgresql/{major}/bin/pg_combinebackup", "--version")


def test_a_service_can_do_little(demo: Stack) -> None:
    """Nobody is root, has a capability, can gain one, or writes to the root file system."""
    services = demo.services()
    assert services
    for service in services:
        demo.inside(service, "sh", "-ec", CAN_DO_LITTLE)


def test_nothing_is_made_anew_without_a_reason(demo: Stack) -> None:
    """A second `up`, with or without a build, leaves every container alone: tasks are not interrupted."""
    before = demo.containers()
    demo.up()
    demo.up("--build")
    assert demo.containers() == before


def test_the_portals_redis_never_sees_the_password(demo: Stack, engine: Engine) -> None:
    """A `redis` on the portal's network gets no connection from the worker."""
    network = ("--network", f"{demo.project}_portal", "--network-alias", "redis")
    decoy = engine.docker("run", "--detach", *network, IMAGE, "python", "-c", DECOY)
    try:
        eventually(lambda: "listening" in engine.docker("logs", decoy))
        addresses = demo.inside("worker", "getent", "ahostsv4", "kekkai-backup-queue").split()
        assert len({word for word in addresses if word[0].isdigit()}) == 1
        demo.compose("restart", "worker")
        demo.up()
        assert demo.backup("full")["success"]
        assert "connected" not in engine.docker("logs", decoy)
    finally:
        engine.docker("rm", "--force", decoy)


def test_an_upload_is_backed_up_by_itself(demo: Stack) -> None:
    """The watcher sees a file that the portal writes, and an archive of the uploads follows."""
    demo.sql("create table finding as select g as id from generate_series(1, 5000) g")
    demo.uploads("mkdir a; head -c 30000 /dev/urandom >a/1.bin")
    eventually(lambda: demo.archives("media"))


def test_a_backup_and_the_doctor(demo: Stack) -> None:
    """A full backup has the database and the uploads, and nothing that it needs is missing."""
    assert demo.backup("full")["components"] == ["database", "media"]
    assert demo.backup("doctor")["counts"]["fault"] == 0


def test_a_drill(demo: Stack) -> None:
    """A restore can be tried in the read-only container."""
    assert demo.backup("drill")["success"]


def test_flower_wants_its_password(demo: Stack, engine: Engine) -> None:
    """Tasks are shown to whoever has the password, and to nobody else."""
    url = f"http://127.0.0.1:{demo.flower_port}/tasks"
    password = (demo.secrets / "flower_password").read_text()
    assert engine.fetch(url)[0] == 401
    assert engine.fetch(url, f"kekkai:{password}")[0] == 200


def test_a_restore_and_its_rollback(demo: Stack) -> None:
    """A restore brings rows and files back; a rollback takes it back."""
    before = demo.uploads("sha256sum a/1.bin")
    archive = demo.archives("full")[0]
    demo.sql("delete from finding where id > 10")
    demo.uploads("rm a/1.bin")
    demo.inside("worker", "scripts/restore.sh", archive, "--force")
    assert (demo.sql("select count(*) from finding"), demo.uploads("sha256sum a/1.bin")) == ("5000", before)
    demo.inside("worker", "scripts/restore.sh", "--rollback", "--force")
    assert (demo.sql("select count(*) from finding"), demo.uploads("ls a")) == ("10", "")


def test_the_report_leaves_the_container(demo: Stack) -> None:
    """It goes to standard output, or into the repository: nothing else can be written."""
    assert "</html>" in demo.inside("worker", "scripts/backup.sh", "report", "--output", "-")
    assert demo.backup("report")["path"].startswith("/var/lib/kekkai-backup/")


def test_redis_may_be_restarted(demo: Stack) -> None:
    """A backup works when Redis is back."""
    demo.compose("restart", "redis")
    assert demo.backup("full")["success"]


def test_a_killed_worker_comes_back(demo: Stack, engine: Engine) -> None:
    """`up` starts it again, and it is healthy."""
    engine.docker("kill", demo.containers()["worker"])
    demo.up()
    assert demo.services()["worker"]["Health"] == "healthy"


def test_metrics_are_served(demo: Stack, engine: Engine) -> None:
    """With the override, this machine has beat's metrics at a port of its own."""
    demo.compose("--file", "compose.yaml", "--file", "compose.metrics.yaml", "up", "--detach", "--wait", "beat")
    status, text = engine.fetch("http://127.0.0.1:9109/metrics")
    assert (status, "kekkai_backup_archives" in text) == (200, True)


def test_a_schedule_is_kept(demo: Stack) -> None:
    """Beat sends what is due every minute, and there is an archive of it."""
    eventually(lambda: any(str(line.get("task_id", "")).startswith("database-") for line in demo.log("beat")))
    eventually(lambda: demo.archives("database"))


def test_logs_are_json(demo: Stack) -> None:
    """Every line of our services is an object with an event."""
    for service in OURS:
        lines = demo.log(service)
        assert lines
        assert all(line["event"] for line in lines)


def test_flower_without_a_place_for_its_history_does_not_start(demo: Stack, engine: Engine) -> None:
    """It says why, instead of looking healthy and losing its history."""
    engine.docker("volume", "create", f"{demo.project}_of_root")
    volume = (
        "--volume",
        f"{demo.project}_of_root:/var/lib/flower/of_root",
        "--env",
        "FLOWER_DB=/var/lib/flower/of_root/h",
    )
    text = demo.compose(
        "run",
        "--rm",
        "--no-deps",
        "-T",
        *volume,
        "flower",
        "sh",
        "-c",
        "python -m worker.flower 2>&1; echo $?",
        check=False,
    )
    engine.docker("volume", "rm", f"{demo.project}_of_root")
    assert "directory of Flower's history cannot be written" in text
    assert text.splitlines()[-1] == "2"


def test_stop_ends_everything_in_time(demo: Stack, engine: Engine) -> None:
    """Every container, the database too, has ended with 0 before Docker's patience did."""
    started = time.monotonic()
    demo.compose("stop")
    assert time.monotonic() - started < STOP_SECONDS
    assert demo.services() == {}
    assert set(_exit_codes(engine, demo.project)) == {"0"}


def test_the_repository_alone_is_enough(demo: Stack) -> None:
    """Without Redis and without a worker, a new database gets everything back."""
    demo.up("postgres")
    archive = json.loads(demo.compose("run", "--rm", "--no-deps", "-T", "worker", "scripts/backup.sh", "list"))
    newest: dict[str, Any] = next(one for one in archive["backups"] if one["type"] == "full")
    demo.sql("drop table finding")
    demo.compose(
        "run", "--rm", "--no-deps", "-T", "worker", "scripts/restore.sh", newest["backup_id"], "--local", "--force"
    )
    assert demo.sql("select count(*) > 0 from finding") == "t"


def test_down_leaves_volumes_and_nothing_else(demo: Stack, engine: Engine) -> None:
    """No container and no network of the project is left; the archives are."""
    demo.compose("down")
    label = f"label=com.docker.compose.project={demo.project}"
    assert engine.docker("ps", "--all", "--quiet", "--filter", label) == ""
    assert engine.docker("network", "ls", "--quiet", "--filter", label) == ""
    assert f"{demo.project}_backups" in engine.docker("volume", "ls", "--quiet", "--filter", label)


def _exit_codes(engine: Engine, project: str) -> Iterable[str]:
    containers = engine.docker(
        "ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={project}"
    ).split()
    return engine.docker("inspect", "--format", "{{.State.ExitCode}}", *containers).split()
