"""Looking at a real archive at every level: what each finds, what it says, and what is no damage."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from contextlib import closing
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest

from portal.ops.archive.reader import ArchiveReader
from portal.ops.backup.job import BackupConfig, BackupJob
from portal.ops.errors import ClientToolError, NotIntactError, RepositoryError
from portal.ops.model import VerifyLevel
from portal.ops.repository.sidecar import sidecar_of
from portal.ops.settings.load import DatabaseTarget, Secret
from portal.ops.verify.verify import Verifier
from tests.support.portal import portal_in, succeeded

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from demo.postgres import EmbeddedPostgres
    from portal.ops.repository.verifications import Verification

ID = "full_20240115_120000_abc123"
LEVELS = [VerifyLevel.CHECKSUM, VerifyLevel.CONTENTS, VerifyLevel.DUMP]
CHECKSUM, CONTENTS, DUMP = LEVELS


@pytest.fixture(scope="module")
def original(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A full archive of a real portal, made once."""
    postgres.create_database("verified", template="portal_template")
    address = postgres.superuser("verified")
    target = DatabaseTarget(
        host=address.host, port=address.port, name="verified", user=address.user, password=Secret(address.password)
    )
    portal = portal_in(tmp_path_factory.mktemp("verified"), target, postgres)
    yield succeeded(portal.job().backup_full())
    postgres.drop_database("verified")


@pytest.fixture
def archive(original: Path, tmp_path: Path) -> Path:
    """A copy of the archive to be hurt, with its sidecar."""
    copy = tmp_path / original.name
    shutil.copy(original, copy)
    shutil.copy(sidecar_of(original), sidecar_of(copy))
    return copy


@pytest.fixture
def verifier(postgres: EmbeddedPostgres) -> Verifier:
    """With the pg_restore of the embedded server."""
    return Verifier(pg_bin_dir=postgres.bin_dir, jobs=2)


def make_sidecar(archive: Path) -> None:
    digest = sha256(archive.read_bytes()).hexdigest()
    sidecar_of(archive).write_text(f"{digest}  {archive.name}\n")


def flip(archive: Path, offset: int) -> None:
    data = bytearray(archive.read_bytes())
    data[offset] ^= 0x10
    archive.write_bytes(data)


def inside_the_dump(archive: Path) -> int:
    """The offset of a byte in the middle of the dump's first frame."""
    with closing(ArchiveReader(archive)) as reader:
        member = reader.find("database.sql")
        assert member is not None
        frame = member.frame + 1
        return reader.frames.offsets[frame] + reader.frames.lengths[frame] // 2


def dump_of(archive: Path) -> bytes:
    with closing(ArchiveReader(archive)) as reader:
        member = reader.find("database.sql")
        assert member is not None
        return b"".join(reader.extract(member))


def plain_archive(directory: Path, dump: bytes) -> Path:
    """An archive with this as its dump, as tar and gzip make it, and a sidecar that is right."""
    path = directory / f"{ID}.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        member = tarfile.TarInfo(f"{ID}/database.sql")
        member.size = len(dump)
        tar.addfile(member, io.BytesIO(dump))
    make_sidecar(path)
    return path


def damages(found: Verification) -> str:
    assert not found.intact
    return "\n".join(map(str, found.damages))


