"""Makes the golden archives; run once for each format, never again for an old one: `python -m tests.golden.make`.

The dump is a real one, of a database with two tables, by the pg_dump of the embedded server.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Final

from portal.ops.archive.reader import ArchiveReader
from portal.ops.backup import BackupConfig, BackupJob
from portal.ops.repository import sidecar_of
from tests.archives import program
from tools.demo.postgres import EmbeddedPostgres

HERE: Final = Path(__file__).parent
MOMENT: Final = datetime(2024, 1, 15, 12, tzinfo=UTC)
_TIME_NS: Final = 1_705_319_999_123_456_789
_TABLES: Final = """
    CREATE TABLE finding (id integer PRIMARY KEY, title text NOT NULL, severity text NOT NULL);
    INSERT INTO finding SELECT n, 'Finding ' || n, 'High' FROM generate_series(1, 50) AS n;
    CREATE TABLE product (id integer PRIMARY KEY, name text NOT NULL);
    INSERT INTO product VALUES (1, 'Portal'), (2, 'Prüfung');
"""


def main() -> None:
    """Make the portal, its archives, and the damaged copies."""
    with tempfile.TemporaryDirectory() as directory, EmbeddedPostgres(unsafe_speed=True) as server:
        root = Path(directory)
        make_files(root)
        with server.connect() as connection:
            connection.execute("CREATE DATABASE defectdojo")
        with server.connect("defectdojo") as connection:
            connection.execute(_TABLES)
        address = server.superuser("defectdojo")
        config = BackupConfig(
            local_path=root / "backups",
            db_host=address.host,
            db_port=address.port,
            db_user=address.user,
            db_password=address.password,
            media_path=root / "uploads",
            audit_log_path=root / "audit",
            pg_bin_dir=server.bin_dir,
        )
        result = BackupJob(config).backup_full(moment=MOMENT, request_id="golden")
        assert result.success, result.error
        made = Path(result.destination_path)
        indexed = HERE / made.name
        for source, target in ((made, indexed), (sidecar_of(made), sidecar_of(indexed))):
            target.write_bytes(source.read_bytes())
        make_plain(indexed, root)
    damage(indexed)


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
    archive = ArchiveReader(indexed)
    for name, path, further in (
        ("flipped-media", "media/tenant-1/large.sarif", 1),
        ("flipped-dump", "database.sql", 1),
    ):
        member = archive.find(path)
        assert member is not None
        at = archive.frames.offsets[member.frame + further] + archive.frames.lengths[member.frame + further] // 2
        (HERE / f"{name}.tar.gz").write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
    archive.close()
    (HERE / "cut.tar.gz").write_bytes(data[: len(data) * 2 // 3])


if __name__ == "__main__":
    main()
