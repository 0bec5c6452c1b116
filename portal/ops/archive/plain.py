"""Opens archives made by tar and gzip, as the portal's earlier scripts did: no index, perhaps no manifest.

Such an archive holds a directory `<backup_id>/` with `database.sql`, `media/`, `audit/` and usually `manifest.json`. It
can only be read from front to back.
"""

from __future__ import annotations

import re
import tarfile
from dataclasses import replace
from tarfile import HeaderError, ReadError
from typing import TYPE_CHECKING, Final, Self

from isal import igzip

from portal.ops.archive.damage import Damage, DamagedError, checked, is_below
from portal.ops.archive.frame import DeflateError
from portal.ops.archive.index import MANIFEST, NAME, Member, MemberType
from portal.ops.errors import NotIntactError
from portal.ops.hints import another_archive
from portal.ops.manifest import Manifest
from portal.ops.model import BackupId, Component, timestamp
from portal.ops.units import system_reason

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from portal.ops.archive.index import Contents

_DECIMAL: Final = re.compile(r"(-?)([0-9]{1,20})(?:\.([0-9]*))?")
_READ_BYTES: Final = 1 << 20
_MANIFEST_MAX: Final = 1 << 26
_TYPES: Final = {
    tarfile.REGTYPE: MemberType.FILE,
    tarfile.AREGTYPE: MemberType.FILE,
    tarfile.CONTTYPE: MemberType.FILE,
    tarfile.GNUTYPE_SPARSE: MemberType.FILE,
    tarfile.DIRTYPE: MemberType.DIRECTORY,
    tarfile.SYMTYPE: MemberType.SYMLINK,
    tarfile.LNKTYPE: MemberType.HARDLINK,
}
_BROKEN: Final = (
    tarfile.TarError,
    DeflateError,
    EOFError,
    OSError,
    ValueError,
    ArithmeticError,
    LookupError,
    RecursionError,
)
_End: Final[type[HeaderError]] = tarfile.EOFHeaderError  # type: ignore[attr-defined]
_EXTENSIONS: Final = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_EXTENSION_MAX: Final = 1 << 20


