"""`backup.sh doctor`: checks everything that backups and restores need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tools.terminal.output import print_result, say

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from portal.ops.monitoring.doctor.run import Finding
    from portal.ops.settings.load import Settings


def add_arguments(_parser: argparse.ArgumentParser, _name: str) -> None:
    """Define no arguments."""


def run(_: argparse.Namespace) -> int:
    """Run all checks; exit code 0 if none found a fault."""
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


_MEANING = {True: ": fix each FAULT, then run this again", False: ": backups and restores have what they need"}


def _findings() -> Iterator[Finding]:
    """Check the settings first: without them nothing else can be checked."""
    from portal.ops.monitoring.doctor.run import Check, engine_checks, examine
    from portal.ops.runtime.environment import merged_environment
    from tools.commands.service_checks import service_checks

    settings: list[Settings] = []
    yield from examine([Check(name="settings", look=lambda: _look_at_settings(settings))])
    if settings:
        with engine_checks(settings[0], environ=merged_environment()) as checks:
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
    name = f"{finding.name:<{_NAME_WIDTH}}" if len(finding.name) <= _NAME_WIDTH else f"{finding.name}:"
    say(f"{_MARKS[finding.state.value]:<8} {name} {finding.what}")
    if finding.mend and finding.state.value != "ok":
        say(f"{'':<26} fix: {finding.mend}")


_NAME_WIDTH = 17
_MARKS: dict[str, Any] = {"ok": "ok", "warning": "warning", "fault": "FAULT"}


def _number(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"
