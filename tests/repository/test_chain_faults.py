"""Whether everything that an archive needs is there, and how a finding is told."""

from __future__ import annotations

import itertools
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from portal.ops.archive.damage import Damage
from portal.ops.errors import NotIntactError
from portal.ops.model import Component, VerifyLevel
from portal.ops.repository.restorability import chain_faults, own_fault
from portal.ops.repository.verifications import Verification, VerificationRecord

if TYPE_CHECKING:
    from portal.ops.repository.entry import Entry

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Archive:
    """The facts of an entry that count here."""

    def __init__(self, name: str, parent: str | None = None, *, fault: str = "", intact: bool | None = None) -> None:
        self.name, self.parent, self.fault = name, parent, fault
        self.finding = None if intact is None else _record(intact=intact)


def _record(**facts: Any) -> VerificationRecord:
    known = {
        "backup_id": "a",
        "level": VerifyLevel.CONTENTS,
        "moment": NOW,
        "checksum": "0",
        "message": "",
        "intact": True,
    }
    return VerificationRecord(**{**known, **facts})


def entry(archive: Archive) -> Entry:
    return cast("Entry", archive)


@pytest.mark.parametrize(
    ("archives", "faults"),
    [
        ([Archive("a"), Archive("b", "a"), Archive("c", "b")], {}),
        ([Archive("a", intact=True), Archive("b", "a", intact=True)], {}),
        ([Archive("b", "a"), Archive("c", "b")], {"b": "it needs a, which is gone", "c": "it needs a, which is gone"}),
        ([Archive("a", fault="torn"), Archive("b", "a")], {"b": "it needs a, which is not complete"}),
        ([Archive("a", intact=False), Archive("b", "a")], {"b": "it needs a, which is damaged"}),
        (
            [Archive("a"), Archive("b", "a", intact=False), Archive("c", "b"), Archive("d", "a")],
            {"c": "it needs b, which is damaged"},
        ),
        (
            [Archive("a", "b"), Archive("b", "a"), Archive("c", "b")],
            dict.fromkeys("abc", "its chain goes round in a circle"),
        ),
        ([Archive("a", "a")], {"a": "its chain goes round in a circle"}),
    ],
)
def test_an_intact_archive_needs_a_whole_chain(archives: list[Archive], faults: dict[str, str]) -> None:
    """In whatever order they are looked at; one that is at fault itself is not among them."""
    orders = list(itertools.permutations(map(entry, archives)))
    found = [
        {name: re.sub(r"in a circle at [abc]$", "in a circle", fault) for name, fault in chain_faults(order).items()}
        for order in orders
    ]
    assert found == [faults] * len(orders)


def test_a_fault_of_its_own_comes_first() -> None:
    """What the file says, then what the last verification said."""
    assert own_fault(entry(Archive("a"))) == own_fault(entry(Archive("a", intact=True))) == ""
    assert own_fault(entry(Archive("a", intact=False))) == "its last verification failed (2026-01-02)"
    assert own_fault(entry(Archive("a", fault="torn", intact=False))) == "torn"


def found(level: VerifyLevel = VerifyLevel.CONTENTS, **facts: Any) -> Verification:
    return Verification(path=Path("/r/full_1.tar.gz"), level=level, checksum="ab", **facts)


class Manifest:
    """A manifest of which only the components count."""

    def __init__(self, *components: Component) -> None:
        self.components = components


@pytest.mark.parametrize(
    ("finding", "message"),
    [
        (found(VerifyLevel.CHECKSUM), "is intact: its SHA-256 is ab"),
        (found(files=1, content_bytes=2345), "is intact: 1 file, 2,345 bytes, every digest is right"),
        (
            found(files=2000, has_digests=False),
            "is intact: 2,000 files, 0 bytes, all of it is as gzip's checksum says",
        ),
        (
            found(VerifyLevel.DUMP, manifest=Manifest(Component.DATABASE)),
            "is intact: 0 files, 0 bytes, every digest is right, the dump decodes to its end",
        ),
        (
            found(VerifyLevel.DUMP, manifest=Manifest(Component.MEDIA)),
            "is intact: 0 files, 0 bytes, every digest is right",
        ),
        (
            found(VerifyLevel.CONTENTS, manifest=Manifest(Component.DATABASE)),
            "is intact: 0 files, 0 bytes, every digest is right",
        ),
        (
            found(VerifyLevel.DRILL, files=3),
            "is intact: it was restored, and every table and every file (3 files) is as in the backup",
        ),
        (found(damages=(Damage("x"),)), "is not intact: x"),
        (found(damages=tuple(map(Damage, "xyz"))), "is not intact: x; y; z"),
        (found(damages=tuple(map(Damage, "wxyz"))), "is not intact: w; x; y; and 1 more"),
    ],
)
def test_a_finding_in_words(finding: Verification, message: str) -> None:
    """What was looked at, or what is wrong, and no more."""
    assert finding.message == f"full_1 {message}"
    assert finding.intact is message.startswith("is intact")
    assert finding.to_dict()["success"] is finding.intact
    assert finding.to_dict()["backup_id"] == "full_1"
    if finding.intact:
        finding.raise_damage()
    else:
        with pytest.raises(NotIntactError) as caught:
            finding.raise_damage()
        assert caught.value.message == f"verification failed: full_1 {message}"


def test_a_finding_as_json() -> None:
    """Every field that a program reads."""
    finding = found(damages=(Damage("x"),), notes=("y",), files=2, content_bytes=3, duration_seconds=1.23456)
    assert finding.to_dict() == {
        "success": False,
        "path": "/r/full_1.tar.gz",
        "backup_id": "full_1",
        "level": "contents",
        "message": finding.message,
        "checksum": "ab",
        "damages": ["x"],
        "notes": ["y"],
        "files": 2,
        "content_bytes": 3,
        "duration_seconds": 1.235,
        "format_version": 1,
    }
    plain = found()
    assert (plain.files, plain.content_bytes, plain.has_digests, plain.duration_seconds) == (0, 0, True, 0.0)


@pytest.mark.parametrize(
    ("old", "new", "stays"),
    [
        ({"level": VerifyLevel.DUMP}, {"level": VerifyLevel.CONTENTS}, True),
        ({"level": VerifyLevel.CONTENTS}, {"level": VerifyLevel.CONTENTS}, False),
        ({"level": VerifyLevel.CONTENTS}, {"level": VerifyLevel.DUMP}, False),
        ({"level": VerifyLevel.DUMP}, {"level": VerifyLevel.CONTENTS, "intact": False}, False),
        ({"level": VerifyLevel.DUMP, "intact": False}, {"level": VerifyLevel.CONTENTS}, True),
        ({"level": VerifyLevel.DUMP, "checksum": "1"}, {"level": VerifyLevel.CONTENTS}, False),
    ],
)
def test_what_says_more_stays(old: dict[str, Any], new: dict[str, Any], stays: bool) -> None:
    """Of the same bytes; a damage replaces everything."""
    assert _record(**old).stands_beside(_record(**new)) is stays


def test_a_result_is_of_bytes() -> None:
    """Of others it says nothing, unless it is a damage; where no checksum is known, it counts."""
    assert _record().is_of("0")
    assert _record().is_of(None)
    assert not _record().is_of("1")
    assert not _record().is_of("")
    assert _record(intact=False).is_of("1")