class TestIntact:
    """An archive that nothing is wrong with."""

    @pytest.mark.parametrize("level", LEVELS)
    def test_every_level_passes(self, archive: Path, verifier: Verifier, level: VerifyLevel) -> None:
        """A real archive is intact at every level, and the level is what was asked for."""
        found = verifier.verify(archive, level)
        assert (found.damages, found.notes, found.level) == ((), (), level)
        assert found.checksum == sha256(archive.read_bytes()).hexdigest()

    def test_the_checksum_is_in_the_message(self, archive: Path, verifier: Verifier) -> None:
        """The quick level says what it compared."""
        found = verifier.verify(archive, CHECKSUM)
        assert found.message == f"{archive.name[:-7]} is intact: its SHA-256 is {found.checksum}"

    def test_the_contents_are_counted(self, archive: Path, verifier: Verifier) -> None:
        """The thorough level says how much it has looked at."""
        found = verifier.verify(archive, CONTENTS)
        assert found.message == (
            f"{archive.name[:-7]} is intact: 6 files, {found.content_bytes:,} bytes, every digest is right"
        )

    def test_the_dump_was_decoded(self, archive: Path, verifier: Verifier) -> None:
        """The most thorough level says so."""
        assert verifier.verify(archive, DUMP).message.endswith(", the dump decodes to its end")

    def test_no_dump_was_decoded_where_there_is_none(self, tmp_path: Path, verifier: Verifier) -> None:
        """Of an archive without a database it is not said that its dump was decoded."""
        (tmp_path / "uploads").mkdir()
        job = BackupJob(BackupConfig(local_path=tmp_path / "archives", media_path=tmp_path / "uploads"))
        found = verifier.verify(succeeded(job.backup_media()), DUMP)
        assert found.intact
        assert "dump" not in found.message

    def test_the_finding_becomes_json(self, archive: Path, verifier: Verifier) -> None:
        """What was found can be written as JSON."""
        found = json.loads(json.dumps(verifier.verify(archive).to_dict()))
        assert (found["success"], found["level"], found["damages"], found["files"]) == (True, "contents", [], 6)

    def test_nothing_is_raised(self, archive: Path, verifier: Verifier) -> None:
        """Raising the damage of an intact archive does nothing."""
        verifier.verify(archive).raise_damage()


