"""Two instances attached to a Kekkai Portal that Compose runs, and a portal on the machine itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.containers.smoke.stack import IMAGE, PASSWORD, Engine, Stack, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

PORTAL = "kekkai-smoke-shop"
VOLUMES = ("portal_data", "portal_uploads", "dojo_media")
OWNER, DOJO_OWNER = "10001:10001", "1001:1337"
HOST_PORT = "55432"


@dataclass(frozen=True, kw_only=True)
class Shop:
    """A portal as its own compose file makes it: a network, three volumes, a database, and services of its own."""

    engine: Engine

    def volume(self, name: str, script: str, user: str = "0:0") -> str:
        """Run a script in a volume."""
        return self.engine.run("--user", user, "--volume", f"{PORTAL}_{name}:/v", script=f"umask 077; cd /v; {script}")

    def make(self) -> None:
        """Make all of it."""
        self.engine.docker("network", "create", f"{PORTAL}_dojo_network")
        for name in VOLUMES:
            self.engine.docker("volume", "create", f"{PORTAL}_{name}")
        self.volume("portal_data", f"mkdir uploads; echo '[]' >tenants.json; chown -R {OWNER} .; chmod 755 .")
        self.volume("portal_uploads", f"mkdir tenant; echo '{{}}' >tenant/scan.sarif; chown -R {OWNER} .; chmod 755 .")
        self.volume(
            "dojo_media", f"mkdir uploaded_files; echo x >uploaded_files/a.txt; chown -R {DOJO_OWNER} .; chmod 755 ."
        )
        self.database("--network", f"{PORTAL}_dojo_network", "--network-alias", "postgres", name=f"{PORTAL}-postgres")

    def database(self, *options: str, name: str, settings: tuple[str, ...] = ()) -> None:
        """Start a PostgreSQL server."""
        image = self.engine.images.get("KEKKAI_POSTGRES_IMAGE", "postgres:18-alpine")
        login = ("POSTGRES_DB=defectdojo", "POSTGRES_USER=defectdojo", f"POSTGRES_PASSWORD={PASSWORD}")
        variables = [word for one in login for word in ("--env", one)]
        # As `postgres`: the initialisation of the image needs no more, and a stand-in may know no root.
        self.engine.docker(
            "run", "--detach", "--name", name, "--user", "postgres", *options, *variables, image, "postgres", *settings
        )

    def remove(self) -> None:
        """Remove all of it."""
        for name in (f"{PORTAL}-postgres", f"{PORTAL}-on-the-host"):
            self.engine.docker("rm", "--force", "--volumes", name, check=False)
        for name in VOLUMES:
            self.engine.docker("volume", "rm", "--force", f"{PORTAL}_{name}", check=False)
        self.engine.docker("network", "rm", f"{PORTAL}_dojo_network", check=False)


@pytest.fixture(scope="module")
def shop(engine: Engine) -> Iterator[Shop]:
    """The portal."""
    stack = Stack(engine, project="kekkai-smoke-build", env_file="build.env", flower_port=5599)
    stack.write_env()
    stack.make_secrets()
    stack.compose("build")
    found = Shop(engine=engine)
    found.remove()
    try:
        found.make()
        yield found
    finally:
        found.remove()


@pytest.fixture(scope="module")
def first(engine: Engine, shop: Shop) -> Iterator[Stack]:
    """The instance for the portal's own uploads."""
    stack = Stack(engine, project="kekkai-smoke-portal", env_file="portal.env", flower_port=5597)
    stack.write_env(
        COMPOSE_FILE="compose.yaml:compose.portal.yaml", KEKKAI_PORTAL_PROJECT=PORTAL, BACKUP_FILE_COLUMNS="off"
    )
    with stack.running():
        yield stack


@pytest.fixture(scope="module")
def second(engine: Engine, shop: Shop) -> Iterator[Stack]:
    """The instance for DefectDojo's media, as another user, beside the first."""
    stack = Stack(engine, project="kekkai-smoke-media", env_file="media.env", flower_port=5598)
    stack.write_env(
        COMPOSE_FILE="compose.yaml:compose.media.yaml",
        KEKKAI_PORTAL_PROJECT=PORTAL,
        KEKKAI_VERSION="smoke-media",
        KEKKAI_UID="1001",
        KEKKAI_GID="1337",
        BACKUP_SCHEDULE_DATABASE="off",
        BACKUP_RPO_DATABASE="26h",
    )
    with stack.running():
        yield stack


def test_the_portals_uploads_are_backed_up(first: Stack) -> None:
    """The first instance has the database and the portal's uploads, and finds no fault."""
    assert first.backup("full")["components"] == ["database", "media"]
    assert first.backup("doctor")["counts"]["fault"] == 0


def test_nothing_of_ours_is_in_the_portals_volume(first: Stack, shop: Shop) -> None:
    """No mount point was made there, which would belong to root."""
    assert shop.volume("portal_data", "ls -A").split() == ["tenants.json", "uploads"]


def test_a_second_instance_has_the_other_tree(first: Stack, second: Stack) -> None:
    """Both are healthy side by side, each with a repository, a queue and a Flower of its own."""
    assert second.backup("full")["components"] == ["database", "media"]
    archive = second.archives("full")[0]
    taken = "scripts/backup.sh extract $1 media/uploaded_files/a.txt --output /tmp/a.txt >&2 && cat /tmp/a.txt"
    assert second.inside("worker", "sh", "-c", taken, "sh", archive) == "x"
    assert archive not in first.archives("full")
    assert {found["Health"] for stack in (first, second) for found in stack.services().values()} == {"healthy"}


def test_both_trees_come_back(first: Stack, second: Stack, shop: Shop) -> None:
    """Each instance restores its own tree."""
    portal, media = first.archives("full")[0], second.archives("full")[0]
    shop.volume("portal_uploads", "rm tenant/scan.sarif")
    shop.volume("dojo_media", "rm uploaded_files/a.txt")
    first.inside("worker", "scripts/restore.sh", portal, "--force")
    second.inside("worker", "scripts/restore.sh", media, "--media-only", "--force")
    assert shop.volume("portal_uploads", "cat tenant/scan.sarif") == "{}"
    assert shop.volume("dojo_media", "cat uploaded_files/a.txt") == "x"


def test_a_database_on_this_machine(engine: Engine, shop: Shop, first: Stack) -> None:
    """A worker reaches a server that listens on the address of Docker's bridge."""
    bridge = "{{(index .IPAM.Config 0).Gateway}}"
    address = engine.docker("network", "inspect", "--format", bridge, "bridge")
    settings = ("-c", f"listen_addresses={address}", "-c", f"port={HOST_PORT}")
    shop.database("--network", "host", name=f"{PORTAL}-on-the-host", settings=settings)
    ready = ("exec", f"{PORTAL}-on-the-host", "pg_isready", "--host", address, "--port", HOST_PORT)
    eventually(lambda: "accepting connections" in engine.docker(*ready, check=False))
    where = ("--env", "DD_DATABASE_HOST=host.docker.internal", "--env", f"DD_DATABASE_PORT={HOST_PORT}")
    first.compose("run", "--rm", "--no-deps", "-T", *where, "worker", "scripts/backup.sh", "database", "--local")


def test_another_image_is_another_tag(first: Stack, second: Stack, engine: Engine) -> None:
    """The user is part of the image, so the instances have one each."""
    assert engine.docker("image", "inspect", "--format", "{{.Config.User}}", IMAGE) == OWNER
    assert engine.docker("image", "inspect", "--format", "{{.Config.User}}", "kekkai-backup:smoke-media") == DOJO_OWNER
