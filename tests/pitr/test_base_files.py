"""What describes a base backup, the stream that it comes in, and the chain that the next one can follow."""

from __future__ import annotations

import io
import json
import os
import tarfile
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

import pytest

from portal.ops.archive.index import MemberType
from portal.ops.errors import DumpFailedError, NotIntactError, OpsError
from portal.ops.manifest import Manifest
from portal.ops.model import CLUSTER_VERSION, SUFFIX, BackupId, BackupType, Component
from portal.ops.pitr import look as looking
from portal.ops.pitr.base_chain import BaseParent, FullBaseNeededError, facts_of, find_parent
from portal.ops.pitr.base_manifest import BaseFacts, manifest_faults, read_facts
from portal.ops.pitr.base_stream import BaseStream
from portal.ops.pitr.look import base_of, look
from portal.ops.pitr.replication import ServerSettings, faults, hba_name
from portal.ops.pitr.unpack import unpack_cluster
from portal.ops.pitr.wal_archive import Cluster, WalArchive
from portal.ops.pitr.window import Base
from portal.ops.repository.repository import Repository
from tests.support.fake_runner import FakeProcess, Script
from tests.support.kept import packed, put_sidecar

if TYPE_CHECKING:
    from pathlib import Path

NOON: Final = datetime(2026, 11, 29, 12, tzinfo=UTC)
LABEL: Final = (
    b"START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n"
    b"CHECKPOINT LOCATION: 0/2000060\nSTART TIME: 2026-11-29\nLABEL: base\nSTART TIMELINE: 3\n"
)
RANGES: Final = [{"End-LSN": "0/2000100"}, {"End-LSN": "0/3000000"}, {"End-LSN": "0/2000200"}]
CLUSTER: Final = Cluster(system_identifier="7000", segment_bytes=1 << 20, major=17)
SETTINGS: Final = ServerSettings(
    cluster=CLUSTER,
    version=170000,
    wal_level="replica",
    max_wal_senders=2,
    max_replication_slots=1,
    slot_keep_bytes=0,
    summarizes_wal=True,
)
FACTS: Final[dict[str, Any]] = {
    "bytes": 1000,
    "system_identifier": "7000",
    "timeline": 1,
    "start_lsn": "0/100028",
    "end_lsn": "0/100100",
    "ended": "2026-11-29T14:00:00+02:00",
}


class TestDescription:
    def test_where_it_starts_and_ends(self) -> None:
        """By its label, and the last of the ranges."""
        kept = {"backup_label": LABEL, "backup_manifest": json.dumps({"WAL-Ranges": RANGES}).encode()}
        assert read_facts(kept) == BaseFacts(timeline=3, start_lsn=0x2000028, end_lsn=0x3000000)

    @pytest.mark.parametrize(
        ("label", "manifest"),
        [
            (None, {"WAL-Ranges": RANGES}),
            (b"", {"WAL-Ranges": RANGES}),
            (LABEL.replace(b"START TIMELINE", b"TIMELINE"), {"WAL-Ranges": RANGES}),
            (LABEL.replace(b"START WAL", b"WAL"), {"WAL-Ranges": RANGES}),
            (LABEL, {"WAL-Ranges": []}),
            (LABEL, {}),
            (LABEL, []),
            (LABEL, {"WAL-Ranges": [{"End-LSN": "x"}]}),
        ],
    )
    def test_it_makes_no_sense(self, label: bytes | None, manifest: object) -> None:
        """Then it is no base backup of PostgreSQL's."""
        kept = {"backup_manifest": json.dumps(manifest).encode()}
        with pytest.raises(NotIntactError, match="does not describe itself as PostgreSQL's do"):
            read_facts(kept | ({} if label is None else {"backup_label": label}))

    def test_a_file_that_is_missing(self) -> None:
        """It is the same."""
        with pytest.raises(NotIntactError):
            read_facts({"backup_label": LABEL})


