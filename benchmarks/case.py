"""What a comparison is, as data: a case, its contenders, and the ratios that are wanted.

A case is a data set, the contenders that work on it, and the ratios that are wanted. A contender is commands, with
these words in braces: `{data}` the data set, `{member}` a file from the middle of it, `{out}` an empty directory for
each run, `{kept}` one that lasts for the whole case, `{archive}` the archive in `{kept}`, `{tools}` the directory of
our scripts, and for a database `{pg_bin}`, `{host}`, `{port}`, `{name}`, `{user}` and `{password}`.
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
        name: as it stands in the table.
        run: what is measured.
        setup: commands once before the first round.
        prepare: commands before every run.
        check: commands after every run; each must succeed, or the run does not count.
        says_success: its standard output must be a JSON object whose `success` is true.
        output: the file or directory in `{out}` whose size is reported, as a pattern that matches once.
        needs: programs it cannot do without.
        data: what it works on, where that is not the data of the case.
        proof: what the program does about digests and syncing before it says that it is done.
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
        title: the heading of its table.
        data: what the contenders work on.
        contenders: the first is the one that the others are compared with.
        targets: what is wanted.
        watches_memory: sample the memory of each run; times are then a little longer than they are otherwise.
        keeps_outputs: what was written is removed when the case has ended, and not after each run.
        guard: the contender whose ratio to the first is watched from release to release; it is one that every
            machine has.
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
    """Return the wish that ours takes at most one part in `times` of a peer's time."""
    return Target(measure=Measure.TIME, subject=OURS, reference=peer, bound=Bound.AT_LEAST, wanted=times)


def at_most(peer: str, times: float, measure: Measure = Measure.TIME) -> Target:
    """Return the wish that ours takes at most `times` the time or the size of a peer's."""
    return Target(measure=measure, subject=OURS, reference=peer, bound=Bound.AT_MOST, wanted=times)


def repository_at(place: str) -> dict[str, str]:
    """Return the environment of our commands for a repository that only lasts for a run.

    What notes that there was one lies in it: the next run begins in an empty directory of the same name.
    """
    return {"BACKUP_LOCAL_PATH": place, "XDG_STATE_HOME": f"{place}/.state"}
