"""Audit logs are restored beside the live one, and their hash chains are looked at."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest

from demo.portal_files import write_audit_log
from portal.ops.archive.open import open_archive
from portal.ops.model import Component
from portal.ops.restore.audit_chain import Chain, Continuation, check_log, check_logs
from portal.ops.restore.files.restore import FileRestore, FilesReport, discard_rollback_data, list_restores
from tests.support.archives import NAME, Recipe, tree_on_disk, write_archive
from tests.support.hostile import directory, file, write_plain

if TYPE_CHECKING:
    from pathlib import Path

    from portal.ops.archive.compressor_pool import CompressorPool


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A live audit log of 20 entries."""
    path = tmp_path / "live" / "audit.jsonl"
    path.parent.mkdir()
    write_audit_log(path, entries=20)
    return path


def chained(count: int, *, key: str = "prev_hash", own: bool = False) -> list[bytes]:
    """Entries, each with the hash of the one before; by that one's own hash where asked for."""
    lines: list[bytes] = []
    before = ""
    for number in range(count):
        entry = {"event": number, key: before}
        if own:
            entry["hash"] = sha256(f"{number}{before}".encode()).hexdigest()
        lines.append(json.dumps(entry).encode())
        before = str(entry["hash"]) if own else sha256(lines[-1]).hexdigest()
    return lines


def write(path: Path, lines: list[bytes]) -> Path:
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def restored(archive: Path, target: Path) -> FilesReport:
    restore = FileRestore(target, restore_id="restore_1", component=Component.AUDIT_LOGS, exact=True)
    restore.stage_from(open_archive(archive), 2)
    return restore.apply()


def test_log_that_is_a_file_is_restored_beside(pool: CompressorPool, tmp_path: Path, log: Path) -> None:
    """The live log is not touched; the restored one lies beside it and is told to be its start."""
    archive = write_archive(tmp_path / NAME, pool, Recipe(audit=log))
    old = log.read_bytes()
    write_audit_log(log, entries=25)
    live = log.read_bytes()
    report = restored(archive, log)
    assert log.read_bytes() == live
    assert report.place == log.with_name("audit.jsonl.restored-restore_1")
    assert report.place.read_bytes() == old
    (chain,) = report.chains
    assert (chain.chain, chain.continuation) == (Chain.UNBROKEN, Continuation.CONTINUED)


def test_live_log_that_cannot_be_read_stops_no_restore(pool: CompressorPool, tmp_path: Path, log: Path) -> None:
    """It may be why the log is restored: the comparison is left out, and a warning says so."""
    archive = write_archive(tmp_path / NAME, pool, Recipe(audit=log.parent))
    log.unlink()
    log.symlink_to("/proc/self/mem")  # a file that everybody's own process may open, and whose start nobody can read
    report = restored(archive, log.parent)
    (chain,) = report.chains
    assert (chain.chain, chain.continuation) == (Chain.UNBROKEN, Continuation.UNREADABLE)
    assert any("the live log cannot be read" in warning for warning in chain.warnings())
    assert (report.place / log.name).stat().st_size > 0


def test_directory_of_logs_is_restored_beside(pool: CompressorPool, tmp_path: Path, log: Path) -> None:
    """Each log of a directory is looked at; nothing in the live directory or beside it is moved, even if exact."""
    archive = write_archive(tmp_path / NAME, pool, Recipe(audit=log.parent))
    before = tree_on_disk(log.parent)
    report = restored(archive, log.parent)
    assert tree_on_disk(log.parent) == before
    assert tree_on_disk(report.place) == before
    assert [chain.name for chain in report.chains] == ["audit.jsonl"]


def test_restored_log_is_taken_back(pool: CompressorPool, tmp_path: Path, log: Path) -> None:
    """A rollback removes the restored log from beside the live one."""
    archive = write_archive(tmp_path / NAME, pool, Recipe(audit=log))
    report = restored(archive, log)
    FileRestore(log, restore_id="restore_1", component=Component.AUDIT_LOGS).rollback()
    assert not report.place.exists()
    assert log.exists()


def test_log_inside_of_the_uploads_does_not_collide_with_them(tmp_path: Path, log: Path) -> None:
    """One restore of both components can keep what it needs for each in the same directory."""
    archive = write_plain(tmp_path, [file("media/a"), file("audit/audit.jsonl", b"{}\n")], lambda _: None)
    restored(archive, log)
    media = FileRestore(log.parent, restore_id="restore_1", component=Component.MEDIA)
    media.stage_from(open_archive(archive), 2)
    media.apply()
    assert [len(list_restores(place)) for place in (log, log.parent)] == [1, 1]
    assert discard_rollback_data(log, "restore_1") >= 0
    media.rollback()
    assert not (log.parent / "a").exists()


