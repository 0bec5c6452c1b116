"""The names that restores give to databases."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portal.ops.errors import ConfigurationError
from portal.ops.postgres.database_names import LONGEST_NAME, Marked, Names, Role

RESTORE = "restore_20260102_030405_ab12cd"


def test_a_name_says_what_when_and_of_which() -> None:
    """A short name is kept whole."""
    assert Names.of("portal", RESTORE).name(Role.BEFORE) == "portal_before_20260102_030405_ab12cd"


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=63), st.sampled_from(Role))
def test_names_fit_and_are_found_again(live: str, role: Role) -> None:
    """Whatever the live name, the other fits into PostgreSQL's limit, and tells its role and restore."""
    if len(live.encode()) > LONGEST_NAME:
        live = live.encode()[:60].decode(errors="ignore")
    name = Names.of(live, RESTORE).name(role)
    assert len(name.encode()) <= LONGEST_NAME
    marked = Marked.parse(name, live)
    assert marked is not None
    assert (marked.role, marked.restore_id) == (role, RESTORE)


def test_long_names_that_start_alike_stay_apart() -> None:
    """Two live databases whose names differ at the end only do not share the names of their restores."""
    one, other = "p" * 62 + "1", "p" * 62 + "2"
    name = Names.of(one, RESTORE).name(Role.STAGED)
    assert name != Names.of(other, RESTORE).name(Role.STAGED)
    assert Marked.parse(name, other) is None


@pytest.mark.parametrize("name", ["portal", "portal_before_christmas", "other_before_20260102_030405_ab12cd"])
def test_strangers_are_left_alone(name: str) -> None:
    """A database of another kind belongs to no restore of this one."""
    assert Marked.parse(name, "portal") is None


@pytest.mark.parametrize("restore_id", ["", "restore_x", "full_20260102_030405_ab12cd", RESTORE + '"; DROP'])
def test_an_id_of_another_kind_is_refused(restore_id: str) -> None:
    """What is not the id of a restore names no database."""
    with pytest.raises(ConfigurationError):
        Names.of("portal", restore_id)
