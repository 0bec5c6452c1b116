"""The watcher's loop, one tick after the other: what it does in which state, without a kernel's events or real time."""

from __future__ import annotations

import errno
import json
import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Self

import pytest

from beat.watcher import loop as module
from beat.watcher.loop import Watcher
from portal.ops.errors import ConfigurationError
from portal.ops.filesystem.mounts import Mount
from portal.ops.settings.load import load_settings
from tests.support.repositories import as_nobody, public_directory
from worker.errors import BrokerAwayError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from worker.operations import Operation

__all__ = ["public_directory"]

NOW = datetime(2026, 11, 22, 9, tzinfo=UTC)
QUIET, LATEST, SCAN = 2, 30, 3600


class Events:
    """Stands for the kernel's events: a test says whether they can be had, and notes what is asked of them."""

    made: ClassVar[list[Events]] = []
    faults: ClassVar[list[OSError]] = []

    def __init__(self, root: str, listener: Watcher) -> None:
        self.root = root
        self.alive = False
        self.stopped = 0
        self.renewed: list[list[str]] = []
        self.made.append(self)

    def start(self) -> None:
        """Fail as often as the test wants it."""
        if self.faults:
            raise self.faults.pop(0)
        self.alive = True

    def is_alive(self) -> bool:
        """Until the test ends it."""
        return self.alive

    def stop(self) -> None:
        """Note it."""
        self.stopped += 1

    def renew(self, paths: Iterable[str]) -> None:
        """Note it."""
        self.renewed.append(sorted(paths))


class Wakes:
    """Stands for the condition that the loop waits for: notes how long, and who wakes it."""

    def __init__(self) -> None:
        self.waited: list[float] = []
        self.notified = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def wait(self, seconds: float) -> None:
        """Note it."""
        self.waited.append(round(seconds, 3))

    def notify(self) -> None:
        """Note it."""
        self.notified += 1


class Site:
    """Uploads, a repository, workers that note what they get, and a clock that a test sets."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.uploads = directory / "uploads"
        self.uploads.mkdir()
        self.seconds = 100.0
        self.sent: list[list[str] | str] = []
        self.is_away = False
        self.is_busy = False
        self.wakes = Wakes()

    def submit(self, operation: Operation, arguments: Mapping[str, Any], task_id: str) -> None:
        """Note the changes, or that it is a scan."""
        if self.is_away:
            raise BrokerAwayError("the broker does not answer", hint="none")
        self.sent.append(arguments.get("changed", "scan"))

    def is_at_work(self, task_id: str) -> bool:
        """Whatever the test says."""
        return self.is_busy

    def watcher(self, mode: str = "events", **environ: str) -> Watcher:
        """A watcher that waits for nothing."""
        places = {"BACKUP_LOCAL_PATH": str(self.directory / "archives"), "PORTAL_UPLOAD_DIR": str(self.uploads)}
        times = {
            "BACKUP_WATCH_QUIET": f"{QUIET}s",
            "BACKUP_WATCH_LATEST": f"{LATEST}s",
            "BACKUP_WATCH_SCAN": f"{SCAN}s",
            "BACKUP_WATCH_MODE": mode,
        }
        settings = load_settings({**places, **times, **environ}, lambda path: "")
        found = Watcher(
            settings, self, clock=lambda: NOW + timedelta(seconds=self.seconds), steady=lambda: self.seconds
        )
        found._woken = self.wakes  # type: ignore[assignment]
        return found

    def after(self, seconds: float, watcher: Watcher) -> list[list[str] | str]:
        """Let time pass; what a tick sends then."""
        before = len(self.sent)
        self.seconds += seconds
        watcher.tick()
        return self.sent[before:]

    def wait(self, watcher: Watcher) -> float | None:
        """How long it would wait now; None for not at all."""
        self.wakes.waited.clear()
        watcher._wait()
        return self.wakes.waited[0] if self.wakes.waited else None

    def life(self) -> dict[str, Any]:
        """Its last sign of life."""
        found: dict[str, Any] = json.loads((self.directory / "archives" / ".watcher.json").read_text())
        return found


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Site:
    monkeypatch.setattr(module, "Inotify", Events)
    monkeypatch.setattr(Events, "made", [])
    monkeypatch.setattr(Events, "faults", [])
    caplog.set_level("INFO")
    return Site(tmp_path)


def test_it_begins_with_one_scan(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Then it watches, and says so."""
    watcher = site.watcher()
    assert site.after(0, watcher) == ["scan"]
    assert site.after(1, watcher) == []
    (events,) = Events.made
    assert (events.root, events.stopped) == (os.path.realpath(site.uploads), 0)
    assert {name: site.life()[name] for name in ("ready", "mode", "waits_for", "dirty_since")} == {
        "ready": True,
        "mode": "events",
        "waits_for": "",
        "dirty_since": None,
    }
    assert caplog.text.count("watcher_ready") == 1
    assert "mode='events'" in caplog.text


