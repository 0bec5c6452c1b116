"""`tools/test.sh --soak [minutes] [seed]`: runs a soak, and exits with 1 if anything reported is not there."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.soak.actors import Operator, Uploader
from tests.soak.faults import Faults
from tests.soak.judge import Judge, published
from tests.soak.world import world
from tests.support.waiting import wait_until
from tests.support.wal_services import Writer

if TYPE_CHECKING:
    from collections import Counter

    from tests.soak.world import World

_OPERATORS: Final = 2


def main() -> int:
    """Run a soak; return the exit code."""
    parser = argparse.ArgumentParser(prog="tools/test.sh --soak", description="The whole service under faults.")
    parser.add_argument("minutes", nargs="?", type=float, default=5.0, help="how long faults are made (default: 5)")
    parser.add_argument("seed", nargs="?", type=int, default=random.randrange(1 << 31), help="chooses the faults")
    parser.add_argument("--logs", type=Path, help="a new directory to keep the services' logs in")
    given = parser.parse_args()
    _tell(f"seed {given.seed}, {given.minutes:g} minutes of faults")
    with world() as made:
        problems = _soak(made, given.minutes * 60, given.seed)
        if given.logs:
            given.logs.mkdir(parents=True)
            for log in made.home.glob("*.log"):
                shutil.copy(log, given.logs)
    for problem in problems:
        _tell(f"PROBLEM: {problem}")
    _tell(f"{len(problems)} problems")
    return 1 if problems else 0


def _soak(made: World, seconds: float, seed: int) -> list[str]:
    """Let a world be used and hurt; return what is wrong with it afterwards."""
    chance = random.Random(seed)
    writer = Writer(made.portal)
    uploader = Uploader(place=made.uploads, chance=random.Random(seed + 1))
    operators = [Operator(world=made, chance=random.Random(seed + 2 + number)) for number in range(_OPERATORS)]
    faults = Faults(world=made, chance=chance, tell=_tell)
    made.revive()
    wait_until(lambda: made.portal.look().window is not None, seconds=120)
    with ExitStack() as using:
        using.enter_context(writer.writing())
        using.enter_context(uploader.uploading())
        for operator in operators:
            using.enter_context(operator.typing())
        faults.make_until(time.monotonic() + seconds)
        _tell("the faults have ended")
        made.revive()
    ended = datetime.now(UTC)
    typed = [one for operator in operators for one in operator.typed]
    reported = {name: digest for operator in operators for name, digest in operator.reported().items()}
    judge = Judge(made, reported, chance)
    judge.problems += [f"{' '.join(one.words)} ended with {one.code}: {one.said}" for one in typed if one.is_wrong]
    judge.problems += [f"{words} did not end" for operator in operators for words in operator.late]
    judge.calm()
    judge.moments(writer, ended)
    judge.end()
    judge.logs()
    judge.archives()
    judge.left()
    for failure in (failure for operator in operators for failure in operator.failures()):
        _tell(f"failed: {failure}")
    _tell(f"faults: {_listed(faults.made)}")
    _tell(f"{len(typed)} commands")
    _tell(f"{len(reported)} archives reported by commands, {len(published(made))} by services")
    _tell(f"{len(writer.rows)} rows, uploads {_listed(uploader.done)}; {judge.recovered} moments recovered")
    return judge.problems


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"


def _tell(text: str) -> None:
    sys.stdout.write(f"{datetime.now(UTC):%H:%M:%S}  {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
