"""Reads the table of contents of a dump in PostgreSQL's custom format from the start of the dump.

``pg_restore --list`` prints the same, but names with blanks are ambiguous there, and quoting depends on the version
that made the dump. Here every name is raw.

Source: PostgreSQL, src/bin/pg_dump/pg_backup_archiver.c, `ReadHead` and `ReadToc` (formats 1.12 to 1.16).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

_MAGIC: Final = b"PGDMP"
_OLDEST: Final = (1, 12)
_TABLE_ACCESS_METHODS: Final = (1, 14)
_COMPRESSION_IS_A_BYTE: Final = (1, 15)
_RELATION_KINDS: Final = (1, 16)
_TIME_FIELDS: Final = 7
_MOST_ENTRIES: Final = 50_000_000
_LONGEST_TEXT: Final = 1 << 30
_ENCODING: Final = re.compile(r"SET client_encoding = '(\w+)'")
_BYTE_FOR_BYTE: Final = "latin-1"
# Python's names for encodings that PostgreSQL calls differently.
_CODECS: Final = {
    "BIG5": "big5",
    "EUC_CN": "gb2312",
    "EUC_JIS_2004": "euc_jis_2004",
    "EUC_JP": "euc_jp",
    "EUC_KR": "euc_kr",
    "GB18030": "gb18030",
    "GBK": "gbk",
    "JOHAB": "johab",
    "KOI8R": "koi8_r",
    "KOI8U": "koi8_u",
    "SHIFT_JIS_2004": "shift_jis_2004",
    "SJIS": "shift_jis",
    "UHC": "cp949",
    "UTF8": "utf-8",
    "WIN866": "cp866",
    "WIN874": "cp874",
    **{f"WIN125{number}": f"cp125{number}" for number in range(9)},
    **{f"ISO_8859_{number}": f"iso8859_{number}" for number in range(5, 9)},
    **{f"LATIN{number}": f"iso8859_{part}" for number, part in enumerate((1, 2, 3, 4, 9, 10, 13, 14, 15, 16), 1)},
}


class Section(IntEnum):
    """The phase in which an entry is restored; the numbers are those of the format."""

    NONE = 1
    PRE_DATA = 2
    DATA = 3
    POST_DATA = 4


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One object of a dump.

    Arguments:
        number: its number in lists for pg_restore.
        kind: such as ``TABLE DATA`` or ``EXTENSION``.
        name: its name; for a privilege or comment, the object in SQL.
        section: the phase of restoring; privileges and comments have that of the entry before.
        definition: the SQL that creates it.
        needs: the numbers of entries that it depends on.
    """

    number: int
    kind: str
    name: str
    schema: str = ""
    owner: str = ""
    tablespace: str = ""
    section: Section = Section.PRE_DATA
    definition: str = ""
    needs: frozenset[int] = frozenset()


