"""The paths that a task may name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from worker.allowed_paths import check_archive, check_place
from worker.errors import RefusedError

if TYPE_CHECKING:
    from pathlib import Path


def may_use(path: str, *allowed: Path) -> bool:
    """Whether a task may name a path; a refusal says which one, and what to set."""
    try:
        check_place(path, allowed)
    except RefusedError as error:
        assert error.message == f"a worker may not use {path}"
        assert "BACKUP_ALLOWED_PATHS" in str(error.hint)
        return False
    return True


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory that tasks may use, beside another one."""
    for name in ("allowed", "allowed-not", "repository"):
        (tmp_path / name).mkdir()
    return tmp_path / "allowed"


@pytest.mark.parametrize("name", ["", "/", "/one", "/one/two", "/./one", "/one/../two"])
def test_what_is_inside_may_be_used(place: Path, name: str) -> None:
    """Also the directory itself, and what is not there yet."""
    assert may_use(f"{place}{name}", place.parent / "repository", place)


@pytest.mark.parametrize("name", ["-not", "-not/one", "/..", "/../repository", "/link/one", "/\0", "/loop/one"])
def test_what_is_outside_may_not(place: Path, name: str) -> None:
    """Nor what only begins like it, leads out of it, or cannot be a path at all."""
    (place / "link").symlink_to(place.parent / "repository")
    (place / "loop").symlink_to("loop")
    assert not may_use(f"{place}{name}", place)


def test_a_link_to_an_allowed_directory_is_one(place: Path) -> None:
    """As the settings name it."""
    (place.parent / "link").symlink_to(place)
    assert may_use(f"{place}/one", place.parent / "link")
    assert may_use(f"{place.parent}/link/one", place)


def test_a_relative_path_may_not_be_used(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would depend on where the worker was started."""
    monkeypatch.chdir(place)
    assert not may_use("one", place)


def test_where_nothing_is_allowed_nothing_may_be_used(place: Path) -> None:
    """A worker without the setting has the repository alone."""
    assert not may_use(str(place))


def test_an_archive_by_its_name_needs_no_place(place: Path) -> None:
    """By a path it is in the repository or in an allowed directory; the hint says what else can be done."""
    repository = place.parent / "repository"
    check_archive("latest", repository, [])
    check_archive(f"{repository}/one.tar.gz", repository, [])
    check_archive(f"{place}/one.tar.gz", repository, [place])
    for archive in (f"{place}/one.tar.gz", "../one.tar.gz"):
        with pytest.raises(RefusedError) as caught:
            check_archive(archive, repository, [])
        assert str(caught.value.hint).startswith("Copy it into the repository")
