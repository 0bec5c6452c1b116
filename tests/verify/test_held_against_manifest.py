"""An archive holds what its manifest says, no more and no less; what cannot be in one is named."""

from __future__ import annotations

import io
import json
import os
import tarfile
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.errors import ConfigurationError, RestoreError
from portal.ops.manifest import Manifest
from portal.ops.model import DELETED, Component, VerifyLevel
from portal.ops.repository.sidecar import sidecar_of
from portal.ops.runtime.progress import available_cores
from portal.ops.verify.verify import MOST_DAMAGES, Expected, Verifier
from tests.support.archives import BACKUP_ID, NAME, Found, Recipe, compressor_pool, manifest_of, write_archive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from portal.ops.repository.verifications import Verification

FULL = Manifest(
    backup_id=BACKUP_ID,
    type="full",
    timestamp="2024-01-15T12:00:00Z",
    components=(Component.MEDIA,),
    hostname="portal-server",
    db_name="defectdojo",
)
OTHER = "full_20240101_000000_abcdef"
CHAINED = replace(FULL, format_version=2, parent=OTHER, base=OTHER, parent_sha256="0" * 64)


def repacked(directory: Path, manifest: Manifest, *members: str) -> Verification:
    """What is found in an archive of ours that was packed again by tar and gzip; names with a slash are directories."""
    path = directory / NAME
    with tarfile.open(path, "w:gz") as tar:
        for name, content in (("manifest.json", manifest.encode()), *((name, b"content") for name in members)):
            member = tarfile.TarInfo(f"{BACKUP_ID}/{name}")
            if name.endswith("/"):
                member.type = tarfile.DIRTYPE
            else:
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return Verifier(jobs=1).verify_alone(path)


def said(found: Verification) -> list[str]:
    return [str(damage) for damage in found.damages]


@pytest.mark.parametrize(
    ("manifest", "members", "damages"),
    [
        (FULL, ["media/a"], []),
        (FULL, ["media/"], []),
        (FULL, ["media/", "media/b/"], []),
        (FULL, [], ["the manifest lists uploads, but the archive holds none"]),
        (
            FULL,
            ["media/a", "audit/log"],
            ["the archive holds audit log, but the manifest does not list it"],
        ),
        (FULL, ["media/", "audit/"], ["the archive holds audit log, but the manifest does not list it"]),
        (FULL, ["media/a", "notes"], ["notes: it belongs to no component of a portal"]),
        (
            replace(FULL, components=(Component.DATABASE,)),
            ["database.sql", "database.sql/x"],
            ["database.sql/x: it belongs to no component of a portal"],
        ),
        (FULL, ["media/a", DELETED], [f"{DELETED}: it belongs to no component of a portal"]),
        (replace(FULL, backup_id=OTHER), ["media/a"], ["manifest.json: the manifest is another archive's"]),
        (replace(FULL, details={"media": {"files": 1}}), ["media/a", "media/b/"], []),
        (
            replace(FULL, details={"media": {"files": 2}}),
            ["media/a"],
            ["there are 1 files of the uploads, and the manifest says 2"],
        ),
        (CHAINED, [DELETED], ["it follows another archive, and has no index"]),
        (
            replace(FULL, format_version=3, components=(Component.CLUSTER,)),
            [f"{Component.CLUSTER.member}/PG_VERSION"],
            ["it holds a cluster, and no backup_manifest of the server's"],
        ),
    ],
)
def test_what_an_archive_holds(tmp_path: Path, manifest: Manifest, members: list[str], damages: list[str]) -> None:
    """Each component that is listed is there, no other is, and there are as many files as it says."""
    assert said(repacked(tmp_path, manifest, *members)) == damages


def test_files_and_bytes_are_those_of_components(tmp_path: Path) -> None:
    """Neither directories nor what belongs to none are counted."""
    found = repacked(tmp_path, FULL, "media/", "media/a", "media/b", "notes")
    assert (found.files, found.content_bytes, found.has_digests) == (2, 2 * len(b"content"), False)
    assert found.manifest == FULL
    assert found.notes == (f"checksum file not found: without {NAME}.sha256, only the contents were verified",)


def test_after_a_hundred_damages_no_more_are_looked_for(tmp_path: Path) -> None:
    """An archive of something else has as many as it has files."""
    found = repacked(tmp_path, FULL, *map(str, range(2 * MOST_DAMAGES)))
    assert len(found.damages) == MOST_DAMAGES
    assert len(repacked(tmp_path, FULL, "media/a", *map(str, range(MOST_DAMAGES - 1))).damages) == MOST_DAMAGES - 1


def test_what_the_portals_scripts_list_and_do_not_have_is_a_note(tmp_path: Path) -> None:
    """They list every component in every manifest; that is no damage."""
    found = repacked(tmp_path, replace(FULL, writer="", components=(Component.MEDIA, Component.DATABASE)), "media/a")
    assert said(found) == []
    assert found.notes[1:] == ("the manifest lists database, but the archive contains none",)


def test_a_drill_is_more_than_a_look(tmp_path: Path) -> None:
    """Whoever asks for one here is told what does it."""
    with pytest.raises(ConfigurationError, match="a drill takes more than looking at an archive") as caught:
        Verifier().verify(tmp_path / NAME, VerifyLevel.DRILL)
    assert "DrillJob" in caught.value.hint


