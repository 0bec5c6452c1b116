"""The faults of a soak: a process is killed or frozen, a server goes away, the disk is full."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tests.soak.world import SERVICES

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from tests.soak.world import World

_BETWEEN_SECONDS: Final = (2.0, 9.0)
_BLOCK: Final = b"\0" * (1 << 20)


@dataclass(kw_only=True)
class Faults:
    """Makes faults until it is time.

    Arguments:
        world: what is hurt.
        chance: decides how and when.
        tell: called with each fault in words.
    """

    world: World
    chance: random.Random
    tell: Callable[[str], None]
    made: Counter[str] = field(default_factory=Counter)

    def make_until(self, deadline: float) -> None:
        """Make one fault after the other, and start the services again that have ended."""
        kinds: dict[Callable[[], None], int] = {
            self.kill: 8,
            self.freeze: 5,
            self.end_service: 2,
            self.kill_broker: 2,
            self.crash_server: 1,
            self.restart_server: 1,
            self.cut_store: 2,
            self.end_sessions: 2,
        }
        if self.world.has_own_disk:
            kinds[self.fill_disk] = 2
        while time.monotonic() < deadline:
            self._pause(self.chance.uniform(*_BETWEEN_SECONDS))
            kind = self.chance.choices(list(kinds), list(kinds.values()))[0]
            self.tell(kind.__name__)
            kind()
            self.made[kind.__name__] += 1

    def kill(self) -> None:
        """Kill any process of services and commands."""
        if pids := self.world.processes():
            with suppress(ProcessLookupError):
                os.kill(self.chance.choice(pids), signal.SIGKILL)

    def freeze(self) -> None:
        """Stop one of them for some seconds."""
        if pids := self.world.processes():
            pid = self.chance.choice(pids)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                self._pause(self.chance.uniform(1, 6))
                os.kill(pid, signal.SIGCONT)

    def end_service(self) -> None:
        """Ask a service to end."""
        self.world.service(self.chance.choice(SERVICES)).send_signal(signal.SIGTERM)

    def kill_broker(self) -> None:
        """Kill Redis, and start it again after a while."""
        self.world.broker.stop(signal.SIGKILL)
        self._pause(self.chance.uniform(0, 4))
        self.world.broker.start()

    def crash_server(self) -> None:
        """Have PostgreSQL crash, and come up again."""
        self.world.server.restart(crash=True)

    def restart_server(self) -> None:
        """Restart PostgreSQL in order."""
        self.world.server.restart()

    def end_sessions(self) -> None:
        """End every session of the server, as an administrator might."""
        with suppress(Exception), self.world.server.connect() as connection:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")

    def cut_store(self) -> None:
        """Have the S3 server go away for some seconds."""
        self.world.store.stop()
        self._pause(self.chance.uniform(1, 6))
        self.world.store.start()

    def fill_disk(self) -> None:
        """Fill the repository's disk for some seconds."""
        path = self.world.home / "repository" / ".filling"
        with path.open("wb", buffering=0) as file:
            try:
                while file.write(_BLOCK):
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
        self._pause(self.chance.uniform(1, 5))
        path.unlink()

    def _pause(self, seconds: float) -> None:
        """Wait, and start what has ended meanwhile."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.world.revive()
            time.sleep(min(left, 0.3))