def test_log_is_restored_where_there_is_none(tmp_path: Path) -> None:
    """On an empty server an old archive's log is restored beside where the live one will be."""
    archive = write_plain(tmp_path, [file("audit/audit.jsonl", b"{}\n")], lambda _: None)
    target = tmp_path / "empty" / "audit.jsonl"
    report = restored(archive, target)
    assert report.place.read_bytes() == b"{}\n"
    assert report.chains[0].continuation is Continuation.NO_LIVE_LOG
    assert not target.exists()


@pytest.mark.parametrize("names", [[], ["a"], ["a", "b"]])
def test_only_a_single_log_becomes_a_file(tmp_path: Path, log: Path, names: list[str]) -> None:
    """Where the live one is a file, and the archive has none or several, they are in a directory beside it."""
    archive = write_plain(
        tmp_path, [directory("audit"), *(file(f"audit/{name}", b"{}\n") for name in names)], lambda _: None
    )
    report = restored(archive, log)
    if len(names) == 1:
        assert report.place.read_bytes() == b"{}\n"
    else:
        assert sorted(path.name for path in report.place.iterdir()) == names
    assert [path.name for path in log.parent.glob("*.directory")] == []


@pytest.mark.parametrize("is_directory", [True, False])
def test_where_there_is_no_log_it_is_restored_as_it_was(
    pool: CompressorPool, tmp_path: Path, log: Path, *, is_directory: bool
) -> None:
    """On an empty server a directory of one log is a directory again, and a log that was a file is a file."""
    source = log.parent if is_directory else log
    archive = write_archive(tmp_path / NAME, pool, Recipe(audit=source))
    report = restored(archive, tmp_path / "empty" / source.name)
    restored_log = report.place / log.name if is_directory else report.place
    assert restored_log.read_bytes() == log.read_bytes()


@pytest.mark.parametrize("key", ["prev_hash", "previous_hash", "prev", "previous"])
@pytest.mark.parametrize("own", [False, True])
def test_chain_is_found_by_any_of_its_names(tmp_path: Path, key: str, own: bool) -> None:
    """The key may be called one of several names, and hold the hash of the line or the entry's own."""
    path = write(tmp_path / "log", chained(5, key=key, own=own))
    assert check_log(path, tmp_path / "none", name="log").chain is Chain.UNBROKEN


def test_changed_line_breaks_the_chain_after_it(tmp_path: Path) -> None:
    """Where an entry was changed, the next one does not follow it."""
    lines = chained(5)
    lines[2] = lines[2].replace(b'"event": 2', b'"event": 9')
    report = check_log(write(tmp_path / "log", lines), tmp_path / "none", name="log")
    assert (report.chain, report.broken_at) == (Chain.BROKEN, 4)
    assert "broken at line 4" in report.lines()[0]


def test_removed_line_breaks_the_chain(tmp_path: Path) -> None:
    """Where an entry is missing, the next one follows nothing."""
    lines = chained(5)
    del lines[2]
    assert check_log(write(tmp_path / "log", lines), tmp_path / "none", name="log").broken_at == 3


def test_log_without_hashes_has_no_chain(tmp_path: Path) -> None:
    """Where no entry carries a hash, nothing is claimed."""
    report = check_log(write(tmp_path / "log", [b'{"event": 1}', b"text"]), tmp_path / "none", name="log")
    assert report.chain is Chain.ABSENT


@pytest.mark.parametrize(
    ("restored_lines", "live_lines", "expected"),
    [
        (slice(0, 5), slice(0, 5), Continuation.SAME),
        (slice(0, 5), slice(0, 9), Continuation.CONTINUED),
        (slice(0, 5), slice(5, 9), Continuation.FOLLOWS),
        (slice(0, 5), slice(0, 3), Continuation.OLDER),
        (slice(0, 5), slice(6, 9), Continuation.DIFFERENT),
    ],
)
def test_live_log_is_held_against_the_restored(
    tmp_path: Path, restored_lines: slice, live_lines: slice, expected: Continuation
) -> None:
    """Same, going on, following after a rotation, older, or another log altogether."""
    lines = chained(9)
    restored_log = write(tmp_path / "restored", lines[restored_lines])
    (report,) = check_logs(restored_log, write(tmp_path / "live", lines[live_lines]))
    assert report.continuation is expected


def test_an_empty_log_is_called_empty(tmp_path: Path) -> None:
    """Nothing is said of the hashes of entries that are not there."""
    report = check_log(write(tmp_path / "log", []), tmp_path / "none", name="log")
    assert report.chain is Chain.EMPTY
    assert report.lines() == ["log: it is empty; there is no live log of that name."]