def test_a_verifier_by_default_uses_all_cores_and_tells_nobody(tmp_path: Path) -> None:
    """How far it is, is told piece by piece to whoever asks for that."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(b"x" * 3_000_000)
    with compressor_pool() as pool:
        path = write_archive(tmp_path / NAME, pool, Recipe(media=tmp_path / "tree"))
    assert Verifier().jobs == available_cores()
    told: list[int] = []
    found = [Verifier(advance=advance).verify(path) for advance in (told.append, Verifier().advance)]
    assert [(one.intact, one.files, one.content_bytes, one.has_digests) for one in found] == [
        (True, 1, 3_000_000, True)
    ] * 2
    manifest = found[0].manifest
    assert manifest is not None
    assert sum(told) == 3_000_000 + len(manifest.encode())
    assert found[0].duration_seconds >= 0
    quick = Verifier().verify(path, VerifyLevel.CHECKSUM)
    assert (quick.intact, quick.level, quick.manifest) == (True, VerifyLevel.CHECKSUM, None)
    sidecar_of(path).write_text(f"{'0' * 64}  {NAME}\n")
    assert said(Verifier().verify(path, VerifyLevel.CHECKSUM)) == [
        f"checksum mismatch: its SHA-256 is {quick.checksum}, and should be {'0' * 64}"
    ]


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        ({}, 0),
        ({"media": {"bytes": 5}, "audit_logs": {"bytes": "7"}, "database": {}}, 12),
        ({"media": {"bytes": []}}, None),
        ({"media": {"bytes": "many"}}, None),
        ({"media": {"bytes": float("inf")}}, None),
    ],
)
def test_how_much_will_be_read_is_what_the_manifest_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, details: dict[str, Any], expected: int | None
) -> None:
    """If that makes no sense, it is not known."""
    manifest = json.loads(manifest_of({}).encode()) | {"details": details}
    monkeypatch.setattr(Manifest, "encode", lambda _: json.dumps(manifest).encode())
    (tmp_path / "tree").mkdir()
    with compressor_pool() as pool:
        path = write_archive(tmp_path / NAME, pool, Recipe(media=tmp_path / "tree"))
    assert Expected([path])() == expected


def test_how_much_is_in_a_plain_archive_is_not_known(tmp_path: Path) -> None:
    """It would have to be read for that."""
    repacked(tmp_path, replace(FULL, details={"media": {"bytes": 7}}), "media/a")
    assert Expected([tmp_path / NAME])() is None


def dump_by(version: bytes, size: int) -> bytes:
    """The head of a dump in the custom format by that pg_dump, and zeros up to a size."""
    texts = (b"defectdojo", b"17.2", version)
    head = b"PGDMP" + bytes([1, 15, 0, 4, 8, 1, 0]) + 7 * bytes(5)
    head += b"".join(b"\0" + len(text).to_bytes(4, "little") + text for text in texts)
    return head.ljust(size, b"\0")


def put_pg_restore(directory: Path, ending: str) -> Path:
    """A program that takes itself for pg_restore, and does this with the dump."""
    program = directory / "bin" / "pg_restore"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\nif [ "$1" = --version ]; then echo "pg_restore (PostgreSQL) 17.2"; exit; fi\n{ending}\n'
    )
    program.chmod(0o755)
    return program


def archive_of_dump(directory: Path, size: int) -> Path:
    """An archive with something that begins like a dump."""
    (directory / "dump").write_bytes(dump_by(b"17.2 (Debian)", size))
    with compressor_pool() as pool:
        return write_archive(directory / NAME, pool, Recipe(dump=directory / "dump"))


def test_a_pg_restore_that_was_killed_says_nothing_of_the_archive(tmp_path: Path) -> None:
    """It ends the verification with an error, and is no damage that would be recorded."""
    program, path = put_pg_restore(tmp_path, "kill -9 $$"), archive_of_dump(tmp_path, 3_000_000)
    with pytest.raises(RestoreError, match="pg_restore was ended by SIGKILL"):
        Verifier(pg_bin_dir=program.parent).verify(path, VerifyLevel.DUMP)


@pytest.mark.parametrize(
    ("ending", "size", "damages"),
    [
        ("cat > /dev/null", 3_000_000, []),
        ("cat > /dev/null; exit 1", 3_000_000, ["database.sql: pg_restore cannot decode it (it says nothing)"]),
        (
            "exec 0<&-; printf 'one\\ntwo\\n\\n' >&2; exit 1",
            3_000_000,
            ["database.sql: pg_restore cannot decode it (two)"],
        ),
        ("exec 0<&-; exit 0", 3_000_000, []),
        ("cat > /dev/null; exit 1", 100, ["database.sql: pg_restore cannot decode it (it says nothing)"]),
    ],
)
def test_what_pg_restore_says_of_a_dump(tmp_path: Path, ending: str, size: int, damages: list[str]) -> None:
    """Its last words are the reason; the rest of the content is read even if it does not listen any more."""
    program, path = put_pg_restore(tmp_path, ending), archive_of_dump(tmp_path, size)
    told: list[int] = []
    found = Verifier(pg_bin_dir=program.parent, advance=told.append).verify(path, VerifyLevel.DUMP)
    assert said(found) == damages
    assert (found.level, found.files, found.content_bytes) == (VerifyLevel.DUMP, 1, size)
    assert found.manifest is not None
    assert sum(told) == size + len(found.manifest.encode())
    assert Verifier(pg_bin_dir=tmp_path).verify(path, VerifyLevel.CONTENTS).intact


def test_hard_link_without_a_file_is_damage(tmp_path: Path) -> None:
    """A restore would refuse such an archive, so a verification does not call it intact."""
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    (uploads / "a").write_bytes(b"content")
    os.link(uploads / "a", uploads / "b")

    def lose_target(items: Iterator[Found]) -> Iterator[Found]:
        return (found for found in items if found[0][0] != "media/a")

    with compressor_pool() as pool:
        path = write_archive(tmp_path / NAME, pool, Recipe(media=uploads, meddle=lose_target))
    found = Verifier(jobs=1).verify_alone(path)
    assert said(found) == ["media/b: it is a link to media/a, which is no file before it"]
