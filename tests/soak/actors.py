"""Those who use the portal and its backups during a soak: somebody who uploads, and operators who type commands."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tests.soak.world import PLAYGROUND
from tests.support.waiting import in_thread

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

    from tests.soak.world import World

_COMMAND_SECONDS: Final = 240.0
_EXPECTED: Final = frozenset({0, 1, 5, 6})
"""Done; failed, for a fault was made; busy; not done yet. A usage error or damage is never right here."""

_RESTORE: Final = ("--database-only", "--force", "--create-database", "--target-database", PLAYGROUND)
_COMMANDS: Final = (
    ("backup", "full"),
    ("backup", "database"),
    ("backup", "media"),
    ("backup", "media", "--incremental"),
    ("backup", "base"),
    ("backup", "verify", "latest"),
    ("backup", "list"),
    ("backup", "status"),
    ("backup", "prune"),
    ("backup", "drill"),
    ("backup", "offsite", "copy"),
    ("backup", "offsite", "list"),
    ("backup", "timeline"),
    ("backup", "audit", "--verify"),
    ("restore", "latest", "--dry-run"),
    ("restore", "latest", *_RESTORE),
    ("restore", "--at", "latest", *_RESTORE),
    ("restore", "--rollback", "--force"),
)
_MISSES: Final = frozenset({("backup", "status")})
"""Commands whose exit code 1 is an answer, not a failure."""


@dataclass(kw_only=True)
class Uploader:
    """Writes, replaces, renames and removes uploads, as portals do, but faster.

    Arguments:
        place: the uploads.
        chance: decides what is done.
    """

    place: Path
    chance: random.Random
    done: Counter[str] = field(default_factory=Counter)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def uploading(self) -> Iterator[None]:
        """Upload until the context is left."""
        with in_thread(self._upload, self._stop):
            yield

    def _upload(self) -> None:
        number = 0
        while not self._stop.wait(self.chance.uniform(0.02, 0.3)):
            number += 1
            tenant = self.place / f"tenant-{self.chance.randrange(6)}" / f"{self.chance.randrange(3)}"
            tenant.mkdir(parents=True, exist_ok=True)
            present = sorted(path for path in tenant.iterdir() if path.is_file())
            kind = self.chance.choices(["new", "replaced", "renamed", "removed", "moved"], [12, 3, 2, 2, 1])[0]
            if kind == "new" or not present:
                kind = "new"
                (tenant / f"upload {number}.json").write_bytes(self._content(number))
            elif kind == "replaced":
                self.chance.choice(present).write_bytes(self._content(number))
            elif kind == "renamed":
                self.chance.choice(present).rename(tenant / f"renamed-{number}.json")
            elif kind == "removed":
                self.chance.choice(present).unlink()
            else:  # a whole directory goes elsewhere
                shutil.move(tenant, self.place / f"moved-{number}")
            self.done[kind] += 1

    def _content(self, number: int) -> bytes:
        return json.dumps({"number": number, "data": self.chance.randbytes(self.chance.randrange(4000)).hex()}).encode()


@dataclass(frozen=True, kw_only=True)
class Typed:
    """A command that has ended.

    Arguments:
        words: the command.
        code: its exit code; negative for a signal.
        result: what it printed.
        said: the end of its standard error.
    """

    words: tuple[str, ...]
    code: int
    result: dict[str, Any]
    said: str

    @property
    def error(self) -> str:
        """Its error on one line."""
        return str(self.result.get("error") or self.said[-300:]).replace("\n", " ")

    @property
    def is_wrong(self) -> bool:
        """Whether that must not happen, whatever fault was made: killed commands may end as they like."""
        return self.code >= 0 and (self.code not in _EXPECTED or "Traceback" in self.said)


@dataclass(kw_only=True)
class Operator:
    """Types one command after the other.

    Arguments:
        world: where.
        chance: decides which.
    """

    world: World
    chance: random.Random
    typed: list[Typed] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def typing(self) -> Iterator[None]:
        """Type until the context is left; the last command comes to its end."""
        with in_thread(self._type, self._stop):
            yield

    def _type(self) -> None:
        while not self._stop.wait(self.chance.uniform(0.5, 4)):
            words = self.chance.choice(_COMMANDS)
            self.do(words, local=self.chance.random() < 0.25)

    def do(self, words: tuple[str, ...], *, local: bool = False) -> Typed | None:
        """Type a command and wait; None if it did not end in time."""
        tool, *arguments = words
        process = self.world.run(tool, *arguments, "--json", local=local)
        try:
            out, err = process.communicate(timeout=_COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            self.late.append(" ".join(words))
            return None
        result: dict[str, Any] = {}
        with suppress(ValueError):
            found = json.loads(out)
            result = found if isinstance(found, dict) else {}
        self.typed.append(Typed(words=words, code=process.returncode, result=result, said=err[-3000:]))
        return self.typed[-1]

    def reported(self) -> dict[str, str]:
        """The digest of each archive that was reported as complete, by its id."""
        return {
            one.result["backup_id"]: one.result["checksum"]
            for one in self.typed
            if one.words[0] == "backup" and one.code == 0 and one.result.get("success") and one.result.get("checksum")
        }

    def failures(self) -> list[str]:
        """Each command that failed, with its error; a person may judge whether that is true and helps."""
        return [
            f"{' '.join(one.words[:2])}: exit code {one.code}, {one.error}"
            for one in self.typed
            if one.code not in (0, *([1] if one.words in _MISSES else []))
        ]
