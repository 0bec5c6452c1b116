"""The examples to copy: each is parsed or run by the tool it is for, and names only what there is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from cronsim import CronSim

from portal.ops.monitoring.metrics import METRICS, READABLE
from portal.ops.runtime.progress import utc_now
from portal.ops.settings.load import SETTINGS
from tests.support.commands import ROOT
from tools.command_line import Commands
from tools.commands import BACKUP_COMMANDS

if TYPE_CHECKING:
    from pathlib import Path

EXAMPLES = ROOT / "examples"
METRIC = re.compile(r"kekkai_backup_[a-z_]+")
KNOWN = {metric.name for metric in METRICS} | {READABLE}


def checked(*command: str | Path, cwd: Path = EXAMPLES) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def is_command(words: list[str]) -> bool:
    """Whether words after `backup.sh` are a command that its parser takes."""
    commands = Commands("backup.sh", BACKUP_COMMANDS, default="full")
    name, rest = commands.choose(words)
    assert name is not None, words
    commands.parser(name).parse_args(rest)
    return True


LINES = [
    line
    for line in (EXAMPLES / "cron" / "kekkai-backup").read_text().splitlines()
    if line and not line.startswith("#") and not re.match(r"[A-Z]+=", line)
]
DOCUMENTS: list[dict[str, Any]] = list(yaml.safe_load_all((EXAMPLES / "kubernetes" / "cronjob.yaml").read_text()))
DASHBOARD = json.loads((EXAMPLES / "grafana" / "kekkai-backup.json").read_text())


class TestCron:
    @pytest.mark.parametrize("line", LINES)
    def test_a_line_has_a_schedule_a_user_and_a_command(self, line: str) -> None:
        """Five fields that cron takes, the user, and a command that there is."""
        *fields, user, command = line.split(maxsplit=6)
        CronSim(" ".join(fields), utc_now())
        assert user == "kekkai-backup"
        found = re.match(r"/opt/kekkai-backup/tools/backup\.sh ([a-z -]+?)(?: >>| 2>|$)", command)
        assert found
        assert is_command(found[1].split())

    def test_the_guides_times_are_kept(self) -> None:
        """A full backup at two, one of the database every hour."""
        assert [line.split("kekkai-backup")[0].strip() for line in LINES[:2]] == ["0 2 * * *", "0 * * * *"]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="Debian has it in systemd")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """Units with the paths of this project pass systemd's verification."""
    for unit in (EXAMPLES / "systemd").iterdir():
        text = unit.read_text().replace("/opt/kekkai-backup", str(ROOT)).replace("=kekkai-backup\n", "=root\n")
        (tmp_path / unit.name).write_text(text)
    ended = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *sorted(tmp_path.iterdir())],
        capture_output=True,
        text=True,
        check=False,
    )
    assert [line for line in ended.stderr.splitlines() if "kekkai" in line] == []


@pytest.mark.parametrize("unit", sorted(path.name for path in (EXAMPLES / "systemd").glob("*.service")))
def test_a_unit_starts_what_there_is(unit: str) -> None:
    """Each service runs a command or a part of the service that exists."""
    text = (EXAMPLES / "systemd" / unit).read_text()
    found = re.search(r"^ExecStart=/opt/kekkai-backup/tools/(backup|service)\.sh (.+)$", text, re.MULTILINE)
    assert found
    if found[1] == "backup":
        assert is_command(found[2].split())
    else:
        listed = re.findall(r"^#   service\.sh (\w+)", (ROOT / "tools" / "service.sh").read_text(), re.MULTILINE)
        assert found[2] in listed