def test_changes_are_sent_when_it_is_quiet(site: Site) -> None:
    """What is below a new directory with it; what was only begun when it has waited long enough."""
    watcher = site.watcher()
    site.after(0, watcher)
    watcher.changed("a", is_tree=False)
    watcher.changed("tree", is_tree=True)
    watcher.changed("tree/b", is_tree=False)
    watcher.changed("a/b", is_tree=False)
    watcher.begun("c")
    assert site.after(QUIET - 0.1, watcher) == []
    assert site.after(0.1, watcher) == [["a", "a/b", "tree"]]
    assert Events.made[0].renewed[-1] == ["a", "a/b", "tree"]
    assert site.after(LATEST - QUIET - 0.1, watcher) == []
    assert site.after(0.1, watcher) == [["c"]]
    assert site.after(LATEST, watcher) == []


def test_what_may_be_lost_is_a_scan_of_everything(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Which is watched again, before the scan is sent."""
    watcher = site.watcher()
    site.after(0, watcher)
    watcher.changed("a", is_tree=False)
    watcher.lost()
    assert "changes_lost" in caplog.text
    assert site.after(QUIET, watcher) == ["scan"]
    assert Events.made[0].renewed[-1] == [""]
    assert site.after(QUIET, watcher) == []


def test_our_own_repository_is_no_change(site: Site) -> None:
    """Where it is below the uploads."""
    repository = site.uploads / "archives"
    watcher = site.watcher(BACKUP_LOCAL_PATH=str(repository))
    site.after(0, watcher)
    watcher.changed("archives/.watcher.json", is_tree=False)
    assert site.after(QUIET, watcher) == []
    watcher.changed("archives/.watcher.json", is_tree=False)
    watcher.changed("a", is_tree=False)
    assert site.after(QUIET, watcher) == [["a"]]


@pytest.mark.parametrize(("mode", "every"), [("events", SCAN), ("polling", LATEST)])
def test_a_scan_is_sent_again_and_again(site: Site, mode: str, every: int) -> None:
    """Often where nobody tells of changes; not while the last one is still at work, unless that must be lost."""
    watcher = site.watcher(mode, BACKUP_TASK_TIMEOUT="14400")
    assert site.after(0, watcher) == ["scan"]
    assert site.after(every - 1, watcher) == []
    assert site.after(1, watcher) == ["scan"]
    assert site.after(every - 1, watcher) == []
    site.is_busy = True
    assert site.after(1, watcher) == []
    assert site.after(every, watcher) == []
    site.is_busy = False
    assert site.after(every - 1, watcher) == []
    assert site.after(1, watcher) == ["scan"]
    site.is_busy = True
    assert site.after(4 * 3600 - every - 1, watcher) == []
    assert site.after(every + 2, watcher) == ["scan"]


def test_uploads_that_are_away_are_waited_for(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """A file in their place is no directory; when they come, everything is looked at."""
    site.uploads.rmdir()
    watcher = site.watcher()
    assert site.after(0, watcher) == []
    site.uploads.touch()
    assert site.after(SCAN, watcher) == []
    life = site.life()
    assert (life["ready"], life["mode"], life["waits_for"]) == (False, None, f"{site.uploads} is not there")
    assert caplog.text.count("uploads_missing") == 1
    assert "uploads_unwatched" not in caplog.text
    assert Events.made == []
    assert site.wait(watcher) == 1.0
    site.uploads.unlink()
    site.uploads.mkdir()
    assert site.after(1, watcher) == ["scan"]
    assert (site.life()["ready"], site.life()["waits_for"]) == (True, "")
    site.uploads.rmdir()
    assert site.after(1, watcher) == []
    assert caplog.text.count("uploads_missing") == 2
    assert "the directory is gone" in caplog.text
    assert Events.made[0].stopped == 1


def test_uploads_that_may_not_be_read_are_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, public_directory: Path
) -> None:
    """It says as whom to run."""
    monkeypatch.setattr(module, "Inotify", Events)
    monkeypatch.setattr(Events, "made", [])
    public_directory.chmod(0o777)
    site = Site(public_directory)
    watcher = site.watcher()
    for mode in (0o700, 0o744, 0o733):
        site.uploads.chmod(mode)
        with as_nobody():
            assert site.after(1, watcher) == []
    assert site.life()["waits_for"] == f"{site.uploads} may not be read"
    assert caplog.text.count("uploads_unwatchable") == 1
    assert Events.made == []
    site.uploads.chmod(0o755)
    with as_nobody():
        assert site.after(1, watcher) == ["scan"]


def test_another_directory_in_their_place_is_watched(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """The one before is not watched any more; the same directory under another name is watched by that."""
    link, first = site.directory / "link", site.uploads
    link.symlink_to(first)
    watcher = site.watcher(PORTAL_UPLOAD_DIR=str(link))
    site.after(0, watcher)
    first.rename(site.directory / "renamed")
    link.unlink()
    link.symlink_to(site.directory / "renamed")
    assert site.after(1, watcher) == ["scan"]
    (site.directory / "renamed").rename(site.directory / "before")
    (site.directory / "renamed").mkdir()
    assert site.after(1, watcher) == ["scan"]
    assert site.after(1, watcher) == []
    assert [events.stopped for events in Events.made] == [1, 1, 0]
    assert caplog.text.count("the directory was replaced") == 2


def test_watching_that_has_failed_is_begun_again(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """A thread of it may end by an error."""
    watcher = site.watcher()
    site.after(0, watcher)
    Events.made[0].alive = False
    assert site.after(1, watcher) == ["scan"]
    assert "watching it has failed" in caplog.text
    assert [events.stopped for events in Events.made] == [1, 0]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOMEM, errno.EMFILE])
def test_a_limit_of_the_kernel_makes_it_poll(site: Site, number: int, caplog: pytest.LogCaptureFixture) -> None:
    """At the start, and later; nothing but the uploads themselves makes it try again."""
    Events.faults.append(OSError(number, "a limit"))
    watcher = site.watcher()
    assert site.after(0, watcher) == ["scan"]
    assert site.life()["mode"] == "polling"
    assert caplog.text.count("watch_limit_reached") == 1
    assert "max_user_watches" in caplog.text
    assert site.after(LATEST, watcher) == ["scan"]
    assert "uploads_unwatched" not in caplog.text
    assert len(Events.made) == 1


def test_a_limit_that_is_reached_later_makes_it_poll(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Without a wait; what was watched is watched no more."""
    watcher = site.watcher()
    site.after(0, watcher)
    watcher.limited(OSError(errno.ENOSPC, "a limit"))
    assert site.wakes.notified == 1
    assert site.wait(watcher) is None
    assert site.after(0, watcher) == ["scan"]
    assert site.life()["mode"] == "polling"
    assert "the kernel watches no more directories" in caplog.text
    assert "watch_limit_reached" in caplog.text
    assert Events.made[0].stopped == 1
    assert site.wait(watcher) == 1.0


def test_another_fault_is_said_and_tried_again(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """A disk may come back."""
    Events.faults += [OSError(errno.EIO, os.strerror(errno.EIO))] * 2
    watcher = site.watcher()
    assert site.after(0, watcher) == []
    assert site.after(1, watcher) == []
    assert site.life()["waits_for"] == f"{site.uploads}: input/output error"
    assert caplog.text.count("uploads_unwatchable") == 1
    assert site.after(1, watcher) == ["scan"]
    assert site.life()["mode"] == "events"


@pytest.mark.parametrize(("silent", "mode"), [([], "events"), ([Mount(place="/srv", kind="nfs4")], "polling")])
def test_it_polls_where_changes_come_without_events(
    site: Site, silent: list[Mount], mode: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It finds out by itself, and names the mount; a setting of the mode counts more."""
    monkeypatch.setattr(module, "silent_mounts", lambda root: silent)
    site.after(0, site.watcher("auto"))
    assert site.life()["mode"] == mode
    assert caplog.text.count("mount_without_events") == len(silent)
    site.after(0, site.watcher("events"))
    assert site.life()["mode"] == "events"


def test_it_waits_until_something_is_due(site: Site) -> None:
    """A second at the most, since the uploads may go; sooner for changes, for a broker, and for the next scan."""
    watcher = site.watcher("polling", BACKUP_WATCH_LATEST="2s")
    site.after(0, watcher)
    assert site.wait(watcher) == 1.0
    site.seconds += 1.75
    assert site.wait(watcher) == 0.25
    site.seconds += 0.25
    assert site.wait(watcher) is None
    site.after(0, watcher)
    watcher.changed("a", is_tree=False)
    site.seconds += QUIET - 0.5
    assert site.wait(watcher) == 0.5
    site.is_away = True
    site.after(0.5, watcher)
    site.seconds += 0.75
    assert site.wait(watcher) == 0.25
    assert site.life()["dirty_since"]


def test_a_change_wakes_it_if_it_is_due_earlier(site: Site) -> None:
    """The first one; the next ones only make it later."""
    watcher = site.watcher()
    site.after(0, watcher)
    watcher.begun("a")
    assert site.wakes.notified == 1
    watcher.changed("b", is_tree=False)
    assert site.wakes.notified == 2
    site.seconds += 1
    watcher.changed("c", is_tree=False)
    watcher.begun("d")
    watcher.changed("d", is_tree=False)
    assert site.wakes.notified == 2


def test_a_sign_of_life_is_written_when_something_is_new_and_every_twenty_seconds(site: Site) -> None:
    """Not at each tick."""
    watcher = site.watcher()
    site.after(0, watcher)
    written = site.life()["moment"]
    site.after(19.9, watcher)
    assert site.life()["moment"] == written
    site.after(0.1, watcher)
    assert site.life()["moment"] > written
    site.is_away = True
    watcher.changed("a", is_tree=False)
    site.after(QUIET, watcher)
    assert site.life()["dirty_since"] == "2026-11-22T09:02:02Z"


def test_a_repository_that_takes_no_sign_of_life_is_said_once(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Changes are sent all the same; after it was well, the same fault is said again."""
    archives = site.directory / "archives"
    archives.write_text("in the way")
    watcher = site.watcher()
    assert site.after(0, watcher) == ["scan"]
    site.after(20, watcher)
    assert caplog.text.count("heartbeat_unwritten") == 1
    archives.unlink()
    site.after(20, watcher)
    assert site.life()["ready"]
    (archives / ".watcher.json").unlink()
    (archives / ".watcher.json").mkdir()
    site.after(20, watcher)
    site.after(20, watcher)
    assert caplog.text.count("heartbeat_unwritten") == 2
    (archives / ".watcher.json").rmdir()
    site.after(20, watcher)
    (archives / ".watcher.json").unlink()
    (archives / ".watcher.json").mkdir()
    site.after(20, watcher)
    assert caplog.text.count("heartbeat_unwritten") == 3


def test_without_uploads_there_is_no_watcher(site: Site) -> None:
    """The error says what to set."""
    with pytest.raises(ConfigurationError, match="PORTAL_UPLOAD_DIR"):
        site.watcher(PORTAL_UPLOAD_DIR="")