class CutShortError(ValueError):
    """Raised if the table of contents continues after the available bytes."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """A table of contents.

    Arguments:
        major: major version of the pg_dump that wrote it.
        server_major: major version of the server that was dumped; 0 if it is unknown.
        entries: all entries, in the order of the dump.
    """

    major: int
    server_major: int
    entries: tuple[Entry, ...]


class ContentsReader:
    """Parses a table of contents, and continues where it stopped when the data has grown.

    Arguments:
        data: the start of the dump; a bytearray may be extended between calls.
    """

    def __init__(self, data: bytes | bytearray) -> None:
        self._cursor = _Cursor(data)
        self._entries: list[Entry] = []
        self._versions = ("", "")
        self._count = -1

    def read(self) -> Contents:
        """Parse what has not been parsed yet.

        Raises:
            CutShortError: more bytes are needed.
            ValueError: it is no valid dump in the custom format.
        """
        complete_to = self._cursor.at
        try:
            if self._count < 0:
                self._begin()
            while len(self._entries) < self._count:
                complete_to = self._cursor.at
                self._entries.append(self._next())
        except CutShortError:
            self._cursor.at = complete_to
            raise
        server_version, version = self._versions
        major = int(re.split(r"\D", version, maxsplit=1)[0])
        server_major = int(re.split(r"\D", server_version, maxsplit=1)[0] or 0)
        return Contents(major=major, server_major=server_major, entries=tuple(self._entries))

    def _begin(self) -> None:
        self._versions = self._cursor.head()
        count = self._cursor.integer()
        if not 0 <= count <= _MOST_ENTRIES:
            raise ValueError(f"a table of contents with {count} entries")
        self._count = count

    def _next(self) -> Entry:
        before = self._entries[-1].section if self._entries else Section.PRE_DATA
        entry = self._cursor.entry(before)
        if entry.kind == "ENCODING" and (found := _ENCODING.search(entry.definition)):
            self._cursor.codec = _CODECS.get(found[1], _BYTE_FOR_BYTE)
        return entry


class _Cursor:
    """A position in the bytes of a dump."""

    def __init__(self, data: bytes | bytearray) -> None:
        self._data = data
        self.at = 0
        self._integer_bytes = 4
        self._offset_bytes = 8
        self._version = _OLDEST
        self.codec = _BYTE_FOR_BYTE

    def head(self) -> tuple[str, str]:
        """Read the header; return the versions of server and pg_dump."""
        if self._take(len(_MAGIC)) != _MAGIC:
            raise ValueError("not a dump in the custom format")
        major, minor, _, self._integer_bytes, self._offset_bytes, _ = self._take(6)
        self._version = major, minor
        if self._version < _OLDEST:
            raise ValueError(f"format {major}.{minor} is older than can be read")
        if self._version >= _COMPRESSION_IS_A_BYTE:
            self._take(1)
        else:
            self.integer()
        for _ in range(_TIME_FIELDS):
            self.integer()
        self._text()  # name of the database
        return self._text(), self._text()

    def entry(self, before: Section) -> Entry:
        """Read one entry.

        Arguments:
            before: the section of the previous entry.
        """
        number = self.integer()
        self.integer()  # whether it has data
        self._bytes_or_end()  # oid of its catalog
        self._bytes_or_end()  # its oid
        name, kind = self._text(), self._text()
        section = Section(self.integer())
        definition = self._text()
        self._bytes_or_end()  # statement that drops it
        self._bytes_or_end()  # COPY statement
        schema, tablespace = self._text(), self._text()
        if self._version >= _TABLE_ACCESS_METHODS:
            self._bytes_or_end()
        if self._version >= _RELATION_KINDS:
            self.integer()
        owner = self._text()
        self._bytes_or_end()  # whether it has OIDs
        needs = []
        while (need := self._text_or_end()) is not None:
            needs.append(int(need))
        self._take(1 + self._offset_bytes)  # position of its data
        return Entry(
            number=number,
            kind=kind,
            name=name,
            schema=schema,
            owner=owner,
            tablespace=tablespace,
            section=before if section is Section.NONE else section,
            definition=definition,
            needs=frozenset(needs),
        )

    def integer(self) -> int:
        """Read a number: its sign, then its bytes, lowest first."""
        found = self._take(1 + self._integer_bytes)
        value = int.from_bytes(found[1:], "little")
        return -value if found[0] else value

    def _text(self) -> str:
        return self._text_or_end() or ""

    def _text_or_end(self) -> str | None:
        found = self._bytes_or_end()
        return None if found is None else found.decode(self.codec, "surrogateescape")

    def _bytes_or_end(self) -> bytes | bytearray | None:
        """Read the bytes of a text; written out, because a dump has tens of thousands of them."""
        data, length_at = self._data, self.at + 1
        start = length_at + self._integer_bytes
        length = int.from_bytes(data[length_at:start], "little")
        if len(data) >= start and data[self.at]:  # a negative length
            self.at = start
            return None
        if length > _LONGEST_TEXT:
            raise ValueError(f"a text of {length} bytes")
        end = start + length
        if len(data) < end:
            raise CutShortError("the table of contents goes on")
        self.at = end
        return data[start:end]

    def _take(self, count: int) -> bytes | bytearray:
        found = self._data[self.at : self.at + count]
        if len(found) < count:
            raise CutShortError("the table of contents goes on")
        self.at += count
        return found
