"""The report: everything is in it, nothing is fetched, and a browser shows it on a phone and on a desk."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from dataclasses import dataclass, field, replace
from datetime import timedelta
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.model import BackupType, Component
from portal.ops.offsite.layout import Stem
from portal.ops.offsite.ledger import CopyRecord, Ledger
from portal.ops.repository.access_log import Action, Outcome
from tests.support.commands import answer, run
from tests.support.histories import NOW, History
from tests.support.unprivileged import NOBODY
from tools.report import charts
from tools.report.axis import Axis
from tools.report.page import page
from tools.report.story import ages_reached, read_story

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tools.report.story import Story

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
BROWSERS = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))][:1]
HOSTILE = "<script>alert('x')</script><img src=//evil.example/x>\"&"
VOID = {"meta", "br", "img", "link", "input", "hr"}


@dataclass
class Parsed(HTMLParser):
    """What is in a page."""

    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        HTMLParser.__init__(self)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A tag opens."""
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A tag of its own."""
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """A tag closes: the last one that was opened."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Words between tags."""
        self.words.append(data)


def parsed(text: str) -> Parsed:
    found = Parsed()
    found.feed(text)
    found.close()
    assert found.open == []
    return found


@pytest.fixture
def history(tmp_path: Path) -> History:
    """A repository of ten days."""
    found = History(path=tmp_path / "archives")
    for day in range(10):
        backup_id = found.archive(BackupType.FULL, day * DAY + HOUR, size=10_000 + day, seconds=60.0 + day)
        if day:
            found.verified(backup_id, intact=day != 5)
    found.archive(BackupType.DATABASE, HOUR / 2, seconds=2.0)
    found.pin(backup_id, HOSTILE)
    found.entry(Action.PRUNE, "the repository", archives=["full_20240115_120000_abc123"], reasons=[HOSTILE])
    found.drill(backup_id, 2 * DAY, seconds=129)
    found.entry(Action.DRILL, HOSTILE, Outcome.FAILED, error=HOSTILE, hint=HOSTILE)
    return found


def story_of(history: History) -> Story:
    return read_story(history.settings(), NOW)


def text_of(history: History) -> str:
    return page(story_of(history))


