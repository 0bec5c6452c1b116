"""`tools/test.sh --speed`: compares speed and size with the last release, relative to reference programs.

Seconds differ from machine to machine, and from hour to hour on one machine. So each case is measured in turns with a
reference program that every machine has, and the ratios are compared. `release.json` has the ratios of the last
release. A ratio that is more than a tenth worse is measured again, since another process may have interfered; only a
loss in both counts.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.case import OURS
from benchmarks.cases import all_cases
from benchmarks.machine import machine_line, versions_line
from benchmarks.outcome import Measure, ratio
from benchmarks.place import alone_in, default_directory, own_directory
from benchmarks.rounds import TOOLS, Workshop, play
from benchmarks.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from benchmarks.case import Case

RELEASE: Final = Path(__file__).with_name("release.json")
TOLERANCE: Final = 1.1
_MEASURES: Final = (Measure.TIME, Measure.SIZE)


@dataclass(frozen=True, kw_only=True)
class Release:
    """The ratios of one release.

    Arguments:
        version: the release.
        measured_on: the machine and the versions of the programs.
        ratios: by the name of a case, a colon and the measure: ours divided by the reference program's.
    """

    version: str
    measured_on: str
    ratios: Mapping[str, float]


def main() -> int:
    """Measure and compare; return 1 after a loss. With `--record`, save the ratios of a release."""
    parser = argparse.ArgumentParser(prog="tools/test.sh --speed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often each program runs (default: 5)")
    parser.add_argument("--record", action="store_true", help="write the ratios down as those of this release")
    parser.add_argument(
        "--tools", type=Path, default=TOOLS, help="the commands of another checkout, such as the release's own"
    )
    parser.add_argument("--work-dir", type=Path, default=default_directory(), help="where data and archives go")
    arguments = parser.parse_args()
    directory = own_directory(arguments.work_dir)
    with alone_in(directory):
        workshop = Workshop(directory=directory, rounds=arguments.rounds, tell=_tell, tools=arguments.tools.resolve())
        cases = guarded_cases()
        if arguments.record:
            measured_on = f"{machine_line()}; {versions_line()}"
            release = Release(
                version=_version_of(workshop.tools), measured_on=measured_on, ratios=measure(cases, workshop)
            )
            RELEASE.write_text(json.dumps(asdict(release), indent=2) + "\n")
            return 0
        release = read_release(RELEASE)
        measured = measure(cases, workshop)
        if again := {name.partition(":")[0] for name in losses(release.ratios, measured)}:
            _tell(f"once more: {', '.join(sorted(again))}")
            second = measure([case for case in cases if case.name in again], workshop)
            measured |= {name: min(value, measured[name]) for name, value in second.items()}
    sys.stdout.write(comparison(release, measured).text())
    return int(bool(losses(release.ratios, measured)))


def read_release(path: Path) -> Release:
    """Read the recorded ratios.

    Raises:
        SystemExit: there are none, so nothing could be compared.
    """
    release = Release(**json.loads(path.read_text()))
    if not release.ratios:
        raise SystemExit(f"{path} has no ratios; record them with --record")
    return release


def guarded_cases() -> list[Case]:
    """Return the cases with a reference program, with ours and that one alone."""
    return [case.only((OURS, case.guard)) for case in all_cases() if case.guard]


def measure(cases: Iterable[Case], workshop: Workshop) -> dict[str, float]:
    """Return ratios of ours to the reference program, by case and measure.

    Raises:
        SystemExit: a program failed or is not installed, so nothing was compared.
    """
    found: dict[str, float] = {}
    for case in cases:
        outcomes = play(case, workshop)
        if trouble := [f"{each.name}: {each.trouble}" for each in outcomes.values() if each.trouble]:
            raise SystemExit(f"{case.name} cannot be compared: {'; '.join(trouble)}")
        for kind in _MEASURES:
            value = ratio(outcomes[OURS].median(kind), outcomes[case.guard].median(kind))
            if value is not None:
                found[f"{case.name}:{kind.value}"] = round(value, 3)
    return found


def losses(before: Mapping[str, float], now: Mapping[str, float]) -> list[str]:
    """Return ratios that are more than a tenth worse than before, or missing."""
    return [name for name, value in before.items() if now.get(name, float("inf")) > TOLERANCE * value]


def comparison(release: Release, now: Mapping[str, float]) -> Table:
    """Return both sets of ratios next to each other, including new ones."""
    lost = losses(release.ratios, now)
    rows = []
    for name in dict.fromkeys((*release.ratios, *now)):
        before, after = (f"{ratios[name]:.2f}" if name in ratios else "-" for ratios in (release.ratios, now))
        verdict = "LOST" if name in lost else "ok" if name in release.ratios else "not recorded"
        rows.append((name, before, after, verdict))
    header = ("ours / reference program", f"release {release.version}", "now", "")
    return Table(title="speed and size against the last release", header=header, rows=tuple(rows))


def _version_of(tools: Path) -> str:
    """Return the release to which a directory of commands belongs."""
    project = tomllib.loads((tools.parent / "pyproject.toml").read_text())["project"]
    return str(project["version"])


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main())
