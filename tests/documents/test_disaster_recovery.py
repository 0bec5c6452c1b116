"""The runbook is followed, block by block, as it stands in the documentation, on an empty server and disk."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from demo.compare import table_contents, tree_contents
from demo.postgres import EmbeddedPostgres
from tests.support.portal import Portal, succeeded

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
RUNBOOK = ROOT / "docs" / "disaster-recovery.md"
PASSWORD = "phoenix"


def commands() -> Iterator[str]:
    """The lines of the runbook that are to be typed."""
    for block in re.findall(r"```bash\n(.*?)```", RUNBOOK.read_text("utf-8"), re.DOTALL):
        yield from block.strip().splitlines()


def remedy(program: str) -> str:
    """The command of a program that the runbook's table names as what to do."""
    (found,) = re.findall(rf"`({program} [^`]+)`", RUNBOOK.read_text("utf-8"))
    return str(found)


def environment(server: EmbeddedPostgres, new: Path) -> dict[str, str]:
    """What the runbook's exports set on the new machine, its examples replaced by what is there."""
    address = server.superuser()
    (block,) = re.findall(r"```sh\n(.*?)```", RUNBOOK.read_text("utf-8"), re.DOTALL)
    for example, real in (
        ("db.example.org", address.host),
        ("PORT=5432", f"PORT={address.port}"),
        ("…", PASSWORD),
        ("/var/lib/kekkai-portal/", f"{shlex.quote(str(new))}/"),
    ):
        assert example in block
        block = block.replace(example, real)
    before = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    ended = subprocess.run(
        ["/usr/bin/env", "bash", "-euc", f"{block}\nenv -0"], env=before, capture_output=True, text=True, check=True
    )
    after = dict(line.split("=", 1) for line in ended.stdout.split("\0") if line)
    exported = {name: after[name] for name in re.findall(r"(\w+)=", block)}
    return before | exported | {"BACKUP_PG_BIN_DIR": str(server.bin_dir)}


def remedied(program: str, server: EmbeddedPostgres) -> None:
    """Follow the table of the runbook, as the administrator of the server who types the new user's password twice."""
    address = server.superuser()
    command = f"{server.bin_dir}/{remedy(program).replace('db.example.org', address.host)}"
    subprocess.run(
        ["/usr/bin/env", "bash", "-euc", command],
        env={"PATH": os.environ["PATH"], "PGPORT": str(address.port), "PGPASSWORD": address.password},
        input=f"{PASSWORD}\n{PASSWORD}\n",
        text=True,
        capture_output=True,
        check=True,
        start_new_session=True,  # without a terminal the password is read from standard input
        timeout=60,
    )


def follow(command: str, variables: dict[str, str]) -> None:
    ended = subprocess.run(
        ["/usr/bin/env", "bash", "-euc", command], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, f"{command}\n{ended.stderr}"


def test_the_runbook_brings_the_portal_back(portal: Portal, postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    """On an empty server the runbook's commands make the user, bring back every row and file, and take it back."""
    succeeded(portal.job().backup_full())
    new = tmp_path / "new machine"
    shutil.copytree(portal.archives, new / "backups")
    with postgres.connect(portal.database.name) as connection:
        rows = table_contents(connection)
    with EmbeddedPostgres(unsafe_speed=True) as server:
        remedied("createuser", server)
        variables = environment(server, new)
        restoring = [command for command in commands() if "--rollback" not in command]
        for command in restoring:
            follow(command, variables)

        def assert_back() -> None:
            with server.connect("defectdojo") as connection:
                assert table_contents(connection) == rows
            files = {path: one for path, one in tree_contents(new / "uploads").items() if "kekkai" not in path}
            assert files == tree_contents(portal.uploads)

        assert_back()
        assert len(list(new.glob("audit.restored-*"))) == 2
        taking_back = [command for command in commands() if "--rollback" in command]
        for command in taking_back:
            follow(command, variables)
        assert_back()  # the last restore was of the audit log alone
        assert len(list(new.glob("audit.restored-*"))) == 1
        for _ in range(2):  # the uploads, and the database, that were restored a second time
            follow(taking_back[-1], variables)
            assert_back()
        follow(taking_back[-1], variables)  # and the first restore, of everything
        assert not list(new.glob("audit.restored-*"))
        assert not [path for path in new.glob("uploads/**/*") if path.is_file() and "kekkai" not in str(path)]
        with server.connect() as connection:  # which created the database, so its rollback leaves none of that name
            assert not connection.execute("SELECT FROM pg_database WHERE datname = 'defectdojo'").fetchall()


def test_the_steps_of_the_guide(portal: Portal, tmp_path: Path) -> None:
    """Database first, then media, as in the guide; where there is no database, the message has the command for it."""
    succeeded(portal.job().backup_full())
    new = tmp_path / "new machine"
    shutil.copytree(portal.archives, new / "backups")
    archive = next((new / "backups").glob("*.tar.gz"))
    with EmbeddedPostgres(unsafe_speed=True) as server:
        variables = environment(server, new)
        refused = restore(variables, archive, "--database-only", "--force")
        assert refused.returncode == 1
        assert "refused the password of user defectdojo" in refused.stderr
        where = f"--host=127.0.0.1 --port={server.port}"
        assert f"createuser {where} --pwprompt defectdojo" in refused.stderr
        assert f"createdb {where} --owner=defectdojo defectdojo" in refused.stderr
        assert "--create-database" in refused.stderr
        server.create_role("defectdojo", password=PASSWORD)
        refused = restore(variables, archive, "--database-only", "--force")
        assert refused.returncode == 1
        assert f"createdb {where} --owner=defectdojo defectdojo" in refused.stderr
        remedied("createdb", server)
        for option in ("--database-only", "--media-only"):
            ended = restore(variables, archive, option, "--force")
            assert ended.returncode == 0, ended.stderr
    assert tree_contents(new / "uploads") == tree_contents(portal.uploads)


def restore(variables: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The guide's command."""
    command = ["./scripts/restore.sh", *arguments]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )


def test_the_runbook_says_something() -> None:
    """There are commands in the runbook, and each is one of ours."""
    found = list(commands())
    assert len(found) >= 8
    assert all(command.startswith(("tools/backup.sh ", "tools/restore.sh ")) for command in found)
