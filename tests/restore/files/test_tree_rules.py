"""Which members of an archive a portal's tree can hold."""

from __future__ import annotations

from typing import Any

import pytest

from portal.ops.archive.index import Member, MemberType
from portal.ops.errors import NotIntactError
from portal.ops.restore.files.name_set import Kind
from portal.ops.restore.files.tree_rules import MOST_WARNINGS, TreeRules, check_member, staged_path

FILE, DIRECTORY, SYMLINK, HARDLINK = MemberType.FILE, MemberType.DIRECTORY, MemberType.SYMLINK, MemberType.HARDLINK


def rules(*members: Member, top: str = "", **options: Any) -> TreeRules:
    """The rules after these members."""
    made = TreeRules(prefix="media", top=top, **options)
    for member in members:
        made.add(member)
    return made


def file(path: str, **facts: Any) -> Member:
    return Member(f"media/{path}", FILE, **facts)


@pytest.mark.parametrize(
    ("path", "top", "expected"),
    [
        ("media", "", ""),
        ("media/a/b", "", "a/b"),
        ("media", "log.restored", "log.restored"),
        ("media/a", "log.restored", "log.restored/a"),
    ],
)
def test_where_a_member_goes(path: str, top: str, expected: str) -> None:
    """Below the top of the tree, or below a directory in it."""
    assert staged_path(path, "media", top) == expected
    kind = DIRECTORY if path == "media" else FILE
    assert rules(top=top).add(Member(path, kind)) == expected


@pytest.mark.parametrize(
    ("fact", "least", "most"),
    [
        ("size", 0, (1 << 63) - 1),
        ("mode", 0, 0o7777),
        ("uid", 0, (1 << 32) - 2),
        ("gid", 0, (1 << 32) - 2),
        ("mtime_ns", -(1 << 63) * 10**9, (1 << 63) * 10**9 - 1),
    ],
)
def test_numbers_have_limits(fact: str, least: int, most: int) -> None:
    """Those of the operating system, to the last one."""
    for number in (least, most):
        check_member(file("a", **{fact: number}), "a")
    for number in (least - 1, most + 1):
        with pytest.raises(NotIntactError, match="media/a has a size, mode, owner or time that cannot be"):
            check_member(file("a", **{fact: number}), "a")


def test_the_top_is_a_directory() -> None:
    """Whatever is in it."""
    for kind in (FILE, SYMLINK, HARDLINK):
        with pytest.raises(NotIntactError, match=f"media should be a directory, and is a {kind.value}"):
            check_member(Member("media", kind, link="media/a"), "")
        with pytest.raises(NotIntactError, match="should be a directory"):
            check_member(Member("audit", kind, link="audit/a"), "log", "log")
    check_member(Member("media", DIRECTORY), "")
    check_member(Member("audit", DIRECTORY), "log", "log")
    check_member(file("log"), "log")


def test_the_place_of_restores_is_not_for_members() -> None:
    """Only at the top of the tree."""
    for path in (".kekkai-restore", ".kekkai-restore/a"):
        with pytest.raises(NotIntactError, match="where a restore keeps its own files"):
            rules(file(path))
    assert rules().add(file("a/.kekkai-restore")) == "a/.kekkai-restore"


def test_a_link_leads_somewhere() -> None:
    """A symlink without a target is none; a file needs none."""
    with pytest.raises(NotIntactError, match="media/a is a link to nowhere"):
        rules(Member("media/a", SYMLINK))
    rules(Member("media/a", SYMLINK, link="b"), file("b"))


