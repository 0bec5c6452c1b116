"""Chains as values: what an archive needs, what needs it, and what is wrong with what was given."""

from __future__ import annotations

import pytest

from portal.ops.chains.graph import Chains, Link
from portal.ops.errors import NotIntactError


def chains(**parents: str | None) -> Chains:
    return Chains(Link(backup_id=name, parent=parent) for name, parent in parents.items())


def test_an_archive_needs_all_before_it() -> None:
    """The base comes first, the archive itself last."""
    found = chains(base=None, one="base", two="one", other=None)
    assert found.needed("two") == ("base", "one", "two")
    assert found.needed("other") == ("other",)


def test_all_after_an_archive_depend_on_it() -> None:
    """Also those of a fork; the archive itself is not among them."""
    found = chains(base=None, one="base", two="one", fork="one", other=None)
    assert found.dependents("base") == ("one", "fork", "two")
    assert found.dependents("one") == ("fork", "two")
    assert found.dependents("two") == ()


def test_the_head_is_the_end() -> None:
    """A base without incrementals is the end of its own chain."""
    found = chains(base=None, one="base", two="one", other=None)
    assert found.head("base") == "two"
    assert found.head("other") == "other"


def test_a_missing_archive_is_named() -> None:
    """And so is the one that needs it."""
    with pytest.raises(NotIntactError, match="two needs one, which is not there"):
        chains(base=None, two="one", three="two").needed("three")


@pytest.mark.parametrize("parents", [{"one": "two", "two": "one"}, {"one": "one"}])
def test_a_circle_ends(parents: dict[str, str]) -> None:
    """Parents that lead back are an error, and nothing depends on itself."""
    found = chains(**parents)
    with pytest.raises(NotIntactError, match="needs itself"):
        found.needed("one")
    assert "one" not in found.dependents("one")
