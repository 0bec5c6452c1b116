"""Checks an archive to a chosen level, and says what is damaged and where.

    checksum   the file has the SHA-256 that its sidecar says
    contents   every frame decompresses, every file has its digest; index, tar and manifest agree. An archive by plain
               tar and gzip has no digests: all of it decompresses, and gzip's checksum is right
    dump       pg_restore decodes the database's dump to its end
    drill      it was restored for a test and compared; `portal.ops.drill` does that

Each level includes the previous ones. If the checksum is wrong or missing, the contents are always checked, to find the
affected files. Of the archives that an incremental needs, every level checks only that they exist and are the ones it
was made on: each archive is verified on its own, and all of them before a restore.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Final

from portal.ops.archive.damage import Damage, DamagedError, is_below
from portal.ops.archive.index import MANIFEST, Member, MemberType
from portal.ops.archive.open import open_archive
from portal.ops.archive.protocol import is_indexed_archive
from portal.ops.archive.reader import ArchiveReader, is_indexed
from portal.ops.chains.deletions import deletions
from portal.ops.chains.lineage import is_incremental, line_of
from portal.ops.errors import ConfigurationError, NotIntactError, OpsError
from portal.ops.hints import Advice
from portal.ops.model import DELETED, Component, VerifyLevel
from portal.ops.pitr.base_manifest import MANIFEST as SERVER_MANIFEST
from portal.ops.pitr.base_manifest import PREFIX, manifest_faults
from portal.ops.postgres.client_tools import find_client
from portal.ops.postgres.dump_format import HEAD_BYTES, dump_major, start_decoding
from portal.ops.repository.sidecar import file_digest, read_sidecar
from portal.ops.repository.verifications import Verification
from portal.ops.runtime.process import ProcessRunner, RunningProcess, SystemRunner
from portal.ops.runtime.progress import available_cores

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from portal.ops.archive.protocol import Archive
    from portal.ops.manifest import Manifest
    from portal.ops.runtime.progress import Advance

MOST_DAMAGES: Final = 100


class Expected:
    """The bytes of content that verifying archives will read, from their manifests; read when needed.

    None if unknown without reading a whole archive.

    Arguments:
        paths: the archives.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = tuple(paths)
        self._known: list[int | None] = []

    def __call__(self) -> int | None:
        """The number of bytes, computed once."""
        if not self._known:
            self._known.append(self._sum())
        return self._known[0]

    def _sum(self) -> int | None:
        try:
            return sum(map(_content_bytes, self._paths))
        except (
            OpsError,
            OSError,
            ValueError,
            TypeError,
            AttributeError,
            ArithmeticError,
        ):  # verification itself reports this error
            return None


@dataclass(kw_only=True)
class Verifier:
    """Checks archives.

    Arguments:
        runner: starts pg_restore.
        pg_bin_dir: the only directory to look for pg_restore in; None looks everywhere.
        jobs: how many threads decompress.
        advance: called with the number of content bytes after each piece was checked.
    """

    runner: ProcessRunner = field(default_factory=SystemRunner)
    pg_bin_dir: Path | None = None
    jobs: int = field(default_factory=available_cores)
    advance: Advance = lambda _: None

    def verify(self, path: Path, level: VerifyLevel = VerifyLevel.CONTENTS) -> Verification:
        """Check one archive, and that the archives it needs exist.

        Raises:
            RepositoryError: a file cannot be read at all.
            ClientToolError: the dump is to be decoded, and no pg_restore can do that.
            RestoreError: somebody ended pg_restore.
            ConfigurationError: the level is `drill`, which is more than a check.
        """
        found = self.verify_alone(path, level)
        if is_incremental(path):
            try:
                line_of(path)
            except NotIntactError as error:
                found = replace(found, damages=(*found.damages, Damage(what=error.message)))
        return found

    def verify_alone(self, path: Path, level: VerifyLevel = VerifyLevel.CONTENTS) -> Verification:
        """Check one archive and no other; raises the errors of `verify`."""
        if level is VerifyLevel.DRILL:
            raise ConfigurationError(
                "a drill takes more than looking at an archive", hint=f"Run {Advice.DRILL}, or a DrillJob."
            )
        started = time.monotonic()
        with ThreadPoolExecutor(1, thread_name_prefix="checksum") as thread:
            hashing = thread.submit(file_digest, path)
            damages: list[Damage] = []
            notes: list[str] = []
            expected = _expected(path, damages, notes)
            if level is VerifyLevel.CHECKSUM and expected is not None and hashing.result() == expected:
                return Verification(
                    path=path, level=level, checksum=expected, duration_seconds=time.monotonic() - started
                )
            level = VerifyLevel.DUMP if level is VerifyLevel.DUMP else VerifyLevel.CONTENTS
            look = _Look(self, level)
            look.run(path)
            checksum = hashing.result()
        if expected is not None and checksum != expected:
            damages.append(Damage(what=f"checksum mismatch: its SHA-256 is {checksum}, and should be {expected}"))
        return Verification(
            path=path,
            level=level,
            checksum=checksum,
            damages=(*damages, *look.damages),
            notes=(*notes, *look.notes),
            manifest=look.manifest,
            files=look.files,
            content_bytes=look.content_bytes,
            has_digests=look.has_digests,
            duration_seconds=time.monotonic() - started,
        )


