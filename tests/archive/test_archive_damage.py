"""Archives that are not what they were: every change that matters is found and named, and nothing worse happens.

But where a test says otherwise the sidecar is made anew after the damage, so that only the contents can tell.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import threading
import time
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from portal.ops.archive import frame, index, tar
from portal.ops.archive.open import open_archive
from portal.ops.archive.reader import ArchiveReader
from portal.ops.errors import NotIntactError, RepositoryError
from portal.ops.model import VerifyLevel
from portal.ops.verify.verify import Verifier
from tests.support import archives
from tests.support.archives import NAME, Recipe, seal, verify, write_archive
from tests.support.waiting import LONG_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from portal.ops.archive.compressor_pool import CompressorPool
    from portal.ops.repository.verifications import Verification

SHARES = 8


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A small archive of every kind of frame, and what there is to know of it.

    `frames` has for each frame where it starts and ends, and which members have something in it.
    """

    data: bytes
    frames: list[tuple[int, int, set[str]]]
    index_at: int
    meaning: list[tuple[Any, bytes]]

    def write(self, path: Path, data: bytes) -> Path:
        """Write other bytes under the archive's name, with a sidecar that fits."""
        path.write_bytes(data)
        return seal(path)


def meaning(path: Path) -> list[tuple[Any, bytes]]:
    """All that a reader gets from an archive: members with their metadata and contents, and the manifest's bytes."""
    with closing(open_archive(path)) as archive:
        archive.manifest()
        return [(member, b"".join(content)) for member, content in archive.contents(2)]


def frames_of(path: Path) -> list[tuple[int, int, set[str]]]:
    with closing(ArchiveReader(path)) as archive:
        table = archive.frames
        found = [(at, at + length, set[str]()) for at, length in zip(table.offsets, table.lengths, strict=True)]
        for member in archive.members():
            left = len(index.tar_header(member, archives.BACKUP_ID)) + member.size + tar.padding(member.size)
            number, at = member.frame, member.at
            while left > 0:
                found[number][2].add(member.path)
                left -= table.tar_lengths[number] - at
                number, at = number + 1, 0
    return found


