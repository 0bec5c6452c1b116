"""Copies WAL off-site: segments when they are complete, and new parts of the current one every few seconds.

    wal/<cluster>/cluster.<digest>.gz.age              facts about the cluster
    wal/<cluster>/<file>.<digest>.gz.age               a completed segment, or the history of a timeline
    wal/<cluster>/<file>+<from>-<to>.<digest>.gz.age   part of a segment that is not complete yet

Every object is a gzip file inside an age file; gunzip reads it. A comment in the gzip header says, as JSON, which
moments it covers, and once the repository has a key, has a signature of that, the name and the content. Names depend on
the content, so nothing is sent twice and nothing is overwritten.

A file that is damaged or cannot be read keeps no other one on the machine: a base backup after it needs the WAL that
follows.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from portal.ops.errors import NotIntactError, OpsError
from portal.ops.pitr.lsn import PARTIAL, parse_history_name
from portal.ops.pitr.wal_archive import DIRECTORY, SUFFIX, WalArchive
from portal.ops.pitr.wal_objects import (
    CLUSTER,
    check_header,
    deflate,
    parse_object,
    place_in_wal,
    with_comment,
    with_signature,
)
from portal.ops.repository.faults import explain
from portal.ops.runtime.logs import engine_log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime
    from pathlib import Path
    from threading import Event

    from portal.ops.pitr.archive_index import Stamp
    from portal.ops.repository.repository import Repository
    from portal.ops.storage.objects import ObjectWriter
    from portal.ops.storage.signature import SigningKey

log = engine_log("portal.ops.pitr.offsite_wal")

CURRENT_SECONDS: Final = 2.0
"""Seconds between copies of the current segment: with one second until the service notices, 4 s in all."""

_DIGEST_CHARACTERS: Final = 16
_PAGE_BYTES: Final = 8192
_TICK_SECONDS: Final = 0.2
_FIRST_PAUSE_SECONDS: Final = 1.0
_LONGEST_PAUSE_SECONDS: Final = 60.0
_TELL_SECONDS: Final = 10.0
_READ_AGAIN_SECONDS: Final = 60.0


class _There(NamedTuple):
    """What a destination had of a cluster when it was listed. Parts of segments, which may be very many, are left out.

    Arguments:
        oldest: the start of the oldest WAL; empty without any.
    """

    oldest: str = ""
    whole: frozenset[str] = frozenset()

    @classmethod
    def of(cls, names: Iterable[str]) -> _There:
        oldest, whole = "", set()
        for name in names:
            if (found := parse_object(name)) is None or not found.is_part:
                whole.add(name)
            if found is not None and found.is_segment:
                oldest = min(oldest or place_in_wal(found.file), place_in_wal(found.file))
        return cls(oldest, frozenset(whole))


class WalCopier:
    """Copies the WAL of a repository to one destination while the service runs.

    Arguments:
        open_writer: opens the destination; called again after a failure.
        shown: the name of the destination for people.
        tell: called every few seconds and at every change with the present fault and its hint; empty without one.
        find_key: returns the repository's signing key, or None if it has none yet; called until there is one.
    """

    def __init__(
        self,
        repository: Repository,
        open_writer: Callable[[], ObjectWriter],
        *,
        shown: str,
        tell: Callable[[str], None] = lambda _: None,
        find_key: Callable[[], SigningKey | None] = lambda: None,
    ) -> None:
        self._repository = repository
        self._open_writer = open_writer
        self._shown = shown
        self._tell = tell
        self._find_key = find_key
        self._key: SigningKey | None = None
        self._told: tuple[str, float] | None = None
        self._there: dict[str, _There] = {}
        self._seen: tuple[str, Stamp | None] | None = None
        self._sent: set[str] = set()
        self._sent_to: dict[str, int] = {}
        self._sent_at = 0.0
        self._unread: dict[str, tuple[str, float]] = {}
        self.problem = ""

    def run(self, stop: Event) -> None:
        """Copy until `stop` is set; a failure is logged, kept in `problem`, and retried."""
        pause = _FIRST_PAUSE_SECONDS
        while not stop.is_set():
            try:
                with self._open_writer() as writer:
                    self._there.clear()
                    while not stop.wait(_TICK_SECONDS):
                        self.copy(writer)
                        pause = _FIRST_PAUSE_SECONDS
                        self._note(self._unread_files())
            except (OpsError, OSError) as error:
                self._note(str(error))
                log.error("wal_copy_failed", destination=self._shown, error=str(error), pause_seconds=pause)
                stop.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _note(self, problem: str) -> None:
        """Report the fault, empty without one; the same report is not repeated at once."""
        self.problem, now = problem, time.monotonic()
        if self._told is None or self._told[0] != problem or now - self._told[1] >= _TELL_SECONDS:
            self._told = problem, now
            self._tell(problem)

    def copy(self, writer: ObjectWriter) -> None:
        """Send everything new that can be read.

        Raises:
            StorageError: the store failed.
        """
        archive = WalArchive.current(self._repository)
        if archive is None:
            return
        self._key = self._key or self._find_key()
        self._copy_files(archive, writer)
        if time.monotonic() - self._sent_at >= CURRENT_SECONDS:
            self._copy_current(archive, writer)

    def _copy_files(self, archive: WalArchive, writer: ObjectWriter) -> None:
        seen = archive.cluster.system_identifier, archive.stamp()
        if self._seen and seen[0] != self._seen[0]:  # another cluster has segments of the same names
            self._sent.clear()
            self._sent_to.clear()
            self._unread.clear()
        is_time = any(time.monotonic() >= again_at for _, again_at in self._unread.values())
        if seen != self._seen or is_time:
            self._copy_new_files(archive, writer)
            self._seen = seen

    def _copy_new_files(self, archive: WalArchive, writer: ObjectWriter) -> None:
        known, now = archive.files(), time.monotonic()
        self._sent &= known.keys()
        self._unread = {name: unread for name, unread in self._unread.items() if name in known}
        waiting = {name for name, (_, again_at) in self._unread.items() if now < again_at}
        files = [file for name, file in known.items() if name not in self._sent and name not in waiting]
        if not files:
            return
        oldest = self._oldest_there(archive, writer)
        self._store(archive, writer, CLUSTER, deflate(_json(asdict(archive.cluster))), {})
        for file in files:
            is_old = oldest and not parse_history_name(file.name) and place_in_wal(file.name) < oldest
            if is_old and file.name not in self._unread:
                self._sent.add(file.name)  # it was off-site and has been pruned there
                continue
            content = self._read(archive.stored(file.name), file.name)
            if content is None:
                continue
            told = {"covered": _text(file.covered), "until": _text(file.until)}
            self._store(archive, writer, file.name, content, told)
            self._sent.add(file.name)
            self._sent_to.pop(file.name, None)

    def _read(self, path: Path, name: str) -> bytes | None:
        """A file as a gzip file; None if it was removed, or is damaged or cannot be read: then again after a minute."""
        try:
            content = path.read_bytes()
        except FileNotFoundError:  # a prune has removed it since the index was read
            self._unread.pop(name, None)
            return None
        except OSError as error:
            self._skip(name, explain(error, "cannot read", path))
            return None
        if parse_history_name(name):
            content = deflate(content)
        try:
            check_header(content, str(path))
        except NotIntactError as error:
            self._skip(name, error)
            return None
        self._unread.pop(name, None)
        return content

    def _skip(self, name: str, error: OpsError) -> None:
        reason = str(error)
        if name not in self._unread:
            log.error("wal_copy_failed", name=name, destination=self._shown, error=reason)
        self._unread[name] = reason, time.monotonic() + _READ_AGAIN_SECONDS

    def _unread_files(self) -> str:
        """The fault while files are damaged or cannot be read; empty if there are none."""
        return next((reason for reason, _ in self._unread.values()), "")

    def _oldest_there(self, archive: WalArchive, writer: ObjectWriter) -> str:
        """The start of the oldest WAL off-site; listed once for each connection."""
        identifier = archive.cluster.system_identifier
        if identifier not in self._there:
            self._there[identifier] = _There.of(writer.names(f"{DIRECTORY}/{identifier}/"))
        return self._there[identifier].oldest

    def _copy_current(self, archive: WalArchive, writer: ObjectWriter) -> None:
        """Send the unsent bytes of the current segment."""
        state, partials = archive.state(), archive.partials()
        received = int(state.get("received") or 0)
        if not partials:
            return
        name = partials[-1].name.removesuffix(PARTIAL)
        segment, segment_bytes = archive.segment(name), archive.cluster.segment_bytes
        if segment is None or received // segment_bytes != segment.number:
            return
        end, start = received % segment_bytes, self._sent_to.get(name, 0)
        if end <= start:
            return
        start -= start % _PAGE_BYTES  # a page that was not full is sent again
        try:
            with partials[-1].open("rb") as file:
                file.seek(start)
                content = file.read(end - start)
        except FileNotFoundError:  # it is complete by now
            return
        told = {"covered": state.get("covered_to"), "received": received}
        squeezed = deflate(content)
        self._store(archive, writer, f"{name}+{start}-{start + len(content)}", squeezed, told)
        self._sent_to[name] = end
        self._sent_at = time.monotonic()

    def _store(
        self, archive: WalArchive, writer: ObjectWriter, name: str, content: bytes, told: dict[str, Any]
    ) -> None:
        identifier = archive.cluster.system_identifier
        commented = with_comment(content, told)
        place = _place(identifier, name, commented)
        there = self._there.get(identifier, _There()).whole
        if self._key and place not in there:  # it may be there from before there was a key
            commented = with_comment(content, with_signature(f"{identifier}/{name}", content, told, self._key))
            place = _place(identifier, name, commented)
        if place in there:
            return
        stored = writer.store(place, commented)
        if stored.is_new:
            log.info("wal_copied", name=name, bytes=stored.size, destination=self._shown)


def _place(identifier: str, name: str, commented: bytes) -> str:
    digest = sha256(commented).hexdigest()[:_DIGEST_CHARACTERS]
    return f"{DIRECTORY}/{identifier}/{name}.{digest}{SUFFIX}.age"


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _text(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None
