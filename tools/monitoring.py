"""The commands that say how it stands: doctor, status, report."""

from __future__ import annotations

import gc
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from portal.ops.errors import ConfigurationError
from tools.terminal import print_result, say

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from portal.ops.monitoring.doctor.run import Finding
    from portal.ops.settings.load import Settings


_REPORT: Final = "kekkai-backup-report.html"
_STANDARD_OUTPUT: Final = "-"


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add them to the commands of `backup.sh`."""
    status = commands.add_parser("status", help="how it stands with the backups; exit code 1 where a target is missed")
    status.add_argument("--json", action="store_true", help="say nothing to people: only the JSON of standard output")
    status.set_defaults(run=_status)
    report = commands.add_parser("report", help="write a page that shows what became of the backups")
    report.add_argument(
        "--output",
        metavar="FILE",
        help=f"file to write, or - for standard output (default: {_REPORT} in this directory, or in the repository if "
        "this directory is not writable)",
    )
    report.set_defaults(run=_report)
    commands.add_parser("doctor", help="check everything that a backup and a restore need").set_defaults(run=_doctor)


def _status(arguments: argparse.Namespace) -> int:
    """Exit code 1 where a target is missed, so that any monitor can use it."""
    from portal.ops.monitoring.facts import read_status
    from portal.ops.monitoring.observer import Aftermath
    from portal.ops.monitoring.text import status_lines
    from portal.ops.runtime.environment import current_settings
    from portal.ops.runtime.progress import utc_now
    from tools.terminal import watched_log

    gc.disable()  # there may be very many archives, and none of what is made for them is garbage
    settings = current_settings()
    watched_log(settings.log_format)
    status = read_status(settings, utc_now())
    Aftermath(settings).refresh(status)
    if not arguments.json:
        for line in status_lines(status):
            say(line)
    print_result(status.to_dict())
    return 0 if status.ok else 1


def _report(arguments: argparse.Namespace) -> int:
    """Write the report, whole or not at all."""
    from portal.ops.runtime.environment import current_settings
    from portal.ops.runtime.progress import utc_now
    from tools.report.page import page
    from tools.report.story import read_story

    settings = current_settings()
    data = page(read_story(settings, utc_now())).encode("utf-8", "replace")
    if arguments.output == _STANDARD_OUTPUT:
        sys.stdout.buffer.write(data)
        return 0
    here = os.getcwd() if os.access(os.curdir, os.W_OK) else settings.local_path
    path = os.path.abspath(arguments.output or os.path.join(here, _REPORT))
    _write(path, data)
    say(f"the report is {path}; it needs nothing else, and any browser shows it")
    print_result({"success": True, "path": path, "size_bytes": os.path.getsize(path)})
    return 0


def _write(path: str, data: bytes) -> None:
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "xb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(data)
        os.replace(temporary, path)
    except OSError as error:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise ConfigurationError(
            f"cannot write {path}: {error.strerror}", hint="Give another place with --output FILE."
        ) from error


def _doctor(_: argparse.Namespace) -> int:
    """Exit code 0 where no check found a fault."""
    from portal.ops.monitoring.doctor.run import State

    findings = []
    for finding in _findings():
        findings.append(finding)
        _say_finding(finding)
    counts = {state.value: sum(finding.state is state for finding in findings) for state in State}
    faults = counts[State.FAULT.value]
    say(f"\n{_number(faults, 'fault')}, {_number(counts[State.WARNING.value], 'warning')}" + _MEANING[faults > 0])
    print_result({"success": not faults, "counts": counts, "findings": [finding.to_dict() for finding in findings]})
    return 1 if faults else 0


_MEANING = {True: ": mend what is at FAULT, then run this again", False: ": backups and restores have what they need"}


def _findings() -> Iterator[Finding]:
    """Settings first: without them nothing else can be looked at."""
    from portal.ops.monitoring.doctor.run import Check, engine_checks, examine
    from tools.services import service_checks

    settings: list[Settings] = []
    yield from examine([Check(name="settings", look=lambda: _look_at_settings(settings))])
    if settings:
        with engine_checks(settings[0], environ=os.environ) as checks:
            yield from examine([*checks, *service_checks(settings[0])])


def _look_at_settings(read: list[Settings]) -> Finding:
    from portal.ops.monitoring.doctor.run import ok, warning
    from portal.ops.runtime.environment import current_settings, merged_environment
    from portal.ops.settings.load import refuse_unbuilt, unknown_settings

    settings = current_settings()
    read.append(settings)
    refuse_unbuilt(settings.unbuilt)
    strangers = unknown_settings(merged_environment())
    if strangers:
        return warning("; ".join(strangers), "Correct the name where it is set; docs/settings.md has every name.")
    return ok("every variable that is set can be used")


def _say_finding(finding: Finding) -> None:
    say(f"{_MARKS[finding.state.value]:<8} {finding.name:<16} {finding.what}")
    if finding.mend and finding.state.value != "ok":
        say(f"{'':<25} mend: {finding.mend}")


_MARKS: dict[str, Any] = {"ok": "ok", "warning": "warning", "fault": "FAULT"}


def _number(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"
