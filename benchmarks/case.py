"""A comparison as data: the case, its contenders, and the targets.

A case is a data set, the contenders that process it, and the targets. A contender consists of commands with these
placeholders: `{data}` the data set, `{member}` a file from the middle of it, `{out}` an empty directory for each run,
`{kept}` a directory that lasts for the whole case, `{archive}` the archive in `{kept}`, `{tools}` the directory of our
scripts, and for a database `{pg_bin}`, `{host}`, `{port}`, `{name}`, `{user}` and `{password}`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from benchmarks.data import CopiedSet, DataSet
from benchmarks.database import Database
from benchmarks.outcome import Bound, Measure, Target

if TYPE_CHECKING:
    from collections.abc import Collection

    from benchmarks.measure import Command

OURS = "ours"
SYNCED = "SHA-256 of each file and of the archive; synced"
Data = DataSet | CopiedSet | Database


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to do the work of a case.

    Arguments:
        name: the name in the table.
        run: the measured commands.
        setup: commands before the first round.
        prepare: commands before every run.
        check: commands after every run; each must succeed, or the run does not count.
        says_success: its standard output must be a JSON object with a true `success`.
        output: the file or directory in `{out}` whose size is reported, as a pattern with exactly one match.
        needs: the programs that it needs.
        data: its data, if not that of the case.
        proof: what the program does about digests and syncing before it reports success.
    """

    name: str
    run: Command
    setup: tuple[Command, ...] = ()
    prepare: tuple[Command, ...] = ()
    check: tuple[Command, ...] = ()
    says_success: bool = False
    output: str | None = None
    needs: tuple[str, ...] = ()
    data: Data | None = None
    proof: str = ""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A comparison.

    Arguments:
        name: the word for `--only`.
        title: the heading of the table.
        data: the data of the contenders.
        contenders: the first one is compared with the others.
        targets: what is wanted.
        watches_memory: sample the memory of each run, which makes it slightly slower.
        keeps_outputs: remove output when the case ends, and not after each run.
        guard: the contender whose ratio to the first is compared from release to release; every machine must have it.
    """

    name: str
    title: str
    data: Data
    contenders: tuple[Contender, ...]
    targets: tuple[Target, ...] = ()
    watches_memory: bool = False
    keeps_outputs: bool = False
    guard: str = ""

    def only(self, names: Collection[str]) -> Case:
        """Return the case with these contenders and without targets."""
        kept = tuple(contender for contender in self.contenders if contender.name in names)
        return replace(self, contenders=kept, targets=())


def faster(peer: str, times: float) -> Target:
    """Return the target that ours takes at most 1/`times` of a peer's time."""
    return Target(measure=Measure.TIME, subject=OURS, reference=peer, bound=Bound.AT_LEAST, wanted=times)


def at_most(peer: str, times: float, measure: Measure = Measure.TIME) -> Target:
    """Return the target that ours takes at most `times` as much time or space as a peer."""
    return Target(measure=measure, subject=OURS, reference=peer, bound=Bound.AT_MOST, wanted=times)


def repository_at(place: str) -> dict[str, str]:
    """Return the environment of our commands for a repository that lasts for one run.

    The state directory is inside it, since the next run starts with an empty directory of the same name.
    """
    return {"BACKUP_LOCAL_PATH": place, "XDG_STATE_HOME": f"{place}/.state"}
