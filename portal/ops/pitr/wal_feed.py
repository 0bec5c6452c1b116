"""Gives a scratch server the WAL files that it asks for.

The server runs a shell command for each file (`restore_command`), as a user who may not read the repository. The
command writes the name to one pipe and reads the answer from another; in between, this process places the file where
the command can move it from. The next segments are decompressed in advance.

The server gets the WAL as it was at the start: the segment being received is copied first.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self

from portal.ops.errors import OpsError
from portal.ops.pitr.lsn import Segment, parse_history_name
from portal.ops.runtime.logs import engine_log

if TYPE_CHECKING:
    from concurrent.futures import Future
    from pathlib import Path

    from portal.ops.pitr.scratch import Owner
    from portal.ops.pitr.wal_archive import WalArchive

log = engine_log("portal.ops.pitr.wal_feed")

_AHEAD: Final = 4
_SCRIPT: Final = """\
# restore_command: asks for a file of WAL by its name, and moves it to where the server wants it
echo "$1" >'{directory}/request' || exit 1
read -r answer <'{directory}/reply' || exit 1
[ "$answer" = yes ] && mv -- "{directory}/wal/$1" "$2"
"""


class WalFeed:
    """Answers one scratch server; a context manager.

    Arguments:
        archive: the WAL archive.
        directory: the directory of the scratch server.
        owner: the user who needs the files.
    """

    def __init__(self, archive: WalArchive, directory: Path, owner: Owner | None) -> None:
        self._archive = archive
        self._directory = directory
        self._owner = owner
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="wal-feed")
        self._ready: dict[str, Future[bool]] = {}
        self._given: set[str] = set()
        self._stored: frozenset[str] = frozenset()
        self._thread = threading.Thread(target=self._serve, name="wal-feed", daemon=True)
        self._pipes: list[int] = []
        self.idle_requests = 0
        self.failure: OpsError | OSError | None = None

    @property
    def command(self) -> str:
        """The server's `restore_command`."""
        return f'/bin/sh "{self._directory}/fetch.sh" "%f" "%p"'

    @property
    def given(self) -> int:
        """The number of segments given to the server."""
        return len(self._given)

    def __enter__(self) -> Self:
        staging, frozen = self._directory / "wal", self._directory / "frozen"
        staging.mkdir(mode=0o700)
        frozen.mkdir(mode=0o700)
        self._stored = frozenset(self._archive.freeze(frozen))
        (self._directory / "fetch.sh").write_text(_SCRIPT.format(directory=self._directory))
        made = [staging, self._directory / "fetch.sh"]
        for name in ("request", "reply"):
            pipe = self._directory / name
            os.mkfifo(pipe, 0o600)
            self._pipes.append(os.open(pipe, os.O_RDWR))
            made.append(pipe)
        for path in made:
            self._give(path)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            os.write(self._pipes[0], b"\n")  # an empty name ends the thread
        self._thread.join()
        self._pool.shutdown(cancel_futures=True)
        for pipe in self._pipes:
            os.close(pipe)

    def _serve(self) -> None:
        with open(self._pipes[0], "rb", buffering=0, closefd=False) as requests:
            rest = b""
            while True:
                rest += requests.read(4096) or b""
                *lines, rest = rest.split(b"\n")
                for line in lines:
                    if not line:
                        return
                    os.write(self._pipes[1], b"yes\n" if self._provide(line.decode("ascii", "replace")) else b"no\n")

    def _provide(self, name: str) -> bool:
        """Place a file for the server; return whether there is one that it has not received yet."""
        is_history = parse_history_name(name) is not None
        try:
            is_there = name not in self._given and (self._ready.pop(name, None) or self._fetch(name)).result()
        except (OpsError, OSError) as error:
            self.failure = error
            log.error("wal_unreadable", name=name, error=str(error))
            is_there = False
        if is_there and not is_history:
            self.idle_requests = 0
            self._given.add(name)
            self._fetch_ahead(name)
        elif not is_history:
            self.idle_requests += 1
        return is_there

    def _fetch_ahead(self, name: str) -> None:
        segment = self._archive.segment(name)
        if segment is None:
            return
        for step in range(1, _AHEAD + 1):
            following = Segment(segment.timeline, segment.number + step).name(self._archive.cluster.segment_bytes)
            if following not in self._ready and following in self._stored:
                self._ready[following] = self._fetch(following)

    def _fetch(self, name: str) -> Future[bool]:
        return self._pool.submit(self._unpack, name)

    def _unpack(self, name: str) -> bool:
        place, frozen = self._directory / "wal" / name, self._directory / "frozen" / name
        if os.sep in name:
            return False
        if frozen.exists():
            frozen.rename(place)
        elif name not in self._stored or not self._archive.read(name, place):
            return False
        self._give(place)
        return True

    def _give(self, path: Path) -> None:
        if self._owner:
            os.chown(path, self._owner.uid, self._owner.gid)