class _Header(tarfile.TarInfo):
    """Reports an invalid header as damage, where tarfile would treat it as the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        found = super().frombuf(buf, encoding, errors)
        if found.type in _EXTENSIONS and found.size > _EXTENSION_MAX:
            raise tarfile.ReadError("a name in it is longer than any name can be")
        return found

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile)
        except _End:
            raise
        except HeaderError as error:
            raise ReadError(str(error)) from error


class PlainArchive:
    """An archive without an index, opened for reading.

    Arguments:
        path: the archive's file.

    Raises:
        NotIntactError: it is not a tar archive compressed by gzip, or has no single directory at its top.
    """

    has_index: Final = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.backup_id = ""
        self.member_count: int | None = None
        self._manifest: Manifest | None = None
        first = next(filter(None, (_relative(found.name) for found, _ in self._members())), None)
        if first is None:
            raise DamagedError(Damage(what="there is nothing in the archive"))
        self.backup_id = first.split("/")[0]
        if self.backup_id in ("", ".."):
            raise DamagedError(Damage(what="the archive has a path that leads out of it", path=first))

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def manifest(self) -> Manifest:
        """The manifest of the archive, or one made from its contents.

        The portal's own scripts list all components in every manifest. What the archive really holds counts; a
        component that is listed and missing becomes a warning.

        Raises:
            NotIntactError: the archive or the manifest is damaged.
        """
        if self._manifest is None:
            self._manifest = self._read_manifest()
        return self._manifest

    def _read_manifest(self) -> Manifest:
        tops: set[str] = set()
        found: Manifest | None = None
        for member, content in self.contents(1):
            if member.path == MANIFEST and member.size <= _MANIFEST_MAX:
                found = Manifest.decode(b"".join(content))
                if found.writer:  # an archive of ours that was repacked
                    return found
            tops.add(member.path.split("/")[0])
        held = tuple(component for component in Component if component.member in tops)
        if found is not None:
            lacking = tuple(
                f"the manifest lists {component.spoken}, but the archive contains none"
                for component in found.components
                if component not in held
            )
            return replace(found, components=held, warnings=(*found.warnings, *lacking))
        identifier = BackupId.parse(self.backup_id)
        return Manifest(
            backup_id=self.backup_id,
            type=identifier.type.value if identifier else self.backup_id.split("_")[0],
            timestamp=timestamp(identifier.moment) if identifier else "",
            components=held,
            hostname="",
            db_name="",
            writer="",
        )

    def members(self) -> Iterator[Member]:
        """All members in the order of the tar; the whole archive is read for them.

        Raises:
            NotIntactError: the archive is damaged; members before the damage have been returned.
        """
        for member, _ in self.contents(1):
            yield member

    def contents(self, jobs: int, *, below: str | None = None) -> Contents:  # noqa: ARG002
        """All members with their content, in the order of the tar.

        Arguments:
            jobs: unused: a single gzip member has to be read from front to back.
            below: return only the member of this path and those below it.

        Raises:
            NotIntactError: the archive is damaged, or holds what no archive of a portal holds; members before that have
                been returned.
        """
        for found, tar in self._members():
            member = self._member(found)
            if member is not None and (below is None or is_below(member.path, below)):
                yield member, _pieces(tar, found, member)

    def _open(self) -> igzip.IGzipFile:
        return igzip.IGzipFile(self.path, "rb")  # type: ignore[no-untyped-call]

    def _members(self) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
        try:
            with (
                self._open() as data,
                tarfile.open(fileobj=data, mode="r|", errorlevel=2, tarinfo=_Header, encoding="utf-8") as tar,
            ):
                while (found := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # it would keep every header otherwise
                    yield found, tar
                while rest := tar.fileobj.read(_READ_BYTES):  # the end has a checksum too, so it is read
                    if rest.strip(b"\x00"):
                        raise DamagedError(Damage(what="something follows the end of the archive"))
        except _BROKEN as error:
            raise _damaged(error) from error

    def _member(self, found: tarfile.TarInfo) -> Member | None:
        name = _relative(found.name)
        top, _, path = name.partition("/")
        if name and top != self.backup_id:
            raise DamagedError(Damage(what=f"it is not in the directory {self.backup_id}/", path=found.name))
        if not path:
            return None
        if path == NAME:
            raise DamagedError(
                Damage(what="the archive has an index, but its end, which says where, is damaged or truncated")
            )
        kind = _TYPES.get(found.type)
        if kind is None:
            raise DamagedError(Damage(what="it is neither a file, a directory nor a link", path=found.name))
        link = found.linkname
        if kind is MemberType.HARDLINK:
            top, _, link = _relative(link).partition("/")
            if top != self.backup_id:
                raise DamagedError(Damage(what="its target is not in the archive", path=path))
        return checked(
            Member(
                path,
                kind,
                found.size if kind is MemberType.FILE else 0,
                found.mode & 0o7777,
                found.uid,
                found.gid,
                _nanoseconds(found),
                link=link if kind in (MemberType.SYMLINK, MemberType.HARDLINK) else "",
            )
        )


def _pieces(tar: tarfile.TarFile, found: tarfile.TarInfo, member: Member) -> Iterator[memoryview]:
    if member.type is not MemberType.FILE:
        return
    try:
        file = tar.extractfile(found)
        rest = member.size
        while rest and file is not None:
            data = file.read(min(rest, _READ_BYTES))
            if not data:
                raise EOFError("the archive ends before the file does")
            rest -= len(data)
            yield memoryview(data)
    except _BROKEN as error:
        raise _damaged(error, member.path) from error


def _relative(name: str) -> str:
    """A member's name without the leading `./` that tar may have written."""
    while name.startswith("./"):
        name = name.removeprefix("./")
    return "" if name == "." else name


def _nanoseconds(found: tarfile.TarInfo) -> int:
    exact = _DECIMAL.fullmatch(found.pax_headers.get("mtime", str(found.mtime)))
    if exact is None:
        raise DamagedError(Damage(what="its time is not a number", path=found.name))
    sign, whole, fraction = exact.groups()
    nanoseconds = int(whole) * 1_000_000_000 + int((fraction or "")[:9].ljust(9, "0"))
    return -nanoseconds if sign else nanoseconds


def _damaged(error: BaseException, path: str | None = None) -> NotIntactError:
    if isinstance(error, OSError) and error.errno is not None:
        return NotIntactError(f"the archive cannot be read: {system_reason(error)}", hint=another_archive())
    return DamagedError(Damage(what=f"the archive is damaged from here on ({error})", path=path))
