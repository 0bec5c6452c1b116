"""`tools/benchmark.sh`: parses arguments, runs the cases, prints the tables."""

from __future__ import annotations

import argparse
import sys
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.cases import all_cases
from benchmarks.machine import machine_line, peers_table, versions_line
from benchmarks.place import alone_in, default_directory, own_directory
from benchmarks.queue import NAME, play_queue
from benchmarks.report import Outcomes, results_table, summary_table, targets_table
from benchmarks.rounds import Workshop, play

if TYPE_CHECKING:
    from benchmarks.case import Case
    from benchmarks.table import Table

DESCRIPTION = "Measures this project beside the programs that people use instead: tar, restic, borg, pg_dump."
EPILOG = """
Programs are run whole, one after the other and round by round, with the data in the page cache; the tables show medians
and, in parentheses, the ends. What is not installed is named with the package that has it. The exit code is 1 if any
command failed, whatever the figures are.
"""


def main() -> int:
    """Run the benchmark and return its exit code."""
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.dump is None and all(name.endswith("dump") for name in arguments.only):
        parser.error(f"--only {','.join(arguments.only)} needs --dump FILE")
    directory = own_directory(arguments.work_dir)
    with alone_in(directory):
        workshop = Workshop(directory=directory, rounds=arguments.rounds, tell=_tell)
        scale = f"{arguments.scale:g} times the data"
        _print(f"{machine_line()}\n{versions_line()}\n{date.today()}, medians of {workshop.rounds} rounds, {scale}\n")
        cases = [
            case for case in all_cases(arguments.scale, arguments.dump, arguments.pg_bin) if case.name in arguments.only
        ]
        played = [_play(case, workshop, arguments) for case in cases]
        if NAME in arguments.only:
            _show(play_queue(workshop), arguments)
    if played and arguments.markdown:
        _show(summary_table([(case, each) for case, each in played if not case.watches_memory]), arguments)
        _show(peers_table(), arguments)
    if played:
        _show(targets_table(played), arguments)
    return int(any(outcome.failed for _, outcomes in played for outcome in outcomes.values()))


def _parser() -> argparse.ArgumentParser:
    names = _all_names()
    parser = argparse.ArgumentParser(prog="tools/benchmark.sh", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--rounds", type=_count, default=5, help="how often each program runs (default: 5)")
    parser.add_argument(
        "--only", type=_case_names, default=names, metavar="NAME,...", help=f"some of the cases: {', '.join(names)}"
    )
    parser.add_argument("--scale", type=_factor, default=1.0, help="how much of the data (default: 1.0)")
    parser.add_argument(
        "--work-dir",
        type=Path,
        default=default_directory(),
        help="where data and archives go; needs about 18 GB at full scale (default: %(default)s)",
    )
    parser.add_argument(
        "--dump", type=Path, metavar="FILE", help="also measure the database of this file of `pg_dump -Fc`: your own"
    )
    parser.add_argument(
        "--pg-bin",
        type=lambda given: Path(given).absolute(),
        metavar="DIR",
        help="the programs of the PostgreSQL to use (default: the embedded 17)",
    )
    parser.add_argument("--markdown", action="store_true", help="print the README's tables: all cases in one")
    return parser


def _all_names() -> list[str]:
    return [*(case.name for case in all_cases(dump=Path())), NAME]


def _case_names(text: str) -> list[str]:
    known = _all_names()
    names = text.split(",")
    if unknown := [name for name in names if name not in known]:
        raise argparse.ArgumentTypeError(f"no such case: {', '.join(unknown)}; there are {', '.join(known)}")
    return names


def _count(text: str) -> int:
    if not text.isdecimal() or (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 1")
    return value


def _factor(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _play(case: Case, workshop: Workshop, arguments: argparse.Namespace) -> tuple[Case, Outcomes]:
    outcomes = play(case, workshop)
    if case.watches_memory or not arguments.markdown:
        _show(results_table(case, outcomes), arguments)
    return case, outcomes


def _show(table: Table, arguments: argparse.Namespace) -> None:
    _print(table.markdown() if arguments.markdown else table.text())


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main())
