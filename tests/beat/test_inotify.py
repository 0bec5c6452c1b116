"""The kernel's events as the watcher hears them: in this process, with a real kernel and real directories."""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING

import pytest
from watchdog.events import FileClosedEvent
from watchdog.observers.inotify_c import InotifyConstants, InotifyEvent, InotifyFD, Mask, WatchDescriptor

from beat.watcher.inotify import LIMITS, Inotify, _Translator
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Ear:
    """Hears what happens, and notes it."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []
        self.limits: list[OSError] = []
        self.losses = 0

    def changed(self, path: str, *, is_tree: bool) -> None:
        """An entry has changed."""
        self.heard.append(("tree" if is_tree else "file", path))

    def begun(self, path: str) -> None:
        """A name was created."""
        self.heard.append(("begun", path))

    def lost(self) -> None:
        """Changes may have been missed."""
        self.losses += 1

    def limited(self, error: OSError) -> None:
        """The kernel cannot watch more."""
        self.limits.append(error)


class Place:
    """A directory that is watched.

    Arguments:
        root: the directory.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ear = Ear()
        self.inotify = Inotify(str(root), self.ear)
        self._marks = 0

    def after(self, act: Callable[[], object]) -> set[tuple[str, str]]:
        """What is heard of something that happens; a file that is written afterwards is heard last."""
        self.ear.heard.clear()
        act()
        self._marks += 1
        mark = f"mark{self._marks}"
        (self.root / mark).write_text("x")
        wait_until(lambda: ("file", mark) in self.ear.heard)
        return {one for one in self.ear.heard if not one[1].startswith("mark")}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A directory that is watched, with a file in a directory, beside one that is not."""
    (tmp_path / "root" / "old").mkdir(parents=True)
    (tmp_path / "root" / "old" / "file").touch()
    (tmp_path / "outside" / "deep").mkdir(parents=True)
    (tmp_path / "outside" / "deep" / "file").touch()
    found = Place(tmp_path / "root")
    found.inotify.start()
    yield found
    found.inotify.stop()


def test_what_happens_to_files_is_heard(place: Place) -> None:
    """Each by all its names; what only reads is not."""
    root = place.root
    assert place.after(lambda: (root / "old/file").read_text()) == set()
    assert place.after(lambda: (root / "old/file").write_text("x")) == {("file", "old/file")}
    assert place.after(lambda: (root / "new").write_text("x")) == {("begun", "new"), ("file", "new")}
    assert place.after(lambda: (root / "new").chmod(0o600)) == {("file", "new")}
    assert place.after(lambda: (root / "link").symlink_to("new")) == {("begun", "link")}
    assert place.after(lambda: (root / "new").rename(root / "old/moved")) == {("file", "new"), ("file", "old/moved")}
    assert place.after(lambda: (root / "old/moved").rename(root.parent / "out")) == {("file", "old/moved")}
    assert place.after(lambda: (root.parent / "out").rename(root / "in")) == {("file", "in")}
    assert place.after(lambda: (root / "in").unlink()) == {("file", "in")}
    name = os.fsdecode(b"not \xff text")
    assert place.after(lambda: (root / name).touch()) == {("begun", "not \udcff text"), ("file", "not \udcff text")}


def test_what_happens_to_directories_is_heard_of_all_that_is_below(place: Place) -> None:
    """What happens in new ones is heard by their present names."""
    root, outside = place.root, place.root.parent / "outside"
    assert ("tree", "new") in place.after(lambda: (root / "new").mkdir())
    assert ("file", "new/file") in place.after(lambda: (root / "new" / "file").touch())
    assert place.after(lambda: (root / "new").chmod(0o700)) == {("tree", "new")}
    assert place.after(lambda: (root / "new").rename(root / "renamed")) == {("tree", "new"), ("tree", "renamed")}
    assert place.after(lambda: (root / "renamed/file").write_text("x")) == {("file", "renamed/file")}
    assert place.after(lambda: outside.rename(root / "in")) == {("tree", "in")}
    assert place.after(lambda: (root / "in/deep/file").write_text("x")) == {("file", "in/deep/file")}
    assert ("tree", "in") in place.after(lambda: (root / "in").rename(root.parent / "out"))
    assert ("tree", "renamed/dir") in place.after(lambda: (root / "renamed/dir").mkdir())
    assert ("tree", "renamed/dir") in place.after(lambda: (root / "renamed/dir").rmdir())


def test_what_restores_do_in_their_own_directory_is_not_heard(place: Place) -> None:
    """Nor is the root itself."""
    stage = place.root / ".kekkai-restore"
    assert place.after(lambda: (stage / "one" / "stage").mkdir(parents=True)) == set()
    assert place.after(lambda: (stage / "one" / "stage" / "file").write_text("x")) == set()
    assert place.after(lambda: (stage / "one" / "stage" / "file").rename(place.root / "file")) == {("file", "file")}
    assert place.after(lambda: place.root.chmod(0o700)) == set()


def test_what_lost_its_watches_is_watched_again(place: Place) -> None:
    """A directory and everything below it, by its present name; links and files are passed over."""
    (emitter,) = place.inotify._observer.emitters
    group = emitter._group  # type: ignore[attr-defined]
    (place.root / "other").mkdir()
    (place.root / "other" / "deep").mkdir()
    (place.root / "file").touch()
    (place.root / "link").symlink_to("old")
    place.after(lambda: None)

    def forget() -> None:
        with group._lock:
            group._remove_callbacks([wd for wd, path in group._active_callbacks_by_watch.items() if path != group.path])

    forget()
    assert place.after(lambda: (place.root / "other/deep/file").touch()) == set()
    place.inotify.renew(["file", "link", "gone", "other"])
    assert ("file", "other/deep/file") in place.after(lambda: (place.root / "other/deep/file").write_text("x"))
    assert place.after(lambda: (place.root / "old/file").write_text("x")) == set()
    place.inotify.renew([""])
    assert place.after(lambda: (place.root / "old/file").write_text("x")) == {("file", "old/file")}
    assert place.ear.limits == []


def test_a_queue_that_overflows_is_told(place: Place) -> None:
    """Any other event is none."""
    descriptor = place.inotify._descriptor
    for mask, losses in ((InotifyConstants.IN_ATTRIB, 0), (InotifyConstants.IN_Q_OVERFLOW, 1)):
        descriptor.handle_event(InotifyEvent(WatchDescriptor(-1), Mask(mask), 0, b""))
        assert place.ear.losses == losses
    assert place.after(lambda: (place.root / "old/file").write_text("x")) == {("file", "old/file")}


@pytest.mark.parametrize("number", [*sorted(LIMITS), errno.EACCES])
def test_a_directory_that_cannot_be_watched_is_told_if_it_is_a_limit(
    place: Place, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are watched on."""

    def fail(self: InotifyFD, path: bytes, *_: object) -> WatchDescriptor:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("beat.watcher.inotify._Descriptor._add_callback", fail)
    heard = place.after(lambda: (place.root / "new").mkdir())
    assert ("tree", "new") in heard
    assert [error.errno for error in place.ear.limits] == ([number] if number in LIMITS else [])
    assert place.inotify.is_alive()