class TestDamage:
    """A bit that was flipped, and bytes that are missing."""

    @pytest.mark.parametrize("level", LEVELS)
    def test_a_flip_is_found_and_named_by_every_level(
        self, archive: Path, verifier: Verifier, level: VerifyLevel
    ) -> None:
        """Where the sidecar tells of a change, even the quick level looks closer and names file and frame."""
        flip(archive, inside_the_dump(archive))
        found = verifier.verify(archive, level)
        assert "database.sql, frame " in damages(found)
        assert "its SHA-256 is " in damages(found)
        assert found.level is (DUMP if level is DUMP else CONTENTS)

    def test_a_flip_under_a_right_checksum_passes_the_quick_level(self, archive: Path, verifier: Verifier) -> None:
        """The quick level compares the checksum, and does not look inside."""
        flip(archive, inside_the_dump(archive))
        make_sidecar(archive)
        assert verifier.verify(archive, CHECKSUM).intact

    @pytest.mark.parametrize("level", [CONTENTS, DUMP])
    def test_a_flip_under_a_right_checksum_is_found(
        self, archive: Path, verifier: Verifier, level: VerifyLevel
    ) -> None:
        """The other levels find it all the same, in its file and frame and nowhere else."""
        flip(archive, inside_the_dump(archive))
        make_sidecar(archive)
        found = damages(verifier.verify(archive, level))
        assert found.startswith("database.sql, frame ")
        assert "media" not in found

    def test_damage_to_one_file_does_not_hide_the_others(self, archive: Path, verifier: Verifier) -> None:
        """What lies behind a damage is looked at as well."""
        flip(archive, inside_the_dump(archive))
        found = verifier.verify(archive)
        assert found.files == 5

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
    def test_an_archive_that_is_cut_short(self, archive: Path, verifier: Verifier, share: float) -> None:
        """A file that was not transferred whole is not intact, wherever it was cut, with and without a sidecar."""
        os.truncate(archive, int(archive.stat().st_size * share))
        assert not verifier.verify(archive).intact
        sidecar_of(archive).unlink()
        assert not verifier.verify(archive, CHECKSUM).intact

    def test_what_is_no_archive(self, tmp_path: Path, verifier: Verifier) -> None:
        """Any other file is not intact, and the message says why."""
        (tmp_path / "x.tar.gz").write_text("<html>404</html>")
        assert "x is not intact: " in verifier.verify(tmp_path / "x.tar.gz").message

    def test_a_sidecar_that_does_not_fit(self, archive: Path, verifier: Verifier) -> None:
        """Where the contents are right, the difference of the checksums is the one thing that is reported."""
        sidecar_of(archive).write_text(f"{'0' * 64}  {archive.name}\n")
        found = verifier.verify(archive)
        assert damages(found) == f"checksum mismatch: its SHA-256 is {found.checksum}, and should be {'0' * 64}"

    def test_a_sidecar_that_is_damaged(self, archive: Path, verifier: Verifier) -> None:
        """A sidecar that cannot be read is a damage, and is named."""
        sidecar_of(archive).write_bytes(b"\0" * 100)
        assert f"the checksum file {archive.name}.sha256 is damaged" in damages(verifier.verify(archive, CHECKSUM))

    def test_the_damage_can_be_raised(self, archive: Path, verifier: Verifier) -> None:
        """As an error it has the code for it, and says what to do."""
        flip(archive, inside_the_dump(archive))
        with pytest.raises(NotIntactError) as caught:
            verifier.verify(archive).raise_damage()
        assert caught.value.exit_code == 4
        assert "backup.sh list" in caught.value.hint

    def test_a_message_stays_short(self, archive: Path, verifier: Verifier) -> None:
        """Of many damages a few are told, and the number of the others."""
        with closing(ArchiveReader(archive)) as reader:
            offsets = list(reader.frames.offsets)
            lengths = list(reader.frames.lengths)
        for offset, length in zip(offsets[1:], lengths[1:], strict=True):
            flip(archive, offset + length // 2)
        found = verifier.verify(archive)
        assert len(found.damages) > 3
        assert found.message.endswith(f"; and {len(found.damages) - 3} more")


class TestWithoutSidecar:
    """An archive whose sidecar was not copied along."""

    @pytest.mark.parametrize("level", LEVELS)
    def test_it_is_looked_at_by_its_contents(self, archive: Path, verifier: Verifier, level: VerifyLevel) -> None:
        """No sidecar is no damage: the contents are looked at instead, and a note says so."""
        sidecar_of(archive).unlink()
        found = verifier.verify(archive, level)
        assert found.intact
        assert found.level is (DUMP if level is DUMP else CONTENTS)
        assert found.notes == (
            f"checksum file not found: without {archive.name}.sha256, only the contents were verified",
        )

    def test_a_flip_is_found(self, archive: Path, verifier: Verifier) -> None:
        """What the checksum would have told, the contents tell."""
        flip(archive, inside_the_dump(archive))
        sidecar_of(archive).unlink()
        assert "database.sql, frame " in damages(verifier.verify(archive, CHECKSUM))


class TestDump:
    """Dumps that were of no use before they came into the archive."""

    def test_a_dump_of_tar_and_gzip_is_decoded(self, archive: Path, tmp_path: Path, verifier: Verifier) -> None:
        """A whole dump in an archive of the portal's earlier scripts is intact."""
        (tmp_path / "old").mkdir()
        found = verifier.verify(plain_archive(tmp_path / "old", dump_of(archive)), DUMP)
        assert found.intact
        assert "all of it is as gzip's checksum says, the dump decodes to its end" in found.message
        assert "digest" not in found.message  # it has none

    @pytest.mark.parametrize("dump", [b"", b"SELECT 1;\n", b"PGDMP"])
    def test_what_is_no_dump_is_found(self, tmp_path: Path, verifier: Verifier, dump: bytes) -> None:
        """A file that only has the name of a dump is a damage, at this level only."""
        archive = plain_archive(tmp_path, dump)
        assert verifier.verify(archive, CONTENTS).intact
        found = damages(verifier.verify(archive, DUMP))
        assert found == "database.sql: it is not a dump in PostgreSQL's custom format"

    @pytest.mark.parametrize("share", [0.05, 0.5, 0.999])
    def test_a_dump_that_was_cut_is_found(
        self, archive: Path, tmp_path: Path, verifier: Verifier, share: float
    ) -> None:
        """A dump that pg_dump did not finish is found by decoding it, in pg_restore's own words."""
        dump = dump_of(archive)
        (tmp_path / "cut").mkdir()
        cut = plain_archive(tmp_path / "cut", dump[: int(len(dump) * share)])
        assert verifier.verify(cut, CONTENTS).intact
        assert "database.sql: pg_restore cannot decode it (" in damages(verifier.verify(cut, DUMP))


class TestNoFinding:
    """What is no finding about the archive at all."""

    def test_no_pg_restore_is_an_error_of_its_own(self, archive: Path, tmp_path: Path) -> None:
        """Without pg_restore nothing is said of the archive: the package to install is named."""
        (tmp_path / "empty").mkdir()
        with pytest.raises(ClientToolError, match=r"pg_restore not found in .*/empty") as caught:
            Verifier(pg_bin_dir=tmp_path / "empty").verify(archive, DUMP)
        assert "apt-get install postgresql-client-17" in caught.value.hint

    @pytest.mark.parametrize("level", [CHECKSUM, CONTENTS])
    def test_the_other_levels_need_no_pg_restore(self, archive: Path, tmp_path: Path, level: VerifyLevel) -> None:
        """Checksum and contents are looked at without any program of PostgreSQL's."""
        assert Verifier(pg_bin_dir=tmp_path).verify(archive, level).intact

    def test_a_file_that_cannot_be_read_is_an_error_of_its_own(self, tmp_path: Path, verifier: Verifier) -> None:
        """An archive that is not there, or is a directory, is not called damaged."""
        (tmp_path / "directory.tar.gz").mkdir()
        for name in ("none.tar.gz", "directory.tar.gz"):
            with pytest.raises(RepositoryError, match=f"cannot read {tmp_path}/{name}"):
                verifier.verify(tmp_path / name)


class TestApi:
    """The guide's `verify_backup`."""

    @pytest.fixture
    def job(self, archive: Path, postgres: EmbeddedPostgres) -> BackupJob:
        """A job whose repository holds the archive."""
        return BackupJob(BackupConfig(local_path=archive.parent, pg_bin_dir=postgres.bin_dir))

    def test_an_intact_archive(self, job: BackupJob, archive: Path) -> None:
        """The answer is yes, and what was looked at."""
        valid, message = job.verify_backup(str(archive))
        assert valid
        assert "every digest is right" in message

    def test_a_damaged_archive(self, job: BackupJob, archive: Path) -> None:
        """The answer is no, and where it is damaged."""
        flip(archive, inside_the_dump(archive))
        valid, message = job.verify_backup(archive)
        assert not valid
        assert f"{archive.name[:-7]} is not intact: " in message
        assert "database.sql, frame " in message

    def test_an_archive_that_is_not_there(self, job: BackupJob) -> None:
        """The answer is no, and how to see what there is; nothing is raised."""
        valid, message = job.verify_backup("/nowhere/x.tar.gz")
        assert not valid
        assert message.startswith("archive not found: '/nowhere/x.tar.gz'")

    def test_a_level_can_be_a_string(self, job: BackupJob, archive: Path) -> None:
        """A level by its name is the level itself, not a lesser one."""
        _, message = job.verify_backup(archive, "dump")  # type: ignore[arg-type]
        assert message.endswith("the dump decodes to its end")

    def test_a_level_that_there_is_not(self, job: BackupJob, archive: Path) -> None:
        """A misspelt level is refused, not taken for another."""
        with pytest.raises(ValueError, match="dmup"):
            job.verify_backup(archive, "dmup")  # type: ignore[arg-type]


class TestCommand:
    """`backup.sh verify`, by its module."""

    @pytest.mark.parametrize(
        ("level", "code"), [("checksum", 0), ("contents", 0), ("dump", 0), ("glance", 2), ("Dump", 2)]
    )
    def test_levels(self, archive: Path, postgres: EmbeddedPostgres, level: str, code: int) -> None:
        """Every level that there is can be asked for; others are wrong usage."""
        assert verify(archive, postgres.bin_dir, "latest", "--level", level).returncode == code

    def test_a_damaged_archive(self, archive: Path, postgres: EmbeddedPostgres) -> None:
        """Damage ends with 4, is in the JSON, and is told to people line by line, with what to do."""
        flip(archive, inside_the_dump(archive))
        ended = verify(archive, postgres.bin_dir, str(archive))
        found = json.loads(ended.stdout)
        assert (ended.returncode, found["success"]) == (4, False)
        assert all(f"damage: {damage}\n" in ended.stderr for damage in found["damages"])
        assert f"error: {archive.name} is not intact\n" in ended.stderr
        assert "hint: If the archive was copied here" in ended.stderr
        assert "archive_damaged" not in ended.stderr  # a fault is told once

    def test_no_pg_restore(self, archive: Path, tmp_path: Path) -> None:
        """A missing program ends with 1, not with the code for damage."""
        (tmp_path / "empty").mkdir()
        ended = verify(archive, tmp_path / "empty", "latest", "--level", "dump")
        assert ended.returncode == 1
        assert "pg_restore not found" in json.loads(ended.stdout)["error"]


def verify(archive: Path, bin_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {"BACKUP_LOCAL_PATH": str(archive.parent), "BACKUP_PG_BIN_DIR": str(bin_dir), "PATH": os.environ["PATH"]}
    return subprocess.run(
        [sys.executable, "-I", "-m", "tools.backup", "verify", *arguments],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