class _Look:
    """One pass over the contents of an archive, continued after damage as far as possible."""

    def __init__(self, verifier: Verifier, level: VerifyLevel) -> None:
        self._verifier = verifier
        self._level = level
        self.damages: list[Damage] = []
        self.manifest: Manifest | None = None
        self.files = 0
        self.content_bytes = 0
        self.has_digests = True
        self.notes: tuple[str, ...] = ()
        self._held = {component: [0, 0] for component in Component}
        self._link_targets: set[str] = set()

    def run(self, path: Path) -> None:
        """Check everything; afterwards `damages` has the result."""
        try:
            with closing(open_archive(path)) as archive:
                self.has_digests = archive.has_index
                self.manifest = archive.manifest()
                self.notes = self.manifest.warnings if not self.manifest.writer else ()
                for member, content in archive.contents(self._verifier.jobs):
                    self._member(member, content)
                    if len(self.damages) >= MOST_DAMAGES:
                        return
                self._hold_against_manifest(self.manifest, archive)
        except DamagedError as error:
            self._note(error.damage)
        except NotIntactError as error:
            self._note(Damage(what=error.message))

    def _member(self, member: Member, content: Iterator[memoryview]) -> None:
        component = _component(member.path)
        if component is not None:
            self._held[component][0 if member.type is MemberType.FILE else 1] += 1
        elif member.path != MANIFEST and not self._is_list_of_deleted(member):
            self._note(Damage(what="it belongs to no component of a portal", path=member.path))
        if member.type is MemberType.HARDLINK:
            self._link_targets.add(member.link)
        try:
            if component is Component.DATABASE and self._level is VerifyLevel.DUMP:
                self._dump(member, content)
            else:
                self._pass(content)
        except DamagedError as error:
            self._note(error.damage)
            return
        if component is not None and member.type is MemberType.FILE:
            self.files += 1
            self.content_bytes += member.size

    def _pass(self, content: Iterable[memoryview]) -> None:
        for piece in content:
            self._verifier.advance(len(piece))

    def _dump(self, member: Member, content: Iterator[memoryview]) -> None:
        first = next(content, memoryview(b""))
        major = dump_major(bytes(first[:HEAD_BYTES]))
        if major is None:
            self._note(Damage(what="it is not a dump in PostgreSQL's custom format", path=member.path))
            self._pass(content)
            return
        runner = self._verifier.runner
        tool = find_client("pg_restore", major, runner=runner, bin_dir=self._verifier.pg_bin_dir)
        process = start_decoding(tool, runner=runner)
        try:
            self._feed(process, chain([first], content))
            if (code := process.wait()) < 0:
                raise _ended(code, process)
            if code:
                last = (process.stderr_tail().strip().splitlines() or ["it says nothing"])[-1]
                self._note(Damage(what=f"pg_restore cannot decode it ({last})", path=member.path))
        finally:
            process.kill()

    def _feed(self, process: RunningProcess, content: Iterable[memoryview]) -> None:
        for piece in content:
            self._verifier.advance(len(piece))
            with suppress(BrokenPipeError):  # the exit status says why; the digest still needs the rest
                process.stdin.write(piece)
        with suppress(BrokenPipeError):
            process.stdin.close()

    def _is_list_of_deleted(self, member: Member) -> bool:
        return member.path == DELETED and self.manifest is not None and self.manifest.parent is not None

    def _hold_against_manifest(self, manifest: Manifest, archive: Archive) -> None:
        if manifest.backup_id != archive.backup_id:
            self._note(Damage(what="the manifest is another archive's", path=MANIFEST))
        if manifest.parent is not None and Component.MEDIA in manifest.components:
            self._hold_deletions(manifest, archive)
        if Component.CLUSTER in manifest.components:
            self._hold_cluster(archive)
        if self._link_targets and archive.has_index:  # without an index, the whole archive would be read again
            self._hold_links(archive)
        for component in Component:
            files, others = self._held[component]
            listed = component in manifest.components
            may_be_empty = component is Component.MEDIA and manifest.parent is not None
            if listed and not files + others and not may_be_empty:
                self._note(Damage(what=f"the manifest lists {component.spoken}, but the archive holds none"))
            if not listed and files + others:
                self._note(Damage(what=f"the archive holds {component.spoken}, but the manifest does not list it"))
            expected = manifest.details.get(component.value, {}).get("files", files)
            if expected != files:
                self._note(
                    Damage(what=f"there are {files} files of the {component.spoken}, and the manifest says {expected}")
                )

    def _hold_cluster(self, archive: Archive) -> None:
        """Compare a cluster's files with the server's own list of them, as pg_verifybackup does."""
        if not is_indexed_archive(archive) or not (listed := archive.find(f"{PREFIX}/{SERVER_MANIFEST}")):
            self._note(Damage(what=f"it holds a cluster, and no {SERVER_MANIFEST} of the server's"))
            return
        files = {
            member.path.removeprefix(f"{PREFIX}/"): (member.size, member.sha256)
            for member in archive.members()
            if member.type is MemberType.FILE and is_below(member.path, PREFIX)
        }
        for fault in manifest_faults(files, b"".join(archive.extract(listed)))[:MOST_DAMAGES]:
            self._note(Damage(what=fault, path=PREFIX))

    def _hold_links(self, archive: Archive) -> None:
        """Make sure that the target of each hard link is a file before it; else a restore refuses the archive."""
        files: set[str] = set()
        for member in archive.members():
            if member.type is MemberType.FILE and member.path in self._link_targets:
                files.add(member.path)
            elif member.type is MemberType.HARDLINK and member.link not in files:
                self._note(Damage(what=f"it is a link to {member.link}, which is no file before it", path=member.path))
                if len(self.damages) >= MOST_DAMAGES:
                    return

    def _hold_deletions(self, manifest: Manifest, archive: Archive) -> None:
        if not is_indexed_archive(archive):
            self._note(Damage(what="it follows another archive, and has no index"))
            return
        count = sum(1 for _ in deletions(archive))
        expected = manifest.details.get(Component.MEDIA.value, {}).get("deleted", count)
        if expected != count:
            self._note(Damage(what=f"it has {count} lines, and the manifest says {expected}", path=DELETED))

    def _note(self, damage: Damage) -> None:
        self.damages.append(damage)


def _content_bytes(path: Path) -> int:
    if not is_indexed(path):
        raise ValueError("an archive without an index has to be read for its manifest")
    with closing(ArchiveReader(path)) as archive:
        return sum(int(detail.get("bytes", 0)) for detail in archive.manifest().details.values())


def _ended(code: int, process: RunningProcess) -> OpsError:
    """The error for a pg_restore that a signal has ended, as for want of memory: it says nothing of the archive."""
    from portal.ops.postgres.pg_restore import explain_failure  # imported late: it loads the database driver

    return explain_failure(code, process.stderr_tail())


def _component(path: str) -> Component | None:
    top, _, below = path.partition("/")
    for component in Component:
        if top == component.member and not (component is Component.DATABASE and below):
            return component
    return None


def _expected(path: Path, damages: list[Damage], notes: list[str]) -> str | None:
    try:
        expected = read_sidecar(path)
    except NotIntactError as error:
        damages.append(Damage(what=error.message))
        return None
    if expected is None:
        notes.append(f"checksum file not found: without {path.name}.sha256, only the contents were verified")
    return expected
