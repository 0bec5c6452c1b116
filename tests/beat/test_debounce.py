"""How changes add up, what a task is made of them, and what is none: without a clock, a kernel or a process."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beat.watcher.change_set import ChangeSet
from beat.watcher.debounce import MOST_PATHS, Debounce, parents
from beat.watcher.exclusions import is_staged, without_repository
from beat.watcher.mounts import silent_mounts
from portal.ops.filesystem.mounts import parse_mounts

if TYPE_CHECKING:
    from pathlib import Path

QUIET, LATEST = 2.0, 30.0
NOW = datetime(2026, 11, 22, 9, 10, 5, 123456, tzinfo=UTC)


def debounce() -> Debounce:
    return Debounce(QUIET, LATEST)


def test_changes_wait_until_it_is_quiet() -> None:
    """Each one starts the time again."""
    found = debounce()
    found.add("a", 100.0)
    found.add("b", 101.5)
    assert found.due_at() == 103.5
    assert found.take(103.5) == (frozenset({"a", "b"}), False)
    assert found.due_at() is None


def test_a_change_waits_for_so_long_at_the_most() -> None:
    """Where it is never quiet."""
    found = debounce()
    for second in range(60):
        found.add(f"file-{second}", 100.0 + second)
    assert found.due_at() == 130.0


def test_a_file_that_is_being_written_is_not_taken_before_it_is_closed() -> None:
    """What is in it until then is worth nothing."""
    found = debounce()
    found.begin("upload", 100.0)
    found.add("other", 100.0)
    assert found.take(102.0) == (frozenset({"other"}), False)
    found.add("upload", 110.0)
    assert found.take(112.0) == (frozenset({"upload"}), False)
    assert found.due_at() is None


def test_what_is_never_closed_is_taken_when_it_has_waited_long_enough() -> None:
    """A link, or a file that its writer keeps open."""
    found = debounce()
    found.begin("link", 100.0)
    assert found.due_at() == 130.0
    assert found.take(130.0) == (frozenset({"link"}), False)


def test_a_directory_stands_for_all_that_is_below_it() -> None:
    """Whether that was reported before or after it; what only begins with the same letters is not below it."""
    found = debounce()
    found.add("t/new/a", 100.0)
    found.add("t/new", 100.0, is_tree=True)
    found.add("t/new/deeper", 100.0, is_tree=True)
    found.add("t/new/deeper/b", 100.0)
    found.begin("t/new/c", 100.0)
    found.add("t/newer", 100.0)
    assert found.take(102.0)[0] == {"t/new", "t/newer"}


def test_more_than_can_be_listed_is_everything() -> None:
    """The list is never longer than that, whatever happens."""
    found = debounce()
    for number in range(MOST_PATHS + 10):
        found.add(f"file-{number}", 100.0)
    assert found.take(102.0) == (frozenset(), True)
    assert found.due_at() is None


def test_what_changed_by_itself_and_as_a_tree_is_taken() -> None:
    """Once, whichever came first."""
    found = debounce()
    found.add("a", 100.0)
    found.add("a", 100.0, is_tree=True)
    found.add("b", 100.0, is_tree=True)
    found.add("b", 100.0)
    assert found.take(102.0) == (frozenset({"a", "b"}), False)


@pytest.mark.parametrize("what", ["file", "tree", "all"])
def test_every_kind_of_change_is_due_in_time(what: str) -> None:
    """When it is quiet; where it never is, so long after the first one that was not taken."""
    found = debounce()
    for start in (100.0, 500.0):
        for second in range(60):
            if what == "all":
                found.add_all(start + second)
            else:
                found.add("a", start + second, is_tree=what == "tree")
            assert found.due_at() == min(start + second + QUIET, start + LATEST)
        assert found.take(start + 60) == (frozenset() if what == "all" else frozenset({"a"}), what == "all")


@pytest.mark.parametrize("last", ["file", "tree", "begin"])
def test_the_longest_list(last: str) -> None:
    """Files, directories and new names count; with one more of any of them, none is listed, then or later."""
    found = debounce()
    for number in range(3):
        found.add(f"tree-{number}", 100.0, is_tree=True)
        found.begin(f"new-{number}", 100.0)
    for number in range(MOST_PATHS - 6):
        found.add(f"file-{number}", 100.0)
    paths, is_all = found.take(130.0)
    assert (len(paths), is_all) == (MOST_PATHS, False)
    for number in range(3):
        found.add(f"tree-{number}", 200.0, is_tree=True)
        found.begin(f"new-{number}", 200.0)
    for number in range(MOST_PATHS - 6):
        found.add(f"file-{number}", 200.0)
    if last == "begin":
        found.begin("last", 201.0)
    else:
        found.add("last", 201.0, is_tree=last == "tree")
    assert found.due_at() == 201.0 + QUIET
    found.begin("later", 202.0)
    found.add("later", 202.0)
    assert found.take(231.0) == (frozenset(), True)
    assert found.due_at() is None


def test_a_new_name_that_is_known_or_covered_waits_for_nothing() -> None:
    """A file that is listed or is below a directory that is, or where everything is looked at."""
    found = debounce()
    found.add("a", 100.0)
    found.add("t", 100.0, is_tree=True)
    found.begin("a", 101.0)
    found.begin("t/b", 101.0)
    assert found.take(102.0) == (frozenset({"a", "t"}), False)
    assert found.due_at() is None
    found.add_all(200.0)
    found.begin("c", 200.0)
    assert found.take(202.0) == (frozenset(), True)
    assert found.due_at() is None


names = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map("/".join)
steps = st.lists(st.tuples(names, st.sampled_from(["file", "tree", "begin", "all", "take"]), st.floats(0, 10)))


@given(steps)
def test_whatever_is_reported_is_taken_in_time(found: list[tuple[str, str, float]]) -> None:
    """By its own name, by that of a directory above it, or by a look at everything; and never later than the latest."""
    gathered, now = debounce(), 0.0
    waiting: dict[str, float] = {}

    def take() -> None:
        paths, is_all = gathered.take(now)
        for path in list(waiting):
            if is_all or path in paths or any(parent in paths for parent in parents(path)):
                del waiting[path]

    for path, what, pause in found:
        now += pause
        if what == "take":
            take()
            continue
        if what == "all":
            gathered.add_all(now)
        elif what == "begin":
            gathered.begin(path, now)
        else:
            gathered.add(path, now, is_tree=what == "tree")
        waiting.setdefault(path, now)
        due_at = gathered.due_at()
        assert due_at is not None and due_at <= max(min(waiting.values()) + LATEST, now + QUIET)
    now += LATEST
    take()
    assert not waiting and gathered.due_at() is None


# -- change sets ------------------------------------------------------------------------------------------------------


def test_the_same_batch_has_the_same_task_however_often_it_is_sent() -> None:
    """Also after it was on the disk; another path or another moment is another task."""
    changes = ChangeSet(moment=NOW, paths=frozenset({"b", "a", "\udcff"}))
    assert ChangeSet.from_dict(changes.to_dict()) == changes
    assert changes.task_id.startswith("media-2026-11-22T09:10:05Z-")
    others = [
        replace(changes, paths=changes.paths | {"c"}),
        replace(changes, moment=NOW + timedelta(microseconds=1)),
        replace(changes, paths=frozenset(), is_scan=True),
    ]
    assert len({one.task_id for one in (changes, *others)}) == 4


def test_the_id_of_a_batch_is_that_of_every_release() -> None:
    """What was kept by the release before is sent as the same task."""
    assert ChangeSet(moment=NOW, paths=frozenset({"b", "a"})).task_id == "media-2026-11-22T09:10:05Z-82209a9614"


@pytest.mark.parametrize(
    "change",
    [
        {"moment": "2026-11-22T09:10:05"},
        {"moment": "yesterday"},
        {"moment": 7},
        {"paths": "a"},
        {"paths": {"a": "b"}},
        {"paths": ["a", 7]},
        {"paths": None},
    ],
)
def test_a_batch_of_another_form_is_none(change: dict[str, object]) -> None:
    """Also one without a part of it."""
    facts = ChangeSet(moment=NOW, paths=frozenset({"a"})).to_dict()
    (name,) = change
    for bad in ({**facts, **change}, {one: value for one, value in facts.items() if one != name}):
        with pytest.raises((ValueError, TypeError, KeyError)):
            ChangeSet.from_dict(bad)


def test_a_scan_lists_nothing_and_a_batch_lists_what_has_changed() -> None:
    """The task looks at the whole tree where nothing is listed."""
    common = {"actor": "watcher", "moment": "2026-11-22T09:10:05Z", "incremental": True}
    assert ChangeSet(moment=NOW, is_scan=True).arguments == common
    assert ChangeSet(moment=NOW, paths=frozenset({"b", "a"})).arguments == {**common, "changed": ["a", "b"]}


# -- what is our own, and what cannot be seen -----------------------------------------------------------------------


def test_what_restores_keep_is_no_change() -> None:
    """At the top of the uploads only: elsewhere a tenant may call a directory what it likes."""
    assert is_staged(".kekkai-restore") and is_staged(".kekkai-restore/one/stage/file")
    assert not is_staged("-first") and not is_staged("last")
    assert not is_staged(".kekkai-restored") and not is_staged("tenant/.kekkai-restore/file")


def test_the_repository_is_no_change_whatever_it_is_called_there(tmp_path: Path) -> None:
    """It is known by device and inode, so another way to it, such as a link, does not hide it."""
    for name in ("a/before", "a/archives", "a/archives-old"):
        (tmp_path / "uploads" / name).mkdir(parents=True)
    (tmp_path / "elsewhere").symlink_to(tmp_path / "uploads" / "a" / "archives")
    paths = ["a", "a/archives", "a/archives/.beat.json", "a/archives/x/y", "a/archives-old", "b/gone/file"]
    others = ["a/before/one", "a/archives-old/one"]
    left = without_repository([*paths, *others], str(tmp_path / "uploads"), tmp_path / "elsewhere")
    assert left == {"a", "a/archives-old", "b/gone/file", *others}


def test_a_repository_that_is_away_hides_nothing(tmp_path: Path) -> None:
    """It is looked for again at the next change."""
    assert without_repository(["a", "a/archives"], str(tmp_path), tmp_path / "a" / "archives") == {"a", "a/archives"}


def test_names_that_are_not_text_are_looked_at_as_they_are(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 come and go as lone surrogates."""
    os.mkdir(bytes(tmp_path) + b"/\xff")
    assert without_repository(["\udcff/x"], str(tmp_path), tmp_path / os.fsdecode(b"\xff")) == frozenset()


MOUNTS = rb"""
24 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 24 0:26 / /srv/portal rw shared:2 - nfs4 server:/portal rw
31 24 254:0 /data /srv/with\040space rw shared:3 - xfs /dev/vdb rw
32 31 0:27 / /srv/with\040space/deep rw - fuse.sshfs host:/ rw
33 24 254:0 / /srv/over rw - nfs4 server:/x rw
34 33 254:0 / /srv/over rw - ext4 /dev/vdc rw
no sense at all
"""


@pytest.mark.parametrize(
    ("root", "kinds"),
    [
        ("/srv/portal/uploads", ["nfs4"]),
        ("/srv/portals", []),
        ("/srv/with space", ["fuse.sshfs"]),
        ("/srv/with space/other", []),
        ("/srv/over/uploads", []),
        ("/", ["nfs4", "fuse.sshfs", "nfs4"]),
    ],
)
def test_a_file_system_that_others_write_to_is_known(root: str, kinds: list[str]) -> None:
    """At the root, or below it; of two on one place the upper one counts."""
    assert [mount.kind for mount in silent_mounts(root, parse_mounts(MOUNTS))] == kinds
