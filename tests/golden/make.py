"""Makes the golden archives; run once for each format, never again for an old one.

`python -m tests.golden.make 1` made those of format 1, `python -m tests.golden.make 2` the chain of format 2,
`python -m tests.golden.make 4` the full backup that follows another, of format 4,
`python -m tests.golden.make extended` the archive with an index of version 2.
The dump is a real one, of a database with two tables, by the pg_dump of the embedded server.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Final

from demo.postgres import EmbeddedPostgres
from portal.ops.archive.reader import ArchiveReader
from portal.ops.backup.job import BackupConfig, BackupJob
from portal.ops.repository.sidecar import sidecar_of
from tests.support.archives import program

HERE: Final = Path(__file__).parent
MOMENT: Final = datetime(2024, 1, 15, 12, tzinfo=UTC)
ACCESS_LIST: Final = bytes.fromhex(
    "0200000001000600ffffffff02000600d204000004000400ffffffff10000600ffffffff20000000ffffffff"
)
"""Version 2; the owner may read and write, user 1234 too, the group read, others nothing."""

_TIME_NS: Final = 1_705_319_999_123_456_789
_TABLES: Final = """
    CREATE TABLE finding (id integer PRIMARY KEY, title text NOT NULL, severity text NOT NULL);
    INSERT INTO finding SELECT n, 'Finding ' || n, 'High' FROM generate_series(1, 50) AS n;
    CREATE TABLE product (id integer PRIMARY KEY, name text NOT NULL);
    INSERT INTO product VALUES (1, 'Portal'), (2, 'Prüfung');