class TestNames:
    """Each name once, and directories above it that are some."""

    def test_directories_may_come_before_what_is_in_them_or_after(self) -> None:
        """Or not at all; each once."""
        made = rules(file("a/b/c"), Member("media/a", DIRECTORY), Member("media/a/b", DIRECTORY), file("a/b/d"))
        assert [made.names.kind(path) for path in ("a", "a/b", "a/b/c", "a/c")] == [
            Kind.DIRECTORY,
            Kind.DIRECTORY,
            Kind.FILE,
            Kind.NOTHING,
        ]
        with pytest.raises(NotIntactError, match="media/a comes twice"):
            made.add(Member("media/a", DIRECTORY))

    @pytest.mark.parametrize(
        "members",
        [
            [file("a"), file("a")],
            [file("a"), file("a/b")],
            [file("a"), file("a/b/c")],
            [file("a/b"), file("a")],
            [file("a"), Member("media/a", DIRECTORY)],
            [Member("media/a", DIRECTORY), file("a")],
            [Member("media/a", SYMLINK, link="b"), file("a/c")],
        ],
    )
    def test_nothing_comes_twice(self, members: list[Member]) -> None:
        """Or as a file and as a directory."""
        with pytest.raises(NotIntactError, match="comes twice, or as a file and as a directory"):
            rules(*members)

    def test_a_hard_link_has_a_file_before_it(self) -> None:
        """Of the same component; a link to a link is one to the file."""
        made = rules(
            file("a"), Member("media/b", HARDLINK, link="media/a"), Member("media/c", HARDLINK, link="media/b")
        )
        for path, link in (("d", "media/x"), ("e", "media")):
            with pytest.raises(NotIntactError, match=f"is a link to {link}, which is no file before it"):
                made.add(Member(f"media/{path}", HARDLINK, link=link))
        with pytest.raises(NotIntactError, match="media/f is a link to audit/log, outside of the media"):
            made.add(Member("media/f", HARDLINK, link="audit/log"))


class TestWarnings:
    """What is restored with a change, or may be a problem elsewhere."""

    @pytest.mark.parametrize(
        ("mode", "is_warned_of"), [(0o4755, True), (0o2755, True), (0o1777, False), (0o755, False)]
    )
    def test_special_bits(self, mode: int, is_warned_of: bool) -> None:
        """Of files; a directory keeps its own."""
        assert bool(rules(file("a", mode=mode)).warnings()) is is_warned_of
        assert rules(Member("media/a", DIRECTORY, mode=mode)).warnings() == ()

    def test_links_that_lead_out(self) -> None:
        """They are refused, with the option; where they are allowed they are warned of."""
        link = Member("media/a", SYMLINK, link="/etc")
        with pytest.raises(NotIntactError, match="the link media/a leads out of the tree, to /etc") as caught:
            rules(link)
        assert "--allow-outside-links" in caught.value.hint
        (said,) = rules(link, allow_outside_links=True).warnings()
        assert said.startswith("the link media/a leads out of the tree, to /etc: ")
        assert rules(Member("media/d/a", SYMLINK, link="../b")).warnings() == ()

    @pytest.mark.parametrize(
        ("names", "warned"),
        [
            (["a", "A"], ["A"]),
            (["A", "a"], ["a"]),
            (["AB", "aB", "ab"], ["aB", "ab"]),
            (["d/A", "d/a"], ["d/a"]),
            (["d/A", "e/a"], []),
            (["A", "b"], []),
            (["straße", "STRASSE"], ["STRASSE"]),
        ],
    )
    def test_names_that_other_file_systems_take_for_one(self, names: list[str], warned: list[str]) -> None:
        """In one directory."""
        found = [said.split()[0] for said in rules(*map(file, names)).warnings()]
        assert found == warned

    @pytest.mark.parametrize("more", [-1, 0, 1, 5])
    def test_many_of_them(self, more: int) -> None:
        """So many are named, and the others counted."""
        count = MOST_WARNINGS + more
        found = rules(*(file(f"{number}", mode=0o4755) for number in range(count))).warnings()
        assert len(found) == min(count, MOST_WARNINGS) + (more > 0)
        assert found[0].startswith("media/0 loses its setuid or setgid bit")
        assert found[-1].startswith(f"and {more} more of this kind" if more > 0 else f"media/{count - 1} loses")
