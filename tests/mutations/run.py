"""`tools/test.sh --mutations`: mutates the modules that matter, one place at a time, and runs their tests.

The mutations are made in a copy of the project, which has an environment of its own, so that programs that the tests
start run the mutated code too. The sample is drawn by a seed: one mutation at each of so many places. Exit code 1 means
that fewer than 95 % were noticed; every mutation that was not is shown, to be judged.
"""

from __future__ import annotations

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final

from cosmic_ray.mutating import mutate_code, use_mutation  # type: ignore[import-not-found]
from cosmic_ray.testing import run_tests  # type: ignore[import-not-found]

from tests.mutations.positions import mutations
from tests.mutations.targets import TARGETS, Target

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.mutations.positions import Mutation

_ENOUGH: Final = 0.95
_SLOWER: Final = 3.0
_PATIENCE_SECONDS: Final = 30.0
"""A mutant may take three times as long as the code, and a moment more; then it counts as noticed."""


@dataclass(kw_only=True)
class Tally:
    """What became of the mutations of a target."""

    name: str
    killed: int = 0
    survivors: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """How many there were."""
        return self.killed + len(self.survivors)

    def __str__(self) -> str:
        return f"{self.name:<14}{self.killed:>5} of {self.total} noticed"


def main() -> int:
    """Run a sample; the exit code."""
    arguments = _parser().parse_args()
    chosen = [target for target in TARGETS if target.name in (arguments.targets or [target.name])]
    root = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="mutations-") as place:
        os.chmod(place, 0o755)  # noqa: S103  # the test's database server runs as another user
        _copy(root, Path(place))
        os.chdir(place)
        tallies = [_try(target, arguments.count, arguments.seed) for target in chosen]
    killed, total = sum(tally.killed for tally in tallies), sum(tally.total for tally in tallies)
    print("", *tallies, f"{'all':<14}{killed:>5} of {total} noticed", sep="\n")  # noqa: T201
    return 0 if killed >= _ENOUGH * total else 1


def _parser() -> argparse.ArgumentParser:
    names = [target.name for target in TARGETS]
    parser = argparse.ArgumentParser(prog="tools/test.sh --mutations", description="Do the tests notice changes?")
    parser.add_argument(
        "targets", nargs="*", choices=[*names, []], metavar="TARGET", help=f"which (all): {', '.join(names)}"
    )
    parser.add_argument("--count", type=int, default=1, help="mutations of each module (1)")
    parser.add_argument("--seed", type=int, default=1, help="another seed draws another sample (1)")
    return parser


def _copy(root: Path, place: Path) -> None:
    """Copy what Git knows; the copy's environment finds our packages in the copy, and all others where they are."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=root, capture_output=True, check=True
    )
    for name in listed.stdout.decode().split("\0"):
        target = place / name
        if name not in ("", ".venv") and (root / name).exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target, follow_symlinks=False)
    subprocess.run([root / ".venv/bin/python", "-m", "venv", "--without-pip", place / ".venv"], check=True)
    for programs in (root / ".venv/bin").iterdir():
        if not (place / ".venv/bin" / programs.name).exists():
            (place / ".venv/bin" / programs.name).symlink_to(programs)
    (packages,) = (root / ".venv/lib").glob("python3*/site-packages")
    (ours,) = (place / ".venv/lib").glob("python3*/site-packages")
    (ours / "mutations.pth").write_text(f"{place}\n{packages}\n")
    stamp = (root / ".venv/stamp").read_text().split("\n", 1)
    (place / ".venv/stamp").write_text(f"{place}\n{stamp[1]}")  # so that tools/*.sh take it for theirs


def _try(target: Target, count: int, seed: int) -> Tally:
    """Mutate each module of a target at so many places."""
    command = f".venv/bin/python -m pytest -x -q -n 0 -p no:cacheprovider {' '.join(target.tests)}"
    started = time.monotonic()
    outcome, output = run_tests(command, None)
    seconds = time.monotonic() - started
    if outcome.value != "survived":
        raise SystemExit(f"the tests of {target.name} fail without any mutation:\n{output}")
    _say(f"\n{target.name}: its tests take {seconds:.0f} s")
    tally = Tally(name=target.name)
    for module in map(Path, target.modules):
        for place, mutation in islice(_drawn(module, Random(f"{seed} {module}")), count):
            with use_mutation(module, mutation.operator, mutation.occurrence) as (before, after):
                outcome, _ = run_tests(command, _SLOWER * seconds + _PATIENCE_SECONDS)
            where = f"{module}:{place} {type(mutation.operator).__name__}"
            if outcome.value == "survived":
                tally.survivors.append(where)
                _say(f"SURVIVED  {where}\n{_change(before, after)}")
            else:
                tally.killed += 1
                _say(f"noticed   {where}")
    return tally


def _drawn(module: Path, chance: Random) -> Iterator[tuple[int, Mutation]]:
    """Mutations in a random order, one at each place, with their lines; without those that leave no program at all.

    Cosmic Ray cannot replace an exception that is named with its module: that is an AttributeError.
    """
    places = list(mutations(module).items())
    source = module.read_text()
    for ((line, _), _), found in chance.sample(places, len(places)):
        mutation = chance.choice(found)
        with suppress(SyntaxError, AttributeError):
            ast.parse(mutate_code(source, mutation.operator, mutation.occurrence))
            yield line, mutation


def _change(before: str, after: str) -> str:
    pairs = zip(before.splitlines(), after.splitlines(), strict=False)
    old, new = next(pair for pair in pairs if pair[0] != pair[1])
    return f"          - {old.strip()}\n          + {new.strip()}"


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