def listed(**changes: Any) -> bytes:
    """A server's list of two files, with its checksum."""
    files = [
        {"Path": "a", "Size": 1, "Checksum-Algorithm": "SHA256", "Checksum": "aa"},
        {"Encoded-Path": "62ff", "Size": 2, "Checksum-Algorithm": "CRC32C", "Checksum": "bb"},
    ]
    body = json.dumps({"Files": files, **changes})[:-1].encode() + b",\n"
    return body + b'"Manifest-Checksum": "' + sha256(body).hexdigest().encode() + b'"}\n'


class TestServersList:
    THERE: Final = {"a": (1, "aa"), "b\udcff": (2, "?"), "backup_manifest": (9, "?")}

    def test_everything_fits(self) -> None:
        """Of a file with another kind of checksum, the size is compared."""
        assert manifest_faults(self.THERE, listed()) == []

    def test_differences(self) -> None:
        """What is missing, what is too much, and what is another, each by its name."""
        wrong = {"a": (1, "ab"), "b\udcff": (3, "?"), "d": (1, ""), "c": (1, "")}
        assert manifest_faults(wrong, listed()) == [
            "c is in the backup and not in backup_manifest",
            "d is in the backup and not in backup_manifest",
            "a is not what backup_manifest says",
            "b\udcff is not what backup_manifest says",
        ]
        assert manifest_faults({}, listed()) == [
            "a is in backup_manifest and not in the backup",
            "b\udcff is in backup_manifest and not in the backup",
        ]
        assert manifest_faults({**self.THERE, "a": (2, "aa")}, listed()) == ["a is not what backup_manifest says"]

    def test_a_list_that_was_changed(self) -> None:
        """It has another checksum than its own."""
        assert manifest_faults(self.THERE, listed().replace(b'"Size": 1', b'"Size": 2')) == [
            "backup_manifest does not have its own checksum"
        ]

    @pytest.mark.parametrize("manifest", [b"", b"{}", b"[]", b'{"Files": 5}', b'{"Files": [{}]}'])
    def test_a_list_that_makes_no_sense(self, manifest: bytes) -> None:
        """It is told."""
        assert manifest_faults({}, manifest) == ["backup_manifest is invalid"]


def stream(script: Script) -> BaseStream:
    return BaseStream(
        process=FakeProcess(script), settings=SETTINGS, superuser="postgres", expected_bytes=1, version="17"
    )