def test_it_is_alive_until_a_thread_of_it_ends(place: Place) -> None:
    """Or it is stopped, after which nothing is heard."""
    assert place.inotify.is_alive()
    place.inotify.stop()
    assert not place.inotify.is_alive()
    place.ear.heard.clear()
    (place.root / "late").touch()
    assert place.ear.heard == []
    place.inotify.stop()
    never = Inotify(str(place.root), place.ear)
    assert not never.is_alive()
    never.stop()


@pytest.mark.parametrize("which", ["descriptor", "observer", "emitter"])
def test_each_of_its_threads_counts(place: Place, which: str) -> None:
    """Without any of them nothing is heard."""
    (emitter,) = place.inotify._observer.emitters
    thread: threading.Thread = {
        "descriptor": place.inotify._descriptor,
        "observer": place.inotify._observer,
        "emitter": emitter,
    }[which]
    thread.is_alive = lambda: False  # type: ignore[method-assign]
    assert not place.inotify.is_alive()
    del thread.is_alive
    assert place.inotify.is_alive()


def test_a_directory_that_is_away_leaves_no_thread(tmp_path: Path) -> None:
    """The error is the caller's; so is a limit at the start."""
    before = threading.active_count()
    inotify = Inotify(str(tmp_path / "away"), Ear())
    with pytest.raises(FileNotFoundError):
        inotify.start()
    wait_until(lambda: threading.active_count() == before)
    assert not inotify.is_alive()


@pytest.mark.parametrize(("root", "path"), [("/", "/a/b"), ("/srv", "/srv/a/b"), ("/srv/", "/srv/a/b")])
def test_paths_are_relative_to_the_root(root: str, path: str) -> None:
    """Whatever that is."""
    ear = Ear()
    _Translator(root, ear).dispatch(FileClosedEvent(path))
    assert ear.heard == [("file", "a/b")]
