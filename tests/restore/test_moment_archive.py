"""The uploads of a moment: the newest archive that was complete, and what later ones add."""

from __future__ import annotations

import os
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.errors import ConfigurationError, NotIntactError
from portal.ops.model import BackupType, Component
from portal.ops.pitr.plan import OutsideWindowError
from portal.ops.restore.config import RestoreConfig, RestoreScope
from portal.ops.restore.moment import MomentArchive, MomentChoice, choose_moment
from tests.support.archives import MTIME_NS
from tests.support.histories import NOW, History
from tests.support.hostile import directory, file, write_chained, write_plain

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.hostile import Piece

SECOND = 1_000_000_000
NAMES = [f"media_2024011{number}_120000_abc123" for number in range(5, 9)]
MOMENT = datetime.fromtimestamp(MTIME_NS // SECOND + 1000, UTC)
AT = MTIME_NS + 1000 * SECOND


def at(seconds: float, path: str, content: bytes = b"later") -> Piece:
    """A file that was written so long after the moment."""
    return file(f"media/{path}", content, ctime_ns=AT + round(seconds * SECOND))


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """An archive whose uploads were read a thousand seconds before the moment."""
    pieces = [directory("media"), file("media/a", b"first"), file("media/b", b"second"), file("audit/log")]
    return write_chained(tmp_path, NAMES[0], pieces)


def choice(media: Path | None, *later: Path, **changes: Any) -> MomentChoice:
    facts: dict[str, Any] = {"text": "then", "moment": MOMENT, "ahead": timedelta(), "recovery": None}
    return MomentChoice(media=media, later=later, **(facts | changes))


def contents(archive: MomentArchive, below: str | None = None) -> dict[str, bytes]:
    return {member.path: b"".join(content) for member, content in archive.contents(1, below=below)}


class TestArchive:
    """What is read of them."""

    def test_what_existed_at_the_moment_is_added(self, tmp_path: Path, media: Path) -> None:
        """By the clock of the files, to the second; nothing that the archive has, nor a name twice."""
        one = write_chained(
            tmp_path,
            NAMES[1],
            [directory("media"), at(-5, "new"), at(-5, "a", b"changed"), at(1, "in time"), at(1.1, "late")],
        )
        other = write_chained(
            tmp_path,
            NAMES[2],
            [at(-3, "new", b"again"), at(-1000, "as it was read"), at(-1000.1, "before"), file("audit/x")],
        )
        with closing(MomentArchive(choice(media, one, other))) as archive:
            found = contents(archive)
            assert found == {
                "media": b"",
                "media/a": b"first",
                "media/b": b"second",
                "media/new": b"later",
                "media/in time": b"later",
                "media/as it was read": b"later",
            }
            assert [member.path for member in archive.members()] == list(found)
            manifest = archive.manifest()
            assert (manifest.components, manifest.backup_id) == ((Component.MEDIA,), "2024-01-15 12:16:40 UTC")
            assert manifest.timestamp == "2024-01-15T12:16:40Z"
            assert manifest.details["media"]["files"] == 3  # this archive's manifest does not say how many it has
            assert (archive.has_index, archive.path) == (True, media)

    def test_clocks_differ(self, tmp_path: Path, media: Path) -> None:
        """The moment is the server's, the times of files are ours."""
        later = write_chained(tmp_path, NAMES[1], [at(-9, "new")])
        for ahead, is_there in ((10, True), (11, False)):
            with closing(MomentArchive(choice(media, later, ahead=timedelta(seconds=ahead)))) as archive:
                assert ("media/new" in contents(archive)) is is_there

    def test_one_by_one(self, tmp_path: Path, media: Path) -> None:
        """Each file is found and read where it is."""
        later = write_chained(tmp_path, NAMES[1], [at(-5, "new"), at(-5, "d/x")])
        with closing(MomentArchive(choice(media, later))) as archive:
            for path, content in (("media/a", b"first"), ("media/new", b"later")):
                member = archive.find(path)
                assert member is not None
                assert b"".join(archive.extract(member)) == content
            assert archive.find("media/x") is None
            layers = []
            for layer in archive.layers():
                held = [member.path for member in layer.archive.members() if layer.holds(member.path)]
                layers.append((layer.most, [path for path in held if path.startswith("media/")]))
            assert layers == [(5, ["media/a", "media/b"]), (2, ["media/new", "media/d/x"])]
            assert contents(archive, "media/d") == {"media/d/x": b"later"}
            assert contents(archive, "media/b") == {"media/b": b"second"}

    def test_an_archive_without_an_index(self, tmp_path: Path) -> None:
        """It is read through, and later ones are not looked at, since nothing says what it has."""
        plain = write_plain(tmp_path, [file("media/a", b"first")], lambda _: None)
        later = write_chained(tmp_path, NAMES[1], [at(-5, "new")])
        with closing(MomentArchive(choice(plain, later))) as archive:
            assert contents(archive) == {"media": b"", "media/a": b"first"}
            assert not archive.has_index
            with pytest.raises(NotIntactError, match="has no index"):
                archive.find("media/a")

    def test_a_later_archive_without_an_index(self, tmp_path: Path, media: Path) -> None:
        """One by tar and gzip is passed over: nothing says when the files in it came."""
        plain = write_plain(tmp_path, [directory("media"), at(-5, "new")], lambda _: None)
        with closing(MomentArchive(choice(media, plain))) as archive:
            assert contents(archive) == {"media": b"", "media/a": b"first", "media/b": b"second"}

    def test_without_uploads(self) -> None:
        """There is nothing to read."""
        found = choice(None)
        assert (found.needed, found.lines()) == ((), [])

    def test_a_damaged_one_leaves_nothing_open(self, tmp_path: Path, media: Path) -> None:
        """Whatever was opened before it."""
        bad = tmp_path / "bad.tar.gz"
        bad.write_bytes(media.read_bytes()[:-100])
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(NotIntactError):
            MomentArchive(choice(media, bad))
        assert len(os.listdir("/proc/self/fd")) == before


class TestChoice:
    """Which archives they are."""

    @pytest.fixture
    def history(self, tmp_path: Path) -> History:
        """Full, database and media archives, complete five minutes after they were begun."""
        made = History(path=tmp_path / "archives")
        for kind, hours in (
            (BackupType.FULL, 9),
            (BackupType.MEDIA, 6),
            (BackupType.DATABASE, 5),
            (BackupType.MEDIA, 3),
        ):
            name = made.archive(kind, timedelta(hours=hours))
            complete = (NOW - timedelta(hours=hours) + timedelta(minutes=5)).timestamp()
            os.utime(made.path / f"{name}.tar.gz", (complete, complete))
        return made

    def chosen(
        self, history: History, text: str, scope: RestoreScope = RestoreScope.MEDIA, **config: Any
    ) -> MomentChoice:
        """What is chosen."""
        options: dict[str, Any] = {"local_path": history.path, "media_path": "/uploads"}
        return choose_moment(history.repository, RestoreConfig(**(options | config)), scope, text, NOW)

    @pytest.mark.parametrize(
        ("minutes", "media", "later"),
        [
            (9 * 60 - 5, "full", ["media"]),
            (6 * 60, "full", ["media", "media"]),
            (6 * 60 - 4, "full", ["media", "media"]),
            (6 * 60 - 5, "media", ["media"]),
            (3 * 60 - 5, "media", []),
            (1, "media", []),
        ],
    )
    def test_the_newest_that_was_complete(self, history: History, minutes: int, media: str, later: list[str]) -> None:
        """And those after it, up to the first that was begun after the moment."""
        found = self.chosen(history, f"{minutes} minutes ago")
        assert found.media is not None
        assert found.media.name.startswith(media)
        assert [path.name.partition("_")[0] for path in found.later] == later
        assert found.moment == NOW - timedelta(minutes=minutes)
        assert found.needed == (found.media, *found.later)
        assert (found.recovery, found.with_audit, found.ahead) == (None, False, timedelta())

    def test_the_latest_needs_no_others(self, history: History) -> None:
        """It is as of now."""
        found = self.chosen(history, "latest")
        assert (found.later, found.moment, found.name) == ((), NOW, "2026-11-22 12:30:00 UTC")
        assert found.media_complete == NOW - timedelta(hours=2, minutes=55)
        assert [line[:24] for line in found.lines()] == ["Uploads: those of media_"]
        assert found.lines()[0].endswith(", complete at 2026-11-22 09:35:00+00:00")

    def test_what_is_told(self, history: History) -> None:
        """The archives by name, and what happens to a log."""
        found = self.chosen(history, "360 minutes ago")
        first, second = (path.name.removesuffix(".tar.gz") for path in found.later)
        assert found.lines()[1:] == [f"And those that existed by the moment from {first}, {second}"]
        with_audit = choice(None, with_audit=True)
        assert with_audit.lines() == [
            "The audit log stays as it is: it only grows, and what came after the moment is evidence"
        ]

    def test_none_is_old_enough(self, history: History) -> None:
        """The oldest is named, if there is any."""
        with pytest.raises(OutsideWindowError, match="the oldest one is of 2026-11-22 03:35:00 UTC"):
            self.chosen(history, "10 hours ago")
        for path in history.path.glob("*.tar.gz*"):
            if not path.name.startswith("database"):
                path.unlink()
        with pytest.raises(OutsideWindowError, match="as old as that moment\n"):
            self.chosen(history, "latest")

    def test_uploads_alone_bring_no_audit_log(self, history: History) -> None:
        """Also where it has a place."""
        assert not self.chosen(history, "latest", audit_log_path="/audit").with_audit

    def test_one_whose_chain_is_broken_is_passed_over(self, history: History) -> None:
        """It could not be restored."""
        history.archive(BackupType.MEDIA, timedelta(hours=1), parent="media_20200101_000000_abc123")
        assert self.chosen(history, "latest").media_complete == NOW - timedelta(hours=2, minutes=55)

    def test_what_is_no_question_of_a_moment(self, history: History, tmp_path: Path) -> None:
        """A log; uploads that have no place; a repository that is not there."""
        with pytest.raises(ConfigurationError, match="an audit log is not restored to a moment"):
            self.chosen(history, "latest", RestoreScope.AUDIT_LOGS)
        with pytest.raises(ConfigurationError, match="there is no place for uploads"):
            self.chosen(history, "latest", media_path=None)
        with pytest.raises(ConfigurationError, match="is no moment"):
            self.chosen(history, "soon")