"""


def main() -> None:
    """Make the archives of one format."""
    {"1": make_whole, "2": make_chain, "4": make_chained_full, "extended": make_extended}[sys.argv[1]]()


def make_chain() -> None:
    """Make a base and two incrementals, and a damaged copy of the first of these."""
    place = HERE / "chain"
    place.mkdir()
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        make_files(root)
        job = BackupJob(BackupConfig(local_path=place, media_path=root / "uploads"))
        tenant = root / "uploads" / "tenant-1"
        made = []
        for number, change in enumerate((None, _change_first, _change_second)):
            if change:
                change(tenant)
            for path in (tenant, tenant / "empty"):
                os.utime(path, ns=(0, _TIME_NS))
            moment = MOMENT + timedelta(hours=number)
            result = job.backup_media(incremental=True, moment=moment, request_id="golden")
            assert result.success, result.error
            made.append(Path(result.destination_path))
    _flip(made[1], "media/tenant-1/scan.json", HERE / "flipped-incremental.tar.gz", further=0)
    shutil.rmtree(place / ".cache")
    for lock in place.glob(".*lock"):
        lock.unlink()


def make_chained_full() -> None:
    """Make a complete full backup, and one that follows it."""
    place = HERE / "chained"
    place.mkdir()
    with tempfile.TemporaryDirectory() as directory, EmbeddedPostgres() as server:
        root = Path(directory)
        make_files(root)
        (root / "uploads" / "tenant-1" / "large.sarif").unlink()
        server.create_database("defectdojo")
        with server.connect("defectdojo") as connection:
            connection.execute(_TABLES)
        config = replace(config_of(root, server), local_path=place, full_uploads="chain")
        for number, change in enumerate((None, _change_first)):
            if change:
                change(root / "uploads" / "tenant-1")
                with server.connect("defectdojo") as connection:
                    connection.execute("DELETE FROM finding WHERE id > 40")
            moment = MOMENT + timedelta(days=number)
            result = BackupJob(config).backup_full(moment=moment, request_id="golden")
            assert result.success, result.error
    shutil.rmtree(place / ".cache")
    for other in place.glob(".*"):
        other.unlink()


def make_extended() -> None:
    """Make an archive with extended attributes, an access list, holes, and times far away."""
    place = HERE / "extended"
    place.mkdir()
    with tempfile.TemporaryDirectory() as directory:
        tenant = Path(directory) / "uploads" / "tenant-1"
        tenant.mkdir(parents=True)
        (tenant / "scan.json").write_bytes(b'{"finding": "XSS"}\n')
        os.setxattr(tenant / "scan.json", "user.origin=100%", b"scanner\0\xff")
        os.setxattr(tenant / "scan.json", "system.posix_acl_access", ACCESS_LIST)
        os.setxattr(tenant, "user.tenant", b"1")
        with (tenant / ("image-" * 20)).open("wb") as file:
            file.truncate(1 << 32)
            for at in (1 << 20, 3 << 30):
                file.seek(at)
                file.write(b"data" * 2000)
        for name, time_ns in (("old", -1_999_999_999_000_000_001), ("far", 10_413_792_000_000_000_000)):
            (tenant / name).write_bytes(name.encode())
            os.utime(tenant / name, ns=(0, time_ns))
        result = BackupJob(BackupConfig(local_path=place, media_path=tenant.parent)).backup_media(
            moment=MOMENT, request_id="golden"
        )
        assert result.success, result.error
    shutil.rmtree(place / ".cache", ignore_errors=True)
    for other in place.glob(".*"):
        other.unlink()


def _change_first(tenant: Path) -> None:
    """A file that is changed under two names, one that is new, one that is gone."""
    (tenant / "scan.json").write_bytes(b'{"finding": "XSS", "severity": "Medium"}\n' * 20)
    (tenant / "new.json").write_bytes(b"new")
    (tenant / ("long-" * 40)).unlink()
    for name in ("scan.json", "new.json"):
        (tenant / name).chmod(0o600)
        os.utime(tenant / name, ns=(0, _TIME_NS + 1_000_000_000))


def _change_second(tenant: Path) -> None:
    """A directory that becomes a file, a file that becomes a directory, a name that goes, a symlink that changes."""
    (tenant / "empty").rmdir()
    (tenant / "empty").write_bytes(b"a file now")
    (tenant / "new.json").unlink()
    (tenant / "new.json").mkdir()
    (tenant / "empty").rename(tenant / "new.json" / "moved")
    (tenant / "empty").mkdir()
    (tenant / "second-name.json").unlink()
    (tenant / "latest").unlink()
    (tenant / "latest").symlink_to("new.json")
    for path in (tenant / "new.json" / "moved", tenant / "new.json", tenant / "empty", tenant / "latest"):
        if not path.is_symlink():
            path.chmod(0o700 if path.is_dir() else 0o600)
        os.utime(path, ns=(0, _TIME_NS), follow_symlinks=False)


def make_whole() -> None:
    """Make the portal, its archives, and the damaged copies."""
    with tempfile.TemporaryDirectory() as directory, EmbeddedPostgres(unsafe_speed=True) as server:
        root = Path(directory)
        make_files(root)
        with server.connect() as connection:
            connection.execute("CREATE DATABASE defectdojo")
        with server.connect("defectdojo") as connection:
            connection.execute(_TABLES)
        result = BackupJob(config_of(root, server)).backup_full(moment=MOMENT, request_id="golden")
        assert result.success, result.error
        made = Path(result.destination_path)
        indexed = HERE / made.name
        for source, target in ((made, indexed), (sidecar_of(made), sidecar_of(indexed))):
            target.write_bytes(source.read_bytes())
        make_plain(indexed, root)
    damage(indexed)


def config_of(root: Path, server: EmbeddedPostgres) -> BackupConfig:
    """How the golden portal is backed up."""
    address = server.superuser("defectdojo")
    return BackupConfig(
        local_path=root / "backups",
        db_host=address.host,
        db_port=address.port,
        db_user=address.user,
        db_password=address.password,
        media_path=root / "uploads",
        audit_log_path=root / "audit",
        pg_bin_dir=server.bin_dir,
    )


def make_files(root: Path) -> None:
    """Make uploads and audit log, with everything that an archive can hold."""
    tenant = root / "uploads" / "tenant-1"
    tenant.mkdir(parents=True)
    (tenant / "empty").mkdir()
    (tenant / "scan.json").write_bytes(b'{"finding": "SQL injection", "severity": "High"}\n' * 30)
    os.link(tenant / "scan.json", tenant / "second-name.json")
    (tenant / "latest").symlink_to("scan.json")
    (tenant / ("long-" * 40)).write_bytes(b"long")
    Path(os.fsdecode(os.fsencode(tenant) + b"/not-\xff-text")).write_bytes(b"bytes")
    (tenant / "large.sarif").write_bytes(b"0123456789abcdef" * (160 << 10))
    (root / "audit").mkdir()
    (root / "audit" / "audit.jsonl").write_bytes(b'{"event": "login", "hash": "0"}\n' * 40)
    for path in sorted(root.rglob("*"), reverse=True):
        if not path.is_symlink():
            path.chmod(0o700 if path.is_dir() else 0o600)
        os.utime(path, ns=(0, _TIME_NS), follow_symlinks=False)


def make_plain(indexed: Path, root: Path) -> None:
    """Make what the portal's first script would have made of the same portal: one call of tar, the seven keys."""
    with_index = indexed.name.removesuffix(".tar.gz")
    work = root / "work"
    work.mkdir()
    subprocess.run([program("tar"), "-xpzf", indexed, "-C", work], check=True)
    (work / with_index / "index.jsonl").unlink()
    keys = '"type": "full", "timestamp": "2024-01-15T12:00:00Z", "format_version": 1, "hostname": "portal-server"'
    name = "full_20240115_120000_bbbbbb"
    (work / with_index).rename(work / name)
    (work / name / "manifest.json").write_text(
        f'{{"backup_id": "{name}", {keys}, "db_name": "defectdojo",'
        ' "components": ["database", "media", "audit_logs"]}\n'
    )
    plain = HERE / f"{name}.tar.gz"
    options = ["--sort=name", "--owner=0", "--group=0", "--numeric-owner"]
    subprocess.run([program("tar"), "-C", work, *options, "-czf", plain, name], check=True)
    sidecar_of(plain).write_text(f"{sha256(plain.read_bytes()).hexdigest()}  {plain.name}\n")


def damage(indexed: Path) -> None:
    """Make the damaged copies: a byte of the large file, one of the dump, and a lost end."""
    data = indexed.read_bytes()
    _flip(indexed, "media/tenant-1/large.sarif", HERE / "flipped-media.tar.gz", further=1)
    _flip(indexed, "database.sql", HERE / "flipped-dump.tar.gz", further=1)
    (HERE / "cut.tar.gz").write_bytes(data[: len(data) * 2 // 3])


def _flip(archive: Path, path: str, target: Path, *, further: int) -> None:
    """Change a byte in the frame of a file, or in one behind it."""
    data = archive.read_bytes()
    reader = ArchiveReader(archive)
    member = reader.find(path)
    assert member is not None
    number = member.frame + further
    at = reader.frames.offsets[number] + reader.frames.lengths[number] // 2
    reader.close()
    target.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])


if __name__ == "__main__":
    main()
