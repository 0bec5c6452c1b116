"""WAL off-site: completed segments at once, and of the current one what is new, every few seconds while it is written.

    wal/<cluster>/cluster.<digest>.gz.age              what is known of the cluster
    wal/<cluster>/<file>.<digest>.gz.age               a completed segment, or the history of a timeline
    wal/<cluster>/<file>+<from>-<to>.<digest>.gz.age   bytes of a segment that was not complete yet

Every object is a gzip file inside an age file; gunzip reads it. Its gzip header has a comment: what moments it covers,
as JSON. Names are functions of the content, so nothing is sent twice and nothing is overwritten.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import asdict
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from isal import isal_zlib

from portal.ops.errors import IdentityError, NotIntactError, OpsError
from portal.ops.pitr.lsn import PARTIAL, parse_history_name
from portal.ops.pitr.wal_archive import DIRECTORY, SUFFIX, Cluster, WalArchive
from portal.ops.runtime.logs import engine_log
from portal.ops.storage.objects import ObjectWriter, read_object

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from threading import Event

    from portal.ops.repository.repository import Repository
    from portal.ops.storage.age_keys import Identity
    from portal.ops.storage.backend import Backend

log = engine_log("portal.ops.pitr.offsite_wal")

CURRENT_SECONDS: Final = 2.0
"""So often what is new of the current segment is sent; with the second that the service takes to know, within 4 s."""

_HEADER: Final = b"\x1f\x8b\x08\x10\x00\x00\x00\x00\x00\xff"
_HEADER_BYTES: Final = 10
_COMMENT_FLAG: Final = 0x10
_GZIP: Final = 31
_LEVEL: Final = 1
_DIGEST_CHARACTERS: Final = 16
_PAGE_BYTES: Final = 8192
_TICK_SECONDS: Final = 0.2
_FIRST_PAUSE_SECONDS: Final = 1.0
_LONGEST_PAUSE_SECONDS: Final = 60.0
_TELL_SECONDS: Final = 10.0
_NAME: Final = re.compile(r"(?P<file>[0-9A-F.a-z]+?)(?:\+(?P<start>\d+)-(?P<end>\d+))?\.[0-9a-f]{16}\.gz(?:\.age)?")
_SEGMENT_NAME: Final = re.compile(r"[0-9A-F]{24}")
_TIMELINE_DIGITS: Final = 8
_CLUSTER: Final = "cluster"
_AGE: Final = b"age-encryption.org/"
_InflateError = cast("type[Exception]", isal_zlib.error)


class WalCopier:
    """Copies the WAL of a repository to one destination, for as long as the service runs.

    Arguments:
        open_writer: opens the destination; called again after a failure.
        shown: what people call the destination.
        tell: told, every few seconds and at every change, what is wrong: a fault with its hint, or nothing.
    """

    def __init__(
        self,
        repository: Repository,
        open_writer: Callable[[], ObjectWriter],
        *,
        shown: str,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._repository = repository
        self._open_writer = open_writer
        self._shown = shown
        self._tell = tell
        self._told: tuple[str, float] | None = None
        self._there: dict[str, frozenset[str]] = {}
        self._sent: set[str] = set()
        self._sent_to: dict[str, int] = {}
        self._sent_at = 0.0
        self.problem = ""

    def run(self, stop: Event) -> None:
        """Copy until `stop` is set; a failure is logged, kept in `problem`, and tried again."""
        pause = _FIRST_PAUSE_SECONDS
        while not stop.is_set():
            try:
                with self._open_writer() as writer:
                    self._there.clear()
                    while not stop.wait(_TICK_SECONDS):
                        self.copy(writer)
                        pause = _FIRST_PAUSE_SECONDS
                        self._note("")
            except (OpsError, OSError) as error:
                self._note(str(error))
                log.error("wal_copy_failed", destination=self._shown, error=str(error), pause_seconds=pause)
                stop.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _note(self, problem: str) -> None:
        """Tell what is wrong, or that nothing is; the same not again at once."""
        self.problem, now = problem, time.monotonic()
        if self._told is None or self._told[0] != problem or now - self._told[1] >= _TELL_SECONDS:
            self._told = problem, now
            self._tell(problem)

    def copy(self, writer: ObjectWriter) -> None:
        """Send what is new, if anything is.

        Raises:
            StorageError: the store failed.
        """
        archive = WalArchive.current(self._repository)
        if archive is None:
            return
        self._copy_files(archive, writer)
        if time.monotonic() - self._sent_at >= CURRENT_SECONDS:
            self._copy_current(archive, writer)

    def _copy_files(self, archive: WalArchive, writer: ObjectWriter) -> None:
        files = [file for name, file in archive.files().items() if name not in self._sent]
        if not files:
            return
        oldest = self._oldest_there(archive, writer)
        self._store(archive, writer, _CLUSTER, isal_zlib.compress(_json(asdict(archive.cluster)), _LEVEL, _GZIP), {})
        for file in files:
            if oldest and not parse_history_name(file.name) and place_in_wal(file.name) < oldest:
                self._sent.add(file.name)  # it was off-site, and was pruned there
                continue
            content = archive.stored(file.name).read_bytes()
            if parse_history_name(file.name):
                content = isal_zlib.compress(content, _LEVEL, _GZIP)
            told = {"covered": _text(file.covered), "until": _text(file.until)}
            self._store(archive, writer, file.name, content, told)
            self._sent.add(file.name)
            self._sent_to.pop(file.name, None)

    def _oldest_there(self, archive: WalArchive, writer: ObjectWriter) -> str:
        """Where the WAL that is off-site begins; what is there is looked up once for each connection."""
        identifier = archive.cluster.system_identifier
        if identifier not in self._there:
            self._there[identifier] = frozenset(writer.names(f"{DIRECTORY}/{identifier}/"))
        found = (parse_object(name) for name in self._there[identifier])
        return min((place_in_wal(one.file) for one in found if one and one.is_segment), default="")

    def _copy_current(self, archive: WalArchive, writer: ObjectWriter) -> None:
        """Send the bytes of the current segment that were not sent yet."""
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
        start -= start % _PAGE_BYTES  # a page that was not full is sent once more
        try:
            with partials[-1].open("rb") as file:
                file.seek(start)
                content = file.read(end - start)
        except FileNotFoundError:  # it is complete by now
            return
        told = {"covered": state.get("covered_to"), "received": received}
        squeezed = isal_zlib.compress(content, _LEVEL, _GZIP)
        self._store(archive, writer, f"{name}+{start}-{start + len(content)}", squeezed, told)
        self._sent_to[name] = end
        self._sent_at = time.monotonic()

    def _store(
        self, archive: WalArchive, writer: ObjectWriter, name: str, content: bytes, told: dict[str, Any]
    ) -> None:
        commented = _with_comment(content, told)
        digest = sha256(commented).hexdigest()[:_DIGEST_CHARACTERS]
        identifier = archive.cluster.system_identifier
        place = f"{DIRECTORY}/{identifier}/{name}.{digest}{SUFFIX}.age"
        if place in self._there.get(identifier, ()):
            return
        stored = writer.store(place, commented)
        if stored.is_new:
            log.info("wal_copied", name=name, bytes=stored.size, destination=self._shown)


class WalObject(NamedTuple):
    """An object of the WAL, by its name.

    Arguments:
        cluster: the system identifier.
        file: the segment, the history file, or ``cluster``.
        is_part: whether it holds a part of a segment.
    """

    cluster: str
    file: str
    is_part: bool

    @property
    def is_segment(self) -> bool:
        """Whether it holds a segment, or a part of one."""
        return bool(_SEGMENT_NAME.fullmatch(self.file.removesuffix(PARTIAL)))


def parse_object(name: str) -> WalObject | None:
    """What the name of an object says; nothing where it is none of the WAL."""
    directory, _, rest = name.partition("/")
    cluster, _, last = rest.partition("/")
    found = _NAME.fullmatch(last)
    if directory != DIRECTORY or not found:
        return None
    return WalObject(cluster, found["file"], found["start"] is not None)


def place_in_wal(segment: str) -> str:
    """Where a segment lies in the WAL, whatever its timeline: two such places compare as their positions do."""
    return segment.removesuffix(PARTIAL)[_TIMELINE_DIGITS:]


def fetch_wal(repository: Repository, backend: Backend, identities: Sequence[Identity]) -> int:
    """Bring the WAL of every cluster back into a repository; the number of files that are new here.

    Arguments:
        identities: nothing where copies are not encrypted.

    Raises:
        StorageError: the store failed.
        NotIntactError: an object was changed.
        IdentityError: it was not encrypted for any of the identities.
    """
    clusters: dict[str, list[tuple[str, re.Match[str]]]] = {}
    for found in backend.list(f"{DIRECTORY}/"):
        parts = found.name.split("/")
        if len(parts) == 3 and (name := _NAME.fullmatch(parts[2])):
            clusters.setdefault(parts[1], []).append((found.name, name))
    return sum(_fetch_cluster(repository, backend, identities, objects) for objects in clusters.values())


def _fetch_cluster(
    repository: Repository, backend: Backend, identities: Sequence[Identity], objects: list[tuple[str, re.Match[str]]]
) -> int:
    described = [place for place, name in objects if name["file"] == _CLUSTER]
    if not described:
        return 0
    facts = json.loads(_inflate(_read(backend, described[-1], identities)))
    archive = WalArchive.prepare(repository, Cluster(**facts))
    with archive.receiving_alone():
        known, count = archive.files(), 0
        whole = {name["file"]: place for place, name in objects if name["start"] is None and name["file"] != _CLUSTER}
        for file, place in sorted(whole.items()):
            if file not in known:
                content, told = _split(_read(backend, place, identities))
                data = _inflate(content) if parse_history_name(file) else content
                archive.take(file, data, covered=_moment(told.get("covered")), until=_moment(told.get("until")))
                count += 1
        parts = [(place, name) for place, name in objects if name["start"] and name["file"] not in whole]
        return count + _fetch_current(archive, backend, identities, parts)


def _fetch_current(
    archive: WalArchive, backend: Backend, identities: Sequence[Identity], parts: list[tuple[str, re.Match[str]]]
) -> int:
    """Put the parts of segments that were never completed together; what they cover is in the last one."""
    count = 0
    for file in sorted({name["file"] for _, name in parts}):
        mine = sorted((int(name["start"]), int(name["end"]), place) for place, name in parts if name["file"] == file)
        segment, reached = bytearray(archive.cluster.segment_bytes), 0
        told: dict[str, Any] = {}
        for start, end, place in mine:
            if start > reached:
                break  # one between them is missing: what follows is of no use
            content, told = _split(_read(backend, place, identities))
            segment[start:end] = _inflate(content)
            reached = max(reached, end)
        stored = isal_zlib.compress(bytes(segment), _LEVEL, _GZIP)
        archive.take(file + PARTIAL, stored, covered=_moment(told.get("covered")), until=None)
        count += 1
    return count


def _with_comment(content: bytes, told: dict[str, Any]) -> bytes:
    """A gzip file with a comment in its header; ours never have other fields there."""
    if content[3] != 0:
        raise NotIntactError("a WAL file has a gzip header that is not ours", hint="Look at the repository's disk.")
    comment = json.dumps(told, separators=(",", ":")).encode("ascii")
    return _HEADER + comment + b"\0" + content[_HEADER_BYTES:]


def _split(data: bytes) -> tuple[bytes, dict[str, Any]]:
    """A gzip file without its comment, and what the comment says."""
    if len(data) < _HEADER_BYTES or not data[3] & _COMMENT_FLAG:
        return data, {}
    comment, _, rest = data[_HEADER_BYTES:].partition(b"\0")
    try:
        told = json.loads(comment)
    except ValueError as error:
        raise NotIntactError("a WAL object has a comment that makes no sense", hint="Take another copy.") from error
    return _HEADER[:3] + b"\0" + _HEADER[4:] + rest, told


def _read(backend: Backend, place: str, identities: Sequence[Identity]) -> bytes:
    """An object, decrypted.

    Raises:
        IdentityError: it is encrypted, and there is no identity.
    """
    data = read_object(backend, place, identities)
    if data.startswith(_AGE):
        raise IdentityError(
            f"the WAL in {backend.shown} is encrypted, and there is no identity to open it",
            hint="Name the file with the secret key in BACKUP_ENCRYPTION_IDENTITY_FILE.",
        )
    return data


def _inflate(data: bytes) -> bytes:
    try:
        inflated: bytes = isal_zlib.decompress(data, _GZIP)
    except _InflateError as error:
        raise NotIntactError("a WAL object is damaged", hint="Take another copy.") from error
    return inflated


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _text(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text).astimezone(UTC) if text else None