class TestKubernetes:
    def test_there_is_everything_that_the_jobs_name(self) -> None:
        """Config map, secret and claims that the jobs use are in the file, but for the portal's own uploads."""
        there = {(one["kind"], one["metadata"]["name"]) for one in DOCUMENTS}
        assert self.jobs()
        for job in self.jobs():
            pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
            container = pod["containers"][0]
            assert {("ConfigMap", one["configMapRef"]["name"]) for one in container["envFrom"]} <= there
            volumes = {volume["name"]: volume for volume in pod["volumes"]}
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes.keys()
            assert ("Secret", volumes["secrets"]["secret"]["secretName"]) in there
            claim = volumes["repository"]["persistentVolumeClaim"]["claimName"]
            assert ("PersistentVolumeClaim", claim) in there

    def test_settings_are_settings_and_commands_are_commands(self) -> None:
        """Every variable is a setting, and each job runs a command that there is, on its schedule, one at a time."""
        names = {setting.name for setting in SETTINGS} | {f"{setting.name}_FILE" for setting in SETTINGS}
        config = next(one for one in DOCUMENTS if one["kind"] == "ConfigMap")
        assert config["data"].keys() <= names
        for job in self.jobs():
            spec = job["spec"]
            CronSim(spec["schedule"], utc_now())
            assert spec["concurrencyPolicy"] == "Forbid"
            command = spec["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["command"]
            assert command[0] == "/opt/kekkai/tools/backup.sh"
            assert is_command(command[1:])

    def test_the_pods_have_no_privileges(self) -> None:
        """Not root, no capabilities, a read-only root file system, no token of the cluster."""
        assert self.jobs()
        for job in self.jobs():
            pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
            assert pod["securityContext"]["runAsNonRoot"]
            assert not pod["automountServiceAccountToken"]
            context = pod["containers"][0]["securityContext"]
            assert context == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }

    def jobs(self) -> list[dict[str, Any]]:
        """The two jobs."""
        found = [one for one in DOCUMENTS if one["kind"] == "CronJob"]
        assert len(found) == 2
        return found


class TestPrometheus:
    def test_the_rules_name_metrics_that_there_are(self) -> None:
        """Whether or not promtool is there to look at the rest."""
        rules = yaml.safe_load((EXAMPLES / "prometheus" / "kekkai-backup.rules.yml").read_text())
        found = [rule for group in rules["groups"] for rule in group["rules"]]
        assert len(found) >= 9
        assert {name for rule in found for name in METRIC.findall(rule["expr"])} <= KNOWN

    @pytest.mark.skipif(not shutil.which("promtool"), reason="Debian has it in prometheus")
    def test_promtool_takes_them(self) -> None:
        """The rules are valid, and fire when they should in their own tests."""
        checked("promtool", "check", "rules", "kekkai-backup.rules.yml", cwd=EXAMPLES / "prometheus")
        checked("promtool", "test", "rules", "kekkai-backup.test.yml", cwd=EXAMPLES / "prometheus")


class TestGrafana:
    def test_every_panel_asks_for_metrics_that_there_are(self) -> None:
        """Of the data source that is chosen, and of the chosen instances."""
        asked = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
        assert {name for expression in asked for name in METRIC.findall(expression)} <= KNOWN
        assert all('{instance=~"$instance"}' in expression for expression in asked)
        assert {variable["name"] for variable in DASHBOARD["templating"]["list"]} == {"datasource", "instance"}

    def test_panels_do_not_lie_on_each_other(self) -> None:
        """Each has its own place on the grid of 24 columns."""
        taken: set[tuple[int, int]] = set()
        for panel in DASHBOARD["panels"]:
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert max(x for x, _ in cells) < 24
            assert not cells & taken, panel["title"]
            taken |= cells
        assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])

    @pytest.mark.skipif(not shutil.which("promtool"), reason="Debian has it in prometheus")
    def test_every_query_parses(self, tmp_path: Path) -> None:
        """Prometheus' own parser takes each expression."""
        asked = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
        rules = [{"record": f"panel:{number}", "expr": expression} for number, expression in enumerate(asked)]
        file = tmp_path / "queries.yml"
        file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
        checked("promtool", "check", "rules", file)
