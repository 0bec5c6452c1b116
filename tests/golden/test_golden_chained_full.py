"""A full backup of format 4, which follows another, is verified and read for ever, and by tar as well."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from portal.ops.chains.reader import ChainReader, open_tree
from portal.ops.model import CHAINED_VERSION, VerifyLevel
from portal.ops.postgres.dump_format import dump_major
from portal.ops.verify.verify import Verifier
from tests.support.archives import program
from tests.support.incrementals import tree_of_chain

if TYPE_CHECKING:
    from demo.postgres import EmbeddedPostgres

GOLDEN = Path(__file__).parent / "chained"
BASE, LAST = (f"full_202401{day}_120000_dd56de" for day in (15, 16))
ARCHIVES = {
    BASE: "73c3c004f4f74ff16378438c877db0aafaf268be4a2ae4b299ff79a34fbeb8e0",
    LAST: "17ca0a35e0e59e7411770c413cef19a779cb45f1138dd0e6029e445b33822343",
}
AFTER = sha256(b'{"finding": "XSS", "severity": "Medium"}\n' * 20).hexdigest()
UPLOADS = {
    b"tenant-1/scan.json": AFTER,
    b"tenant-1/second-name.json": AFTER,
    b"tenant-1/new.json": sha256(b"new").hexdigest(),
    b"tenant-1/not-\xff-text": sha256(b"bytes").hexdigest(),
}


def path_of(name: str) -> Path:
    return GOLDEN / f"{name}.tar.gz"


@pytest.mark.parametrize("name", ARCHIVES)
def test_the_archives_are_those_that_were_made(name: str) -> None:
    """Nobody made them again."""
    assert sha256(path_of(name).read_bytes()).hexdigest() == ARCHIVES[name]


@pytest.mark.parametrize("name", ARCHIVES)
def test_they_are_intact(name: str, postgres: EmbeddedPostgres) -> None:
    """To the end of their dumps."""
    found = Verifier(jobs=2, pg_bin_dir=postgres.bin_dir).verify(path_of(name), VerifyLevel.DUMP)
    assert found.intact, found.message


def test_the_portal_of_that_moment() -> None:
    """The uploads by way of the base, the database and the audit log of the archive itself."""
    tree = tree_of_chain(path_of(LAST))
    assert {path: entry.content for path, entry in tree.items() if path in UPLOADS} == UPLOADS
    assert os.fsencode("tenant-1/" + "long-" * 40) not in tree
    with closing(open_tree(path_of(LAST))) as archive:
        assert isinstance(archive, ChainReader)
        manifest = archive.manifest()
        assert (manifest.format_version, manifest.parent, manifest.base) == (CHAINED_VERSION, BASE, BASE)
        assert manifest.details["database"]["rows"]["public.finding"] == 40
        dump = archive.find("database.sql")
        audit = archive.find("audit/audit.jsonl")
        assert dump
        assert audit
        assert dump_major(next(archive.extract(dump))[:200].tobytes()) == 17
        assert sum(map(len, archive.extract(audit))) == audit.size


def test_tar_alone_puts_it_together(tmp_path: Path) -> None:
    """Unpack the base, remove what is listed, unpack the last one on top."""
    for name in (BASE, LAST):
        if name == LAST:
            listed = subprocess.run(
                [program("tar"), "xzOf", path_of(LAST), f"{LAST}/deleted.jsonl"], capture_output=True, check=True
            ).stdout
            for line in listed.splitlines():
                (tmp_path / json.loads(line)["path"]).unlink()
        subprocess.run([program("tar"), "xzf", path_of(name), "-C", tmp_path, "--strip-components=1"], check=True)
    found = {
        os.fsencode(path.relative_to(tmp_path / "media")): sha256(path.read_bytes()).hexdigest()
        for path in (tmp_path / "media").rglob("*")
        if path.is_file() and not path.is_symlink()
    }
    assert found == UPLOADS
