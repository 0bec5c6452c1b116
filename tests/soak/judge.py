"""After a soak: is everything there that was ever reported, and is it what it should be?"""

from __future__ import annotations

import json
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from portal.ops.repository.access_entry import Action
from portal.ops.repository.access_log import AccessLog
from portal.ops.repository.sidecar import file_digest
from tests.soak.actors import Operator
from tests.soak.world import SERVICES
from tests.support.wal_services import numbers_at

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Mapping
    from datetime import datetime
    from pathlib import Path

    from tests.soak.world import World
    from tests.support.wal_services import Writer

MOMENTS: Final = 5
_CALM_SECONDS: Final = 180.0
_LINE_CHARACTERS: Final = 400
_EXPECTED: Final = "Couldn't ack"
"""How kombu says that a task was done while the broker was away; it is delivered again, and found done."""


def logged(world: World) -> Iterator[tuple[str, dict[str, Any] | None, str]]:
    """Every line that the services have written: the service, its event if it is one, and the line."""
    for module in SERVICES:
        for line in (world.home / f"{module}.log").read_text(errors="replace").splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                event = None
            yield module, event if isinstance(event, dict) else None, line


def published(world: World) -> set[str]:
    """The ids of the archives that services have reported."""
    return {
        str(event["backup_id"])
        for _, event, _ in logged(world)
        if event and event.get("event") == "archive_published" and "backup_id" in event
    }


def lost(reported: Mapping[str, str | None], present: Mapping[str, Path], removed: set[str]) -> list[str]:
    """What was reported and is not there as it was.

    Arguments:
        reported: the digest of each archive by its id, where it was told.
        present: the archives that are there.
        removed: the ids of those that a prune has removed.
    """
    problems = []
    for name, digest in sorted(reported.items()):
        if name not in present:
            problems += [] if name in removed else [f"{name} was reported, and is not there"]
        elif digest is not None and file_digest(present[name]) != digest:
            problems.append(f"{name} has another digest than reported")
    return problems


class Judge:
    """Looks at a world whose faults have ended, and collects what is wrong.

    Arguments:
        world: the world, with its services.
        reported: the digest of each archive that a command reported, by its id.
        chance: chooses the moments.
    """

    def __init__(self, world: World, reported: Mapping[str, str], chance: random.Random) -> None:
        self._world = world
        self._reported = reported
        self._chance = chance
        self._operator = Operator(world=world, chance=chance)
        self.problems: list[str] = []
        self.recovered = 0

    def calm(self) -> None:
        """The service comes to rest by itself: every upload is backed up, every target is met, every copy made."""
        self._expect_soon("the uploads are backed up", ("backup", "media", "--incremental"), {"unchanged": True})
        self._expect_soon("copies are made", ("backup", "offsite", "copy"), {})
        self._expect_soon("a base backup is made", ("backup", "base"), {})
        self._expect_soon("every target is met", ("backup", "status"), {})
        self._expect("the doctor finds nothing", ("backup", "doctor"))

    def end(self) -> None:
        """The services end when they are asked to, and nothing of them stays."""
        self.problems += [f"{module} did not end" for module in self._world.end_services()]
        if left := self._world.processes():
            self.problems.append(f"{len(left)} processes stayed when the services had ended")

    def logs(self) -> None:
        """The services have logged events, and nothing that they did not expect."""
        for module, event, line in logged(self._world):
            is_expected = event is not None and str(event.get("event")).startswith(_EXPECTED)
            if event is None or (event.get("level") == "critical" and not is_expected):
                self.problems.append(f"log of {module}: {line[:_LINE_CHARACTERS]}")

    def archives(self) -> None:
        """Each reported archive is there with its digest, or a prune has removed it; and all are intact."""
        repository = self._world.repository
        removed = {
            name
            for entry in AccessLog(repository).entries()
            if entry.action is Action.PRUNE
            for name in entry.details.get("archives", ())
        }
        present = {archive.name: archive.path for archive in repository.archives()}
        untold: dict[str, str | None] = dict.fromkeys(published(self._world))
        self.problems += lost({**untold, **self._reported}, present, removed)
        for name in sorted(present):
            self._expect(f"{name} is intact", ("backup", "verify", name, "--level", "dump"))
        self._expect("the access log is intact", ("backup", "audit", "--verify"))
        self._expect("the copies are intact", ("backup", "offsite", "verify", "--level", "dump"))
        self._expect("a drill succeeds", ("backup", "drill"))

    def moments(self, writer: Writer, ended: datetime) -> None:
        """Random moments of the window have exactly the rows committed by then.

        Arguments:
            ended: when the writer had ended.
        """
        portal = self._world.portal
        window = portal.look().window
        if window is None or window.end < ended:
            self.problems.append(f"the recovery window does not reach {ended}: {window}")
            return
        self.problems += [f"the recovery window has a gap: {gap}" for gap in window.gaps]
        span = (ended - window.start).total_seconds()
        for _ in range(MOMENTS):
            moment = window.start + timedelta(seconds=self._chance.uniform(0, span))
            found = numbers_at(portal, moment)
            if not writer.must_have(moment) <= found <= writer.may_have(moment):
                missing, more = writer.must_have(moment) - found, found - writer.may_have(moment)
                self.problems.append(f"at {moment}, {len(missing)} rows are missing and {len(more)} too many")
            self.recovered += 1

    def left(self) -> None:
        """No work of a killed process stays when the next command has run."""
        self._world.repository.sweep()
        strays = [path.name for path in self._world.repository.path.glob("*.partial")]
        with self._world.server.connect() as connection:
            strays += [
                name
                for (name,) in connection.execute("SELECT datname FROM pg_database WHERE NOT datistemplate")
                if "drill" in name or "scratch" in name
            ]
        self.problems += [f"{name} was left" for name in strays]

    def _expect(self, what: str, words: tuple[str, ...]) -> None:
        typed = self._operator.do(words, local=True)
        if typed is None or typed.code != 0:
            said = typed.said.strip()[-_LINE_CHARACTERS:] if typed else "no end"
            self.problems.append(f"not so: {what}; {' '.join(words)}: {typed.code if typed else ''} {said}")

    def _expect_soon(self, what: str, words: tuple[str, ...], wanted: dict[str, Any]) -> None:
        """A command succeeds within the time that the service needs to recover."""
        deadline = time.monotonic() + _CALM_SECONDS
        while True:
            self._world.revive()
            typed = self._operator.do(words)
            if typed and typed.code == 0 and typed.result.items() >= wanted.items():
                return
            if time.monotonic() > deadline:
                said = typed.said.strip()[-_LINE_CHARACTERS:] if typed else "no end"
                self.problems.append(f"not within {_CALM_SECONDS:.0f} s: {what}; {' '.join(words)}: {said}")
                return
            time.sleep(1)
