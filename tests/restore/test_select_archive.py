"""Which archive and which of its components a restore takes."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.errors import ArchiveAbsentError, ConfigurationError
from portal.ops.manifest import Manifest
from portal.ops.model import Component
from portal.ops.restore.config import RestoreConfig, RestoreResult, RestoreScope
from portal.ops.restore.outcome import ResultBuilder
from portal.ops.restore.select_archive import absolute, choose_archive, choose_components, name_of
from tests.support.repositories import publish, repository

if TYPE_CHECKING:
    from portal.ops.repository.repository import Repository

__all__ = ["repository"]

FULL, DATABASE, MEDIA, AUDIT = RestoreScope.FULL, RestoreScope.DATABASE, RestoreScope.MEDIA, RestoreScope.AUDIT_LOGS
EVERYTHING = (Component.DATABASE, Component.MEDIA, Component.AUDIT_LOGS)


def archive(kind: str, day: int) -> str:
    return f"{kind}_202401{day:02d}_120000_abc123"


def builder(scope: RestoreScope) -> ResultBuilder:
    return ResultBuilder(
        result=RestoreResult(success=False, backup_id="", scope=scope, timestamp=datetime(2026, 1, 1, tzinfo=UTC))
    )


def manifest(*components: Component, backup_id: str = "full_1") -> Manifest:
    return Manifest(
        backup_id=backup_id, type="full", timestamp="", components=components, hostname="", db_name="", details={}
    )


class TestArchive:
    """Which one."""

    @pytest.mark.parametrize(
        ("scope", "newest"),
        [(FULL, "full"), (DATABASE, "database"), (MEDIA, "media"), (AUDIT, "audit_logs")],
    )
    def test_the_latest_is_the_newest_that_holds_it(
        self, repository: Repository, scope: RestoreScope, newest: str
    ) -> None:
        """A full one holds everything, and is taken where it is the newest."""
        for day, kind in enumerate(("full", "database", "media", "audit_logs", "base"), 1):
            publish(repository, archive(kind, day))
        made = builder(scope)
        assert choose_archive(repository, made, "latest").name.startswith(f"{newest}_")
        assert made.result.backup_id.startswith(f"{newest}_")
        assert made.result.backup_file == str(repository.path / f"{made.result.backup_id}.tar.gz")
        publish(repository, archive("full", 9))
        assert choose_archive(repository, builder(scope), "latest").name == archive("full", 9)

    def test_newer_parts_are_told_of(self, repository: Repository) -> None:
        """To who restores everything, and asks for the latest; with the option for that part."""
        publish(repository, archive("full", 5))
        for kind, day in (("database", 4), ("media", 5)):
            publish(repository, archive(kind, day))
        for path in ("latest", archive("full", 5)):
            made = builder(FULL)
            choose_archive(repository, made, path)
            assert made.result.warnings == ()
        for kind, day in (("database", 6), ("media", 7)):
            publish(repository, archive(kind, day))
        made = builder(FULL)
        choose_archive(repository, made, "latest")
        assert made.result.warnings == (
            f"{archive('database', 6)} is newer and holds the database alone; --database-only restores that one",
            f"{archive('media', 7)} is newer and holds the uploads alone; --media-only restores that one",
        )
        for scope, path in ((FULL, archive("full", 5)), (DATABASE, "latest"), (MEDIA, "latest")):
            made = builder(scope)
            choose_archive(repository, made, path)
            assert made.result.warnings == ()

    def test_there_is_none(self, repository: Repository) -> None:
        """The result stays without a name."""
        made = builder(FULL)
        with pytest.raises(ArchiveAbsentError):
            choose_archive(repository, made, "latest")
        assert made.result.backup_id == ""

    @pytest.mark.parametrize(("said", "name"), [("full_9", "full_9"), ("", "file"), ("full\x1b[2J", "file")])
    def test_its_name(self, repository: Repository, said: str, name: str) -> None:
        """The manifest says it, unless it says nothing that could be shown."""
        publish(repository)
        (repository.path / "file.tar.gz").write_bytes(b"x")
        found = repository.find("file")
        assert name_of(found, manifest(backup_id=said)) == name

    def test_a_path_is_absolute(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Links in it stay."""
        (tmp_path / "link").symlink_to("/")
        monkeypatch.chdir(tmp_path)
        assert absolute(Path("link/../a")) == tmp_path / "a"
        assert absolute(Path("link/a")) == tmp_path / "link" / "a"


class TestComponents:
    """What of it."""

    def chosen(self, scope: RestoreScope, *held: Component, **config: Any) -> tuple[tuple[Component, ...], list[str]]:
        places: dict[str, Any] = {"media_path": "/m", "audit_log_path": "/a"}
        return choose_components(RestoreConfig(**(places | config)), scope, manifest(*held))

    def test_everything_the_database_first(self) -> None:
        """In whatever order the manifest lists it; of an archive with less, what it has."""
        assert self.chosen(FULL, *reversed(EVERYTHING)) == (EVERYTHING, [])
        assert self.chosen(FULL, Component.MEDIA) == ((Component.MEDIA,), [])

    @pytest.mark.parametrize("component", EVERYTHING)
    def test_one_alone(self, component: Component) -> None:
        """Whatever else there is, and whether that has a place or not."""
        places = {Component.MEDIA: {"audit_log_path": None}, Component.AUDIT_LOGS: {"media_path": None}}
        scope = RestoreScope(component.value)
        assert self.chosen(scope, *EVERYTHING, **places.get(component, {})) == ((component,), [])

    def test_one_that_the_archive_does_not_hold(self) -> None:
        """What it holds is said."""
        with pytest.raises(ConfigurationError, match="full_1 holds database, audit log, and no uploads"):
            self.chosen(MEDIA, Component.DATABASE, Component.AUDIT_LOGS)
        with pytest.raises(ConfigurationError, match="full_1 holds nothing, and no component"):
            self.chosen(FULL)

    def test_patterns_are_for_files(self) -> None:
        """A part of a database is refused, of an archive without one they are none of its business."""
        with pytest.raises(ConfigurationError, match="no part of a database"):
            self.chosen(FULL, *EVERYTHING, patterns=("*",))
        assert self.chosen(MEDIA, *EVERYTHING, patterns=("*",)) == ((Component.MEDIA,), [])

    def test_what_has_no_place(self) -> None:
        """It is left out, and said; where nothing has one, that is an error with the setting of the first."""
        config: dict[str, Any] = {"media_path": None, "audit_log_path": None}
        assert self.chosen(FULL, *EVERYTHING, **config) == (
            (Component.DATABASE,),
            [
                "left out: the uploads of the backup, for which no place is configured",
                "left out: the audit log of the backup, for which no place is configured",
            ],
        )
        with pytest.raises(ConfigurationError) as caught:
            self.chosen(FULL, Component.MEDIA, Component.AUDIT_LOGS, **config)
        assert caught.value.message == "there is no place configured for the uploads and the audit log"
        assert "PORTAL_UPLOAD_DIR" in caught.value.hint
        with pytest.raises(ConfigurationError) as caught:
            self.chosen(AUDIT, *EVERYTHING, **config)
        assert "PORTAL_AUDIT_DIR" in caught.value.hint