@pytest.fixture(scope="module")
def sample(pool: CompressorPool, tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """An archive with a dump, small files, a link, and a large file that compresses to next to nothing."""
    root = tmp_path_factory.mktemp("sample")
    media = root / "uploads"
    (media / "tenant").mkdir(parents=True)
    (media / "tenant" / "scan.json").write_bytes(b'{"finding": 1}\n' * 20)
    (media / "tenant" / "noise").write_bytes(bytes(range(256)))
    (media / "latest").symlink_to("tenant/scan.json")
    (media / "large").write_bytes(bytes(index.FRAME_MAX // 32))
    (root / "dump").write_bytes(b"PGDMP" + bytes(range(200)))
    (root / "audit.jsonl").write_bytes(b'{"event": "login"}\n' * 5)
    recipe = Recipe(media=media, audit=root / "audit.jsonl", dump=root / "dump", manifest_room=1024)
    path = write_archive(root / NAME, pool, recipe)
    with closing(ArchiveReader(path)) as archive:
        index_at = archive.frames.end
    return Sample(data=path.read_bytes(), frames=frames_of(path), index_at=index_at, meaning=meaning(path))


def hit(sample: Sample, position: int) -> set[str]:
    """What a finding has to name, one of it, when that byte is another one."""
    for number, (start, end, members) in enumerate(sample.frames):
        if start <= position < end:
            return {f"frame {number}:", *members}
    return {"index", "does not end as it should", "end of the archive", "last frame"}


def names(found: Verification, hits: set[str]) -> bool:
    return any(hit in str(damage) for damage in found.damages for hit in hits)


def positions(sample: Sample) -> list[int]:
    """All bytes around the data, of the manifest, of the index and of the end; of the data each fifth."""
    around = [at for start, end, _ in sample.frames for at in (*range(start, start + 12), *range(end - 12, end))]
    ends = [*range(*sample.frames[0][:2]), *range(sample.index_at, len(sample.data))]
    return sorted({*around, *ends, *range(0, len(sample.data), 5)})


@pytest.mark.parametrize("change", [0xFF, 0x01, 0x10, 0x80])
@pytest.mark.parametrize("share", range(SHARES))
def test_change_of_any_byte_is_found_and_named(sample: Sample, tmp_path: Path, share: int, change: int) -> None:
    """A change is reported with the file or the frame that it hits; what is not reported has changed nothing."""
    step = 1 if change == 0xFF else 7
    changed = positions(sample)[share :: SHARES * step]
    assert changed
    for position in changed:
        data = sample.data[:position] + bytes([sample.data[position] ^ change]) + sample.data[position + 1 :]
        path = sample.write(tmp_path / NAME, data)
        found = verify(path)
        if found.intact:
            assert meaning(path) == sample.meaning, position
        else:
            assert names(found, hit(sample, position)), (position, found.message)


def test_every_byte_around_the_data_counts(sample: Sample, tmp_path: Path) -> None:
    """No bit of a gzip header, of padding, of a checksum or of a size can change without being found."""
    spans = [(start, start + 10) for start, _, _ in sample.frames] + [(end - 8, end) for _, end, _ in sample.frames]
    first = sample.frames[0][0]
    spans += [(first, sample.data.index(b"\x00", first + 10) + 1), (sample.index_at, sample.index_at + 10)]
    spans += [(len(sample.data) - 40, len(sample.data))]
    assert len(spans) > 5
    assert all(start < end for start, end in spans)
    for start, end in spans:
        for position in range(start, end, 1 if end - start < 50 else 7):
            data = bytearray(sample.data)
            data[position] ^= 1 << position % 8
            assert not verify(sample.write(tmp_path / NAME, bytes(data))).intact, position


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0), change=st.integers(1, 255))
def test_any_change_is_found_by_the_checksum(sample: Sample, tmp_path: Path, position: int, change: int) -> None:
    """With the sidecar that the archive was made with, the lowest level finds every change."""
    path = seal_once(sample, tmp_path)
    data = bytearray(sample.data)
    data[position % len(data)] ^= change
    path.write_bytes(data)
    found = Verifier().verify(path, VerifyLevel.CHECKSUM)
    assert not found.intact
    assert found.level is VerifyLevel.CONTENTS


def seal_once(sample: Sample, directory: Path) -> Path:
    """The archive's path, beside the sidecar that belongs to the undamaged archive."""
    path = directory / NAME
    path.with_name(NAME + ".sha256").write_text(f"{sha256(sample.data).hexdigest()}  {NAME}\n")
    return path


def test_untouched_archive_is_intact(sample: Sample, tmp_path: Path) -> None:
    """What all other tests here start from is whole."""
    assert verify(sample.write(tmp_path / NAME, sample.data)).intact


def refused(path: Path) -> None:
    """Make sure that an archive is reported as damaged, by an error of its own class, at once."""
    started = time.monotonic()
    found = verify(path)
    assert time.monotonic() - started < LONG_SECONDS
    assert not found.intact
    with pytest.raises(NotIntactError) as raised:
        found.raise_damage()
    assert raised.value.exit_code == 4
    with pytest.raises(NotIntactError):
        meaning(path)


def test_cut_at_any_frame_is_found(sample: Sample, tmp_path: Path) -> None:
    """An archive that ends at, before or behind the end of a frame is damaged."""
    ends = [0, *(end for _, end, _ in sample.frames), len(sample.data)]
    lengths = {end + step for end in ends for step in (-1, 0, 1) if 0 <= end + step < len(sample.data)}
    assert len(lengths) > 2 * len(sample.frames) > 0
    for length in sorted(lengths):
        refused(sample.write(tmp_path / NAME, sample.data[:length]))


@pytest.mark.parametrize("lost", [1, 8, 9, 1024, 1059])
def test_lost_end_is_found(sample: Sample, tmp_path: Path, lost: int) -> None:
    """An archive that lacks a piece of its end is damaged."""
    refused(sample.write(tmp_path / NAME, sample.data[:-lost]))


@pytest.mark.parametrize("more", [b"\x00", b"x", bytes(4096), b"noise" * 1000, frame.compress(b"more")])
def test_appended_bytes_are_found(sample: Sample, tmp_path: Path, more: bytes) -> None:
    """Anything behind the end is damage, also what gzip would not mind."""
    refused(sample.write(tmp_path / NAME, sample.data + more))


def test_two_archives_behind_each_other_are_found(sample: Sample, tmp_path: Path) -> None:
    """Two whole archives are not one."""
    refused(sample.write(tmp_path / NAME, sample.data * 2))


def test_swapped_frames_are_found(sample: Sample, tmp_path: Path) -> None:
    """Frames that are whole, but in another order, are damage, whichever two they are."""
    spans = [(start, end) for start, end, _ in sample.frames]
    assert len(spans) > 2
    for number in range(len(spans) - 1):
        (start, middle), (_, end) = spans[number : number + 2]
        if sample.data[start:middle] == sample.data[middle:end]:
            continue
        swapped = sample.data[:start] + sample.data[middle:end] + sample.data[start:middle] + sample.data[end:]
        refused(sample.write(tmp_path / NAME, swapped))


def test_lost_and_doubled_frames_are_found(sample: Sample, tmp_path: Path) -> None:
    """A frame that is missing, or there twice, is damage."""
    assert sample.frames
    for start, end, _ in sample.frames:
        refused(sample.write(tmp_path / NAME, sample.data[:start] + sample.data[end:]))
        refused(sample.write(tmp_path / NAME, sample.data[:end] + sample.data[start:]))


@pytest.fixture(scope="module")
def other(pool: CompressorPool, tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """An archive like the sample, with other contents of the same sizes."""
    root = tmp_path_factory.mktemp("other")
    media = root / "uploads"
    media.mkdir()
    (media / "scan.json").write_bytes(b'{"finding": 2}\n' * 20)
    path = write_archive(root / NAME, pool, Recipe(media=media, manifest_room=1024))
    with closing(ArchiveReader(path)) as archive:
        index_at = archive.frames.end
    return Sample(data=path.read_bytes(), frames=frames_of(path), index_at=index_at, meaning=meaning(path))


def test_index_of_another_archive_is_found(sample: Sample, other: Sample, tmp_path: Path) -> None:
    """An index that describes other frames is damage."""
    refused(sample.write(tmp_path / NAME, sample.data[: sample.index_at] + other.data[other.index_at :]))


def test_manifest_of_another_archive_is_found(sample: Sample, other: Sample, tmp_path: Path) -> None:
    """A manifest frame from another archive, of the same length, is damage."""
    (_, end, _), (_, length, _) = sample.frames[0], other.frames[0]
    assert end == length
    refused(sample.write(tmp_path / NAME, other.data[:length] + sample.data[end:]))


def test_archive_under_another_name_is_looked_at_by_its_contents(sample: Sample, tmp_path: Path) -> None:
    """A renamed archive has no sidecar, and is intact all the same."""
    path = tmp_path / "copy.tar.gz"
    path.write_bytes(sample.data)
    assert verify(path).intact


def test_all_damaged_files_are_named(pool: CompressorPool, tmp_path: Path) -> None:
    """Damage in several frames is reported for each of them: looking goes on behind the first."""
    media = tmp_path / "uploads"
    media.mkdir()
    for name in "abcd":
        (media / name).write_bytes(os.urandom(1 << 20))
    path = write_archive(tmp_path / NAME, pool, Recipe(media=media))
    data = bytearray(path.read_bytes())
    for start, end, members in frames_of(path):
        if members & {"media/b", "media/d"}:
            data[(start + end) // 2] ^= 0xFF
    path.write_bytes(data)
    found = verify(seal(path))
    assert {damage.path for damage in found.damages} == {"media/b", "media/d"}
    assert found.files == 2


def test_deeply_damaged_archive_has_a_bounded_report(pool: CompressorPool, tmp_path: Path) -> None:
    """However much is broken, the report does not grow without end."""
    media = tmp_path / "uploads"
    media.mkdir()
    for number in range(500):
        (media / f"{number}").write_bytes(b"x" * 3000)
    path = write_archive(tmp_path / NAME, pool, Recipe(media=media))
    data = bytearray(path.read_bytes())
    for start, end, _ in frames_of(path)[1:]:
        data[(start + end) // 2] ^= 0xFF
    path.write_bytes(data)
    assert 0 < len(verify(seal(path)).damages) <= 102


# -- indexes that a person with bad intentions wrote: every checksum is right ----------------------------------------


def forged(sample: Sample, change: Callable[[list[dict[str, Any]]], object]) -> bytes:
    """The sample with another index: its lines as JSON, changed, and put back with everything that belongs around."""
    lines = [line for line in index_lines(sample) if line]
    documents = [json.loads(line) for line in lines]
    change(documents)
    return sample.data[: sample.index_at] + index_frames(sample, "\n".join(map(json.dumps, documents)).encode() + b"\n")


def index_lines(sample: Sample) -> list[bytes]:
    with_header = gzip.decompress(sample.data[sample.index_at :])
    size = int(with_header[124:135], 8)
    return with_header[tar.BLOCK : tar.BLOCK + size].split(b"\n")


def index_frames(sample: Sample, text: bytes) -> bytes:
    member = index.Member(index.NAME, index.MemberType.FILE, len(text), mtime_ns=archives.MTIME_NS)
    body = index.tar_header(member, archives.BACKUP_ID) + text + bytes(tar.padding(len(text)))
    end = frame.with_extra(tar.END_OF_ARCHIVE, index.TRAILER_ID, index.TRAILER.pack(sample.index_at))
    return frame.compress(body) + end


def test_index_that_was_put_back_unchanged_is_intact(sample: Sample, tmp_path: Path) -> None:
    """What the forgeries below start from is whole."""
    assert verify(sample.write(tmp_path / NAME, forged(sample, lambda _: None))).intact


def setting(number: int, field: str, value: object) -> Callable[[list[dict[str, Any]]], object]:
    """A change of one field of one line."""
    return lambda lines: lines[number].update({field: value})


NUMBERS: list[object] = [-1, 2**31, 2**63, 2**64, 2**200, 1.5, 1e308, float("inf"), float("nan")]
VALUES: list[object] = [*NUMBERS, "1", "\ud800", "x\x00y", None, True, [], {}]


@pytest.mark.parametrize("field", ["index_version", "backup_id", "frames", "members"])
def test_first_line_with_a_wrong_value_is_refused(sample: Sample, tmp_path: Path, field: str) -> None:
    """Whatever the first line says instead of what it should, the answer is a refusal."""
    for value in VALUES:
        if sample_value(sample, 0, field) != value:
            refused(sample.write(tmp_path / NAME, forged(sample, setting(0, field, value))))


def sample_value(sample: Sample, line: int, field: str) -> object:
    return json.loads(index_lines(sample)[line]).get(field)


@pytest.mark.parametrize("field", ["offset", "length", "tar_length"])
def test_frame_with_a_wrong_value_is_refused(sample: Sample, tmp_path: Path, field: str) -> None:
    """Whatever the table says of a frame instead of what it should, the answer is a refusal."""
    for value in VALUES:
        refused(sample.write(tmp_path / NAME, forged(sample, setting(2, field, value))))


@pytest.mark.parametrize("field", ["frame", "at", "path", "type", "mode", "uid", "gid", "mtime_ns", "size", "sha256"])
def test_member_with_a_wrong_value_is_refused(sample: Sample, tmp_path: Path, field: str) -> None:
    """Whatever the index says of a file instead of what it should, the answer is a refusal."""
    number = next(i for i, line in enumerate(index_lines(sample)) if b'"media/tenant/scan.json"' in line)
    for value in VALUES:
        refused(sample.write(tmp_path / NAME, forged(sample, setting(number, field, value))))


@pytest.mark.parametrize("line", [0, 1, -1])
@pytest.mark.parametrize("value", ["null", "[]", "1", '"text"', "{}", "", "{", "[" * 50_000, "1" * 5000])
def test_line_that_is_none_is_refused(sample: Sample, tmp_path: Path, line: int, value: str) -> None:
    """A line that is not an object, or not JSON, is damage, and nothing worse."""
    lines = [line.decode() for line in index_lines(sample) if line]
    lines[line] = value
    data = sample.data[: sample.index_at] + index_frames(sample, "\n".join(lines).encode() + b"\n")
    refused(sample.write(tmp_path / NAME, data))


def test_index_without_line_ends_is_refused_without_keeping_it(sample: Sample, tmp_path: Path) -> None:
    """An index that inflates to one endless line is refused early."""
    data = sample.data[: sample.index_at] + index_frames(sample, b"x" * (64 << 20))
    refused(sample.write(tmp_path / NAME, data))


@pytest.mark.parametrize("start", [0, 1, 2**63, 2**64 - 1])
def test_index_that_lies_elsewhere_is_refused(sample: Sample, tmp_path: Path, start: int) -> None:
    """An end that points to where no index is, inside the file or out of it, is damage."""
    end = frame.with_extra(tar.END_OF_ARCHIVE, index.TRAILER_ID, index.TRAILER.pack(start))
    refused(sample.write(tmp_path / NAME, sample.data[: -len(end)] + end))


def test_members_are_hashed_once_and_by_whoever_is_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files in their turn, larger ones where their frame is decompressed, those of many frames by a thread."""
    tree = tmp_path / "tree"
    tree.mkdir()
    sizes = {"empty": 0, "small": 1000, "large": 100_000, "middle": 3_000_000, "spanning": 6_000_000}
    for name, size in sizes.items():
        (tree / name).write_bytes(random.Random(name).randbytes(size))
    with archives.compressor_pool() as two:
        path = write_archive(tmp_path / NAME, two, Recipe(media=tree))
    hashed: dict[str, int] = defaultdict(int)

    class Counting:
        """SHA-256 that notes which thread has made it of how much."""

        def __init__(self, data: bytes = b"") -> None:
            self._digest = sha256()
            self.update(data)

        def update(self, data: bytes) -> None:
            hashed[threading.current_thread().name.partition("_")[0]] += len(data)
            self._digest.update(data)

        def hexdigest(self) -> str:
            return self._digest.hexdigest()

    monkeypatch.setattr("portal.ops.archive.read_ahead.sha256", Counting)
    with closing(ArchiveReader(path)) as archive:
        for _, content in archive.contents(2, below="media"):
            for _ in content:
                pass
    assert hashed == {"MainThread": 3_001_000, "inflate": 100_000, "hash": 6_000_000}


def test_directory_is_no_damaged_archive(tmp_path: Path) -> None:
    """A directory in the archive's place is an error of the repository, not a damaged archive."""
    (tmp_path / NAME).mkdir()
    with pytest.raises(RepositoryError):
        verify(tmp_path / NAME)