class TestPage:
    """What is in the file."""

    def test_every_archive_is_there(self, history: History) -> None:
        """In the table of all archives, by its id."""
        story = story_of(history)
        words = parsed(page(story)).words
        assert len(story.archives) == 11
        assert all(archive.name in words for archive in story.archives)

    def test_nothing_is_fetched_and_nothing_is_run(self, history: History) -> None:
        """No address, no link, no script, no image; and the page forbids them to itself."""
        text = text_of(history)
        found = parsed(text)
        assert not {"script", "link", "img", "iframe", "object", "a", "base"} & {tag for tag, _ in found.tags}
        assert not any(name in ("src", "href", "xlink:href") for _, names in found.tags for name in names)
        outside_text = re.sub(r">[^<]*<", "><", text)
        assert "://" not in outside_text
        assert "@import" not in text
        assert "url(" not in text
        policy = next(names["content"] for tag, names in found.tags if names.get("http-equiv"))
        assert policy == "default-src 'none'; style-src 'unsafe-inline'"

    def test_what_others_have_written_is_only_text(self, history: History) -> None:
        """Reasons, names and errors show as they are, whatever is in them."""
        words = "".join(parsed(text_of(history)).words)
        assert words.count(HOSTILE) >= 4

    def test_it_has_what_a_phone_needs(self, history: History) -> None:
        """The width of the device counts, and no drawing has a width of its own."""
        found = parsed(text_of(history))
        assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in found.tags
        styles = [names["style"] or "" for _, names in found.tags if names.get("style")]
        assert len(styles) > 50
        assert not any("px" in style for style in styles)

    def test_it_answers_what_is_asked_first(self, history: History) -> None:
        """The verdict, what could be lost, and how long a restore takes, in one sentence each."""
        words = " ".join(parsed(text_of(history)).words)
        assert (
            "If the portal were lost now, the last 30 min of the database and the last 60 min of the uploads" in words
        )
        assert "The last drill restored everything in 2:09 min, 2 days ago." in words
        assert "1 of 1 drills succeeded" in words
        assert "No off-site copies" in words

    def test_the_recovery_window_and_copies_are_drawn(self, history: History) -> None:
        """Where there are any, they have rows of their own, and the loss is counted from the window's end."""
        story = story_of(history)
        windows = [(NOW - 5 * DAY, NOW - 3 * DAY), (NOW - 2 * DAY, NOW - timedelta(seconds=5))]
        text = page(replace(story, windows=windows, copies=[(NOW - DAY, story.archives[2].name)]))
        words = " ".join(parsed(text).words)
        assert "the last 5 s of the database" in words
        assert "The recovery window has 1 gap before that." in words
        assert "Recovery window" in words
        assert "1 off-site copy; the newest archive among them is 24 h old" in words

    def test_copies_are_read_from_the_repositorys_memory(self, history: History, tmp_path: Path) -> None:
        """Without asking the store; a destination without copies yet is a gap."""
        settings = history.settings(BACKUP_OFFSITE_URLS=f"file://{tmp_path}/nas", BACKUP_OFFSITE_ENCRYPTION="off")
        assert read_story(settings, NOW).copies == []
        ledger = Ledger(history.repository, settings.offsite.destinations()[0])
        archive = read_story(settings, NOW).archives[0]
        ledger.prepare()
        stem = Stem(backup_id=archive.name)
        ledger.add(CopyRecord(stem=stem, copied=NOW, archive_sha256="0" * 64, stored_bytes=1000))
        copies = read_story(settings, NOW).copies
        assert copies is not None
        assert [moment for moment, _ in copies] == [archive.moment]

    def test_foreign_copies_are_named(self, history: History, tmp_path: Path) -> None:
        """Copies that the last verification found to be somebody else's are named with their destination."""
        settings = history.settings(BACKUP_OFFSITE_URLS=f"file://{tmp_path}/nas", BACKUP_OFFSITE_ENCRYPTION="off")
        ledger = Ledger(history.repository, settings.offsite.destinations()[0])
        verified = {"moment": NOW.isoformat(), "level": "checksum", "copies": 1, "damaged": [], "foreign": ["full_x"]}
        with ledger.recording():
            ledger.note_proof("verified", verified)
        words = " ".join(parsed(page(read_story(settings, NOW))).words)
        assert f"In file://{tmp_path}/nas there are copies that this repository did not make: full_x." in words

    def test_pins_removals_and_failures_are_told(self, history: History) -> None:
        """With their reasons."""
        words = " ".join(parsed(text_of(history)).words)
        assert "Pinned: kept until somebody unpins them" in words
        assert "full_20240115_120000_abc123" in words
        assert "restored in 2:09 min" in words
        assert "Failures" in words

    def test_base_backups_are_in_the_page_and_in_no_chart_of_ages(self, history: History) -> None:
        """A base backup in the access log holds no component of the portal; the page is made all the same."""
        history.entry(Action.BACKUP, "base_20261122_083000_aaaaaa", seconds=3.0)
        words = " ".join(parsed(text_of(history)).words)
        assert "Duration: base backups" in words

    def test_nothing_empty_is_drawn(self, tmp_path: Path) -> None:
        """Where no duration is known, there is no chart of durations."""
        history = History(path=tmp_path / "archives")
        history.archive(BackupType.DATABASE, HOUR)
        for name in list(history.path.glob(".access*")):
            name.unlink()
        assert "Durations" not in parsed(text_of(history)).words

    def test_an_empty_repository_has_a_page_too(self, tmp_path: Path) -> None:
        """Which says that there is nothing yet."""
        words = " ".join(parsed(text_of(History(path=tmp_path / "none"))).words)
        assert "targets are missed" in words
        assert "No archive yet." in words

    def test_very_many_archives_stay_readable_and_small(self, tmp_path: Path) -> None:
        """Days are shown instead, in drawings and in the table, and the file is under 2 MB."""
        history = History(path=tmp_path / "archives")
        for hour in range(1500):
            history.archive(BackupType.DATABASE, hour * HOUR + HOUR / 2)
        text = text_of(history)
        assert len(text.encode()) < 2_000_000
        assert text.count("<i class") < 8 * charts.SLICES
        assert "1,000 older archives, by day" in text


class TestAxis:
    """One axis of time for everything, whatever the range."""

    @pytest.mark.parametrize(
        ("length", "first", "last"),
        [
            (HOUR, "22 Nov 11:30", "12:30"),
            (6 * HOUR, "22 Nov 07:00", "12:00"),
            (20 * HOUR, "21 Nov 18:00", "12:00"),
            (3 * DAY, "20 Nov", "12:00"),
            (10 * DAY, "14 Nov", "22 Nov"),
            (60 * DAY, "5 Oct", "16 Nov"),
            (300 * DAY, "Mar 2026", "Nov"),
            (400 * DAY, "Jan 2026", "Oct"),
            (3000 * DAY, "2020", "2026"),
        ],
    )
    def test_the_labels_fit_the_range(self, length: timedelta, first: str, last: str) -> None:
        """Hours, days, months or years, and few enough for a phone."""
        labels = [tick.label for tick in Axis(start=NOW - length, end=NOW).ticks()]
        assert (labels[0], labels[-1]) == (first, last)
        assert 2 <= len(labels) <= 7
        assert len(labels) - len(set(labels)) <= 2

    def test_everything_is_drawn_upon_the_same_one(self, history: History) -> None:
        """Each drawing has the same labels at the same places."""
        text = text_of(history)
        axes = set(re.findall(r'<div class="ticks">(.*?)</div>', text, flags=re.DOTALL))
        assert len(axes) == 1
        assert text.count('<div class="ticks">') >= 6


class TestAges:
    """What could have been lost."""

    def test_the_age_of_a_slice_is_the_greatest_that_was_reached(self, tmp_path: Path) -> None:
        """Archives that are gone since were there then, and the worst age is that of the longest gap."""
        history = History(path=tmp_path / "archives")
        history.archive(BackupType.DATABASE, 50 * HOUR)
        history.archive(BackupType.DATABASE, 20 * HOUR)
        history.entry(Action.BACKUP, "full_20261122_083000_aaaaaa", seconds=3.0)
        found = dict(ages_reached(story_of(history), Component.DATABASE, 51))
        assert max(found.values()) == 30 * 3600
        assert found[50] == 4 * 3600
        assert 0 not in found