def tar_of(*members: tuple[str, bytes, bytes]) -> bytes:
    """A tar of names with types and contents."""
    packed_tar = io.BytesIO()
    with tarfile.open(fileobj=packed_tar, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.mtime, info.mode, info.uid, info.gid = kind, len(content), 5.5, 0o640, 7, 8
            info.linkname = "elsewhere"
            tar.addfile(info, io.BytesIO(content))
    return packed_tar.getvalue()


class TestStream:
    def test_its_members(self) -> None:
        """Directories, files and links; the two that describe it are kept."""
        data = tar_of(
            ("./base", tarfile.DIRTYPE, b""),
            ("./base/1", tarfile.REGTYPE, b"one"),
            ("backup_label", tarfile.REGTYPE, LABEL),
            ("pg_wal", tarfile.SYMTYPE, b""),
            ("./backup_manifest", tarfile.REGTYPE, b"{}"),
        )
        made = stream(Script(stdout=data + b"rest"))
        found = [(member, content.read()) for member, content in made.members()]
        assert [(one.path, one.type, one.size, content) for one, content in found] == [
            ("data", MemberType.DIRECTORY, 0, b""),
            ("data/base", MemberType.DIRECTORY, 0, b""),
            ("data/base/1", MemberType.FILE, 3, b"one"),
            ("data/backup_label", MemberType.FILE, len(LABEL), LABEL),
            ("data/pg_wal", MemberType.SYMLINK, 0, b""),
            ("data/backup_manifest", MemberType.FILE, 2, b"{}"),
        ]
        assert made.kept == {"backup_label": LABEL, "backup_manifest": b"{}"}
        first, _, file, _, link, _ = (member for member, _ in found)
        assert (file.mode, file.uid, file.gid, file.mtime_ns, file.link) == (0o640, 7, 8, 5_000_000_000, "")
        assert (link.link, first.mode, first.mtime_ns % 1_000_000_000) == ("elsewhere", 0o700, 0)
        assert first.mtime_ns > 1_700_000_000_000_000_000

    @pytest.mark.parametrize(
        ("script", "why"),
        [
            (Script(stdout=tar_of(), stderr="a note\nERROR: refused\nended\n", returncode=1), "ERROR: refused"),
            (Script(stdout=tar_of(), stderr="\nlast words\n\n", returncode=1), "last words"),
            (Script(stdout=tar_of(), returncode=1), "it says nothing"),
            (Script(stdout=b"x" * 1024, stderr="first\nbecause\n"), "because"),
            (
                Script(stdout=tar_of(("pipe", tarfile.FIFOTYPE, b"")), stderr="x"),
                "pipe is neither file, directory nor link",
            ),
        ],
    )
    def test_it_fails(self, script: Script, why: str) -> None:
        """With the program's own error, or its last words, or what is wrong with its output."""
        with pytest.raises(DumpFailedError) as caught:
            list(stream(script).members())
        assert caught.value.message == f"pg_basebackup failed: {why}"
        assert "needs REPLICATION" in caught.value.hint

    def test_output_that_is_no_tar(self) -> None:
        """Where the program says nothing of it, the reader's error is told."""
        with pytest.raises(DumpFailedError, match=r"^pg_basebackup failed: its output is no tar \("):
            list(stream(Script(stdout=b"x" * 1024)).members())

    def test_it_is_ended(self) -> None:
        """Whoever asks for the failure ends the program."""
        made = stream(Script(hangs=True))
        assert made.failure("why").message == "pg_basebackup failed: why"
        assert made.process.returncode is not None


def put_base(
    directory: Path,
    day: int,
    *,
    parent: str | None = None,
    base: str | None = None,
    facts: dict[str, Any] | None = None,
    broken: bool = False,
) -> str:
    """A base backup with a manifest alone, and its sidecar; its name."""
    moment = datetime(2026, 11, day, tzinfo=UTC)
    name = str(BackupId.of(BackupType.BASE, moment, ""))
    following: dict[str, Any] = {}
    if parent:
        digest = sha256((directory / f"{parent}{SUFFIX}").read_bytes()).hexdigest()
        following = {"parent": parent, "parent_sha256": digest, "base": base or parent}
    manifest = Manifest(
        backup_id=name,
        type="base",
        timestamp=moment.isoformat(),
        components=(Component.CLUSTER,),
        hostname="",
        db_name="",
        format_version=CLUSTER_VERSION,
        details={"cluster": FACTS if facts is None else facts},
        **following,
    )
    path = directory / f"{name}{SUFFIX}"
    path.write_bytes(b"broken" if broken else packed(name, manifest.encode()))
    put_sidecar(path)
    return name


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository(tmp_path)
    made.prepare()
    return made


class TestParent:
    def test_the_newest_one(self, repository: Repository) -> None:
        """With its chain; the next one may have half of the full one's bytes."""
        first = put_base(repository.path, 1)
        second = put_base(repository.path, 2, parent=first)
        parent = find_parent(repository)
        assert [one.name for one in parent.line] == [first, second]
        assert (parent.newest.name, parent.full_bytes, parent.most_bytes) == (second, 1000, 500)
        assert parent.expected_bytes == (repository.path / f"{first}{SUFFIX}").stat().st_size // 2
        assert facts_of(parent.newest) == FACTS

    def test_there_is_none(self, repository: Repository) -> None:
        """The first one is a full one."""
        with pytest.raises(FullBaseNeededError, match=r"^there is no base backup yet$"):
            find_parent(repository)

    def test_six_follow_a_full_one(self, repository: Repository) -> None:
        """The seventh does not."""
        names = [put_base(repository.path, 1)]
        for day in range(2, 8):
            assert len(find_parent(repository).line) == day - 1
            names.append(put_base(repository.path, day, parent=names[-1], base=names[0]))
        with pytest.raises(FullBaseNeededError, match=f"^{names[0]} has 6 incremental ones already$"):
            find_parent(repository)

    @pytest.mark.parametrize("facts", [{}, {"bytes": None}, {"bytes": "many"}])
    def test_one_that_does_not_say_how_large_it_is(self, repository: Repository, facts: dict[str, Any]) -> None:
        """It is not followed."""
        name = put_base(repository.path, 1, facts=facts)
        with pytest.raises(FullBaseNeededError, match=f"^the chain of {name} cannot be followed: "):
            find_parent(repository)

    def test_one_that_is_not_intact(self, repository: Repository) -> None:
        """Such as one whose own parent is gone, or is another archive by now."""
        first = put_base(repository.path, 1)
        second = put_base(repository.path, 2, parent=first)
        (repository.path / f"{first}{SUFFIX}").unlink()
        with pytest.raises(FullBaseNeededError, match=f"^{second} is not intact: it needs {first}, which is gone$"):
            find_parent(repository)
        put_base(repository.path, 1, facts={"bytes": 5})
        os.utime(repository.path / f"{first}{SUFFIX}", (0, 0))
        with pytest.raises(FullBaseNeededError, match=f"^the chain of {second} cannot be followed: {first}"):
            find_parent(repository)

    def test_its_list_cannot_be_read(self, repository: Repository) -> None:
        """The server would have nothing to compare with."""
        name = put_base(repository.path, 1)
        parent = find_parent(repository)
        with pytest.raises(FullBaseNeededError):
            parent.server_manifest()
        (repository.path / f"{name}{SUFFIX}").write_bytes(b"no archive at all")
        with pytest.raises(FullBaseNeededError):
            parent.server_manifest()

    @pytest.mark.parametrize(
        ("settings", "why"),
        [
            (replace(SETTINGS, cluster=replace(CLUSTER, major=16)), "PostgreSQL 16 makes full base backups only"),
            (replace(SETTINGS, summarizes_wal=False), "the server does not summarize its WAL (summarize_wal is off)"),
            (
                replace(SETTINGS, cluster=replace(CLUSTER, system_identifier="7001")),
                "the newest base backup is of another cluster",
            ),
        ],
    )
    def test_a_server_that_cannot(self, repository: Repository, settings: ServerSettings, why: str) -> None:
        """The reason is told."""
        put_base(repository.path, 1)
        parent: BaseParent = find_parent(repository)
        parent.check(SETTINGS)
        with pytest.raises(FullBaseNeededError) as caught:
            parent.check(settings)
        assert str(caught.value) == why


class TestLook:
    def test_without_wal(self, repository: Repository) -> None:
        """There is nothing to see."""
        put_base(repository.path, 1)
        found = look(repository)
        assert (found.archive, found.bases, found.spans, found.window, found.state) == (None, (), (), None, {})

    def test_bases_of_the_cluster(self, repository: Repository) -> None:
        """Not those of another, damaged ones or archives of other types; and the window that they open."""
        archive = WalArchive.prepare(repository, CLUSTER)
        name = put_base(repository.path, 1)
        put_base(repository.path, 2, facts={**FACTS, "system_identifier": "7001"})
        put_base(repository.path, 3, broken=True)
        put_base(repository.path, 4, facts={**FACTS, "start_lsn": "x"})
        later = NOON.replace(minute=30)
        archive.take("000000010000000000000001", b"", covered=later, until=None)
        archive.save_state({"received": 5})
        found = look(repository)
        expected = Base(name=name, timeline=1, start_lsn=0x100028, end_lsn=0x100100, ended=NOON)
        assert found.bases == (expected,)
        assert found.archive
        assert found.archive.cluster == CLUSTER
        assert found.window
        assert (found.window.start, found.window.end, len(found.spans)) == (NOON, later, 1)
        assert (found.state, found.replaced) == ({"received": 5}, ())

    def test_facts_that_cannot_be_read(self, repository: Repository) -> None:
        """Such an archive is none."""
        assert base_of(repository.path / "none.tar.gz") is None
        name = put_base(repository.path, 1)
        described = base_of(repository.path / f"{name}{SUFFIX}")
        assert described
        assert described[1] == FACTS
        assert described[0].ended.tzinfo is UTC

    def test_replaced_clusters(self, repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
        """Those that have a base backup, and all while one cannot be read."""
        WalArchive.prepare(repository, CLUSTER)
        for identifier in ("8000", "8001"):
            WalArchive.prepare(repository, replace(CLUSTER, system_identifier=identifier))
        WalArchive.prepare(repository, CLUSTER)
        put_base(repository.path, 1, facts={**FACTS, "system_identifier": "8000"})
        assert {one.system_identifier: one.has_base for one in look(repository).replaced} == {
            "8000": True,
            "8001": False,
        }
        put_base(repository.path, 3, broken=True)
        assert [one.has_base for one in look(repository).replaced] == [True, True]

        def denied(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(looking, "find_replaced", denied)
        with pytest.raises(OpsError, match=f"^cannot read the WAL in {repository.path}/wal"):
            look(repository)


class TestServer:
    def test_settings_that_suffice(self) -> None:
        """To their limits."""
        assert list(faults(SETTINGS)) == []
        assert list(faults(replace(SETTINGS, wal_level="logical"))) == []

    @pytest.mark.parametrize(
        ("changes", "what", "statement"),
        [
            ({"wal_level": "minimal"}, "wal_level is minimal", "SET wal_level = 'replica'"),
            ({"max_wal_senders": 1}, "max_wal_senders is 1; the", "SET max_wal_senders = 10"),
            ({"max_replication_slots": 0}, "max_replication_slots is 0", "SET max_replication_slots = 10"),
            ({"slot_keep_bytes": None}, "max_slot_wal_keep_size is not limited", "max_slot_wal_keep_size = '8GB'"),
        ],
    )
    def test_settings_that_do_not(self, changes: dict[str, Any], what: str, statement: str) -> None:
        """Each with the statement that corrects it."""
        ((fault, mend),) = faults(replace(SETTINGS, **changes))
        assert fault.startswith(what)
        assert statement in mend
        assert mend.startswith("ALTER SYSTEM ")

    @pytest.mark.parametrize(
        ("role", "shown"),
        [
            ("portal", "portal"),
            ("p.o-r_1", "p.o-r_1"),
            ("all", '"all"'),
            ("replication", '"replication"'),
            ("sameuser", '"sameuser"'),
            ("alley", "alley"),
            ('a"b', '"a""b"'),
            ("ä", '"ä"'),
            ("-a", '"-a"'),
        ],
    )
    def test_names_of_roles(self, role: str, shown: str) -> None:
        """In pg_hba.conf, quoted where they would mean something else."""
        assert hba_name(role) == shown


def test_archive_without_a_cluster(tmp_path: Path) -> None:
    """It is no base backup."""
    name = put_base(tmp_path, 1)
    with pytest.raises(NotIntactError, match=rf"^{name}\.tar\.gz holds no cluster\n") as caught:
        unpack_cluster(tmp_path / f"{name}{SUFFIX}", tmp_path / "data", owner=None, jobs=1)
    assert caught.value.hint == "Take another base backup."
