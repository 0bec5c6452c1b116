"""Shows what was found and what will be done, asks, and does it."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from portal.ops.units import printable
from tools.installer.learn import Learned, learn
from tools.installer.needs import PYTHON_HINT, missing_programs, missing_python
from tools.installer.plan import ROOT, Installation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tools.installer.plan import Step

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def main() -> int:
    """Install or uninstall; return the exit code: 0 done, 1 failed, 2 invalid usage, 3 not confirmed."""
    arguments = _parser().parse_args()
    if os.geteuid() != 0 and not arguments.dry_run:
        return _refuse("this needs root", f"sudo {ROOT}/tools/install.sh, or --dry-run to look at the plan")
    learned = Learned() if arguments.uninstall else learn(arguments.directory)
    for name, value in arguments.set:
        learned.values[name], learned.origins[name] = value, "command line"
    installation = Installation(root=arguments.root, units=arguments.units, learned=learned)
    if arguments.units == "service" and not arguments.uninstall and "CELERY_BROKER_URL" not in learned.values:
        return _refuse("the service needs a queue", "--set CELERY_BROKER_URL=redis://localhost:6379/5")
    if not arguments.uninstall:
        _show_settings(installation)
        if installation.lacks_environment() and (missing := missing_python()) and not arguments.dry_run:
            return _refuse(missing, PYTHON_HINT, code=1)
    steps = installation.removals() if arguments.uninstall else installation.steps()
    open_steps = _show(steps)
    if arguments.uninstall:
        _say("Archives stay where they are.")
    if not open_steps:
        _say("Nothing is to be done.")
        return 0
    if arguments.dry_run:
        _say("Dry run: nothing was changed.")
        return 0
    if not arguments.yes and not _agrees():
        _say("Not confirmed; nothing was changed.")
        return 3
    return _carry_out(open_steps, installation, is_removal=arguments.uninstall)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="install.sh")
    add = parser.add_argument
    add("--dry-run", action="store_true", help="show the plan, change nothing")
    add("--uninstall", action="store_true", help="remove what was installed; archives stay")
    add("--units", choices=("timer", "service"), default="timer", help="timers, or worker, beat and watcher")
    add("--from", dest="directory", type=Path, metavar="DIR", help="the directory of the portal's compose file")
    add("--set", action="append", default=[], metavar="NAME=VALUE", type=_pair, help="a setting; can be repeated")
    add("--yes", action="store_true", help="do not ask")
    add("--root", type=Path, default=Path("/"), metavar="DIR", help="install into another root file system")
    return parser


def _pair(text: str) -> tuple[str, str]:
    name, mark, value = text.partition("=")
    if not (mark and _NAME.fullmatch(name)):
        raise argparse.ArgumentTypeError(f"{name!r} is not NAME=VALUE")
    return name, value


def _show_settings(installation: Installation) -> None:
    _say("Settings that were found:")
    for line in installation.shown_settings():
        _say(f"  {line}")
    for note in installation.learned.notes:
        _say(f"note: {note}")
    if "DD_DATABASE_PASSWORD" not in installation.learned.values:
        _say("note: no database password was found; put it into the settings file")
    for note in missing_programs(is_environment_made=not installation.lacks_environment()):
        _say(f"note: {note}")
    _say("")


def _show(steps: Sequence[Step]) -> list[Step]:
    """Show the steps; return those not done yet."""
    open_steps = []
    for step in steps:
        is_done = step.is_done()
        _say(f"  {'done  ' if is_done else 'to do '} {step.what}")
        if not is_done:
            open_steps.append(step)
    return open_steps


def _agrees() -> bool:
    if not sys.stdin.isatty():
        _say("There is no terminal to ask on; --yes installs without asking.")
        return False
    sys.stderr.write("\nDo this? Type yes to continue: ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() == "yes"


def _carry_out(steps: Sequence[Step], installation: Installation, *, is_removal: bool) -> int:
    for step in steps:
        try:
            step.do()
        except (OSError, subprocess.CalledProcessError) as failure:
            error = str(failure)
            if isinstance(failure, subprocess.CalledProcessError):
                error = f"{failure.cmd[0]} ended with exit code {failure.returncode}"
            return _refuse(f"could not {step.what}: {error}", "Correct that, and start it again: it continues.", code=1)
    if is_removal:
        _say("Uninstalled.")
        return 0
    owner = installation.owner()
    _say("Installed. Next:")
    _say("  sudoedit /etc/kekkai-backup/backup.env           # look at the settings")
    _say(f"  sudo -u {_sudo_name(owner)} {ROOT}/tools/backup.sh doctor")
    _say(f"  sudo -u {_sudo_name(owner)} {ROOT}/tools/backup.sh full")
    _say(f"  sudo -u {_sudo_name(owner)} {ROOT}/tools/backup.sh verify latest --level dump")
    return 0


def _sudo_name(owner: str) -> str:
    return f"'#{owner}'" if owner.isdecimal() else owner


def _refuse(said: str, hint: str, code: int = 2) -> int:
    _say(f"install: {said}")
    _say(f"  hint: {hint}")
    return code


def _say(text: str) -> None:
    sys.stderr.write("".join(f"{printable(line, most=None)}\n" for line in text.split("\n")))