class TestCommand:
    """`backup.sh report`."""

    @staticmethod
    def environ(history: History) -> dict[str, Any]:
        """The variables of a portal without uploads."""
        return {"PATH": os.environ["PATH"], "BACKUP_LOCAL_PATH": str(history.path), "PORTAL_UPLOAD_DIR": ""}

    def test_it_writes_one_file(self, history: History, tmp_path: Path) -> None:
        """For its owner alone, and with nothing beside it."""
        out = tmp_path / "out"
        out.mkdir()
        ended = run("report", "--output", str(out / "report.html"), environ=self.environ(history))
        assert ended.returncode == 0, ended.stderr
        assert [path.name for path in out.iterdir()] == ["report.html"]
        assert answer(ended)["size_bytes"] == (out / "report.html").stat().st_size
        assert (out / "report.html").stat().st_mode & 0o777 == 0o600

    @pytest.mark.parametrize(("mode", "kept"), [(0o640, 0o640), (0o666, 0o666), (0o755, 0o644)])
    def test_those_who_could_read_it_can_read_the_next_one(
        self, history: History, tmp_path: Path, mode: int, kept: int
    ) -> None:
        """Its mode and its group are set once, and not each night."""
        path = tmp_path / "report.html"
        path.touch()
        path.chmod(mode)
        group = NOBODY if os.geteuid() == 0 else os.getegid()
        os.chown(path, -1, group)
        assert run("report", "--output", str(path), environ=self.environ(history)).returncode == 0
        found = path.stat()
        assert found.st_size > 0
        assert (stat.S_IMODE(found.st_mode), found.st_gid) == (kept, group)

    def test_it_goes_to_standard_output(self, history: History) -> None:
        """So that it leaves a container that writes nothing."""
        ended = run("report", "--output", "-", environ=self.environ(history))
        assert (ended.returncode, ended.stdout[:15]) == (0, "<!DOCTYPE html>"), ended.stderr

    def test_a_place_that_cannot_be_written_is_said(self, history: History) -> None:
        """As an error of usage, with a hint."""
        ended = run("report", "--output", "/proc/no/report.html", environ=self.environ(history))
        assert ended.returncode == 2
        assert "--output" in answer(ended)["error"]


@pytest.mark.skipif(not BROWSERS, reason="no browser is installed here; Debian has one in chromium")
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("archives", [2, 200])
def test_a_browser_shows_it(tmp_path: Path, archives: int, width: int) -> None:
    """On a phone and on a desk nothing is wider than the screen, letters can be read, and labels do not overlap."""
    history = History(path=tmp_path / "archives")
    for number in range(archives):
        history.archive(BackupType.DATABASE, number * HOUR + HOUR / 2, seconds=3.0)
    file = tmp_path / "report.html"
    text = text_of(history).replace(
        "style-src 'unsafe-inline'", "style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    )
    file.write_text(text.replace("</body>", f"<script>{_PROBE}</script></body>"), "utf-8")
    found = dict(part.split("=") for part in _measured(BROWSERS[0], file, tmp_path / "profile", width).split())
    assert int(found["overflow"]) <= 0
    assert float(found["smallest"]) >= 10
    assert found["overlaps"] == "0"
    assert int(found["marks"]) >= min(archives, 2)


_PROBE = """
const seen = [...document.querySelectorAll('p, td, th, li, code, u, em, figcaption')]
    .filter(one => one.getClientRects().length)
    .map(one => parseFloat(getComputedStyle(one).fontSize));
let overlaps = 0;
for (const axis of document.querySelectorAll('.ticks')) {
    let end = -1;
    for (const label of axis.children) {
        const box = label.getBoundingClientRect();
        if (box.left < end) overlaps++;
        end = box.right;
    }
}
const marks = document.querySelectorAll('.lane .mark, .lane .slice').length;
document.title = 'overflow=' + (document.documentElement.scrollWidth - innerWidth) + ' overlaps=' + overlaps +
    ' marks=' + marks + ' smallest=' + Math.min(...seen).toFixed(1);
"""


def _measured(browser: str, file: Path, profile: Path, width: int) -> str:
    """What the page has measured of itself in a browser of that width. A window of its own is never so narrow."""
    frame = file.with_name("frame.html")
    frame.write_text(
        f'<iframe src="{file.name}" style="width:{width}px;height:800px"></iframe><title></title><script>'
        "onload = () => { document.title = frames[0].document.title }</script>"
    )
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --allow-file-access-from-files --virtual-time-budget=3000"
    )
    ended = subprocess.run(
        [browser, *flags.split(), f"--user-data-dir={profile}", "--dump-dom", frame.as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return next(_titles(ended.stdout))


def _titles(text: str) -> Iterator[str]:
    yield from re.findall(r"<title>(overflow[^<]*)</title>", text)
