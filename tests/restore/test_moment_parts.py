"""A restore to a moment in parts: which copies are tried, what is locked and checked, and the plan for the database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import pytest

from portal.ops.errors import BusyError, ConfigurationError, DatabaseAbsentError, NotIntactError, OpsError, StorageError
from portal.ops.model import BackupType
from portal.ops.offsite.commit import Commit, Segment
from portal.ops.offsite.layout import Stem
from portal.ops.repository.repository import ArchiveFile
from portal.ops.restore import moment_offsite, recovered_database
from portal.ops.restore.config import RestoreScope
from portal.ops.restore.database.model import RestoreMode
from portal.ops.restore.database.plan import UNKNOWN_ROWS
from portal.ops.restore.moment_offsite import _bases, _brought, _brought_wal, _uploads
from portal.ops.restore.recovered_database import RecoveredDatabasePart, _must_be_there, _RecoveredPlan
from portal.ops.restore.source import RestoreSource
from portal.ops.settings.database_url import DatabaseTarget
from tests.support.kept import put_archive

if TYPE_CHECKING:
    from collections.abc import Iterator

NOON: Final = datetime(2026, 11, 29, 12, tzinfo=UTC)


def commit(kind: str, hours: float) -> Commit:
    """A copy of an archive that was made so many hours after noon."""
    return Commit(
        stem=Stem(f"{kind}{hours:+}"),
        type=kind,
        moment=NOON + timedelta(hours=hours),
        copied=NOON,
        archive_size=1,
        archive_sha256="",
        segment_bytes=1,
        segments=(Segment(1, ""),),
        recipients=(),
    )


class TestCopies:
    def test_bases(self) -> None:
        """The three newest that are old enough."""
        given = [commit("base", hours) for hours in (1, 0, -1, -2, -3)] + [commit("media", -1)]
        assert _bases(given, NOON) == [["base+0"], ["base-1"], ["base-2"]]

    def test_uploads(self) -> None:
        """The newest that is old enough with the first one after it, then two older ones."""
        given = [commit("media", 30), commit("full", 24), commit("media", 5), commit("database", 3), commit("media", 1)]
        given += [commit("full", 0), commit("media", -1), commit("base", -1), commit("media", -2), commit("media", -3)]
        assert _uploads(given, NOON) == [["full+0", "media+1"], ["media-1"], ["media-2"]]
        assert _uploads([commit("media", 25)], NOON) == [[]]
        assert _uploads([commit("media", 24)], NOON) == [["media+24"]]

    def test_one_destination_after_the_other(self) -> None:
        """Part by part, until it is here; the faults are kept, and no uploads come for a database that does not."""
        away, other = StorageError("away"), StorageError("other")

        class Bringer:
            destination = SimpleNamespace(shown="x")

            def __init__(self, brings: list[str], fault: StorageError | None = None) -> None:
                self._brings = brings
                self._fault = fault

            def bring(self, _moment: object, part: RestoreScope, *_: object) -> Iterator[str]:
                """What there is of that part, and then the fault."""
                asked.append(part)
                if part in self._brings:
                    here.add(part)
                    yield part.value
                if self._fault:
                    raise self._fault

        parts: Any = (RestoreScope.DATABASE, RestoreScope.MEDIA)
        for bringers, fetched, expected in (
            (
                [Bringer(["database"], away), Bringer(["media"], other), Bringer([])],
                ("database", "media"),
                [away, away, other],
            ),
            ([Bringer(["database"]), Bringer([], away), Bringer([], other)], ("database",), [away, other]),
            ([Bringer(["database"]), Bringer([])], ("database",), []),
            ([Bringer(["media"]), Bringer(["media"], away)], (), [away]),
        ):
            asked: list[Any] = []
            here: set[RestoreScope] = set()
            faults: list[OpsError] = []
            given: Any = bringers
            assert _brought(given, NOON, parts, here.__contains__, ["WAL"], faults) == ("WAL", *fetched)
            assert faults == expected
            assert asked[0] is RestoreScope.DATABASE
            assert (RestoreScope.MEDIA in asked) is (RestoreScope.DATABASE in here)
        asked = []
        assert _brought([Bringer([])], NOON, (), lambda _: True, ["WAL"], [away]) == ("WAL",)  # type: ignore[list-item]
        assert asked == []

    def test_wal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is told whether any came, and what could not be used; a service that runs is no failure yet."""
        settings: Any = SimpleNamespace(offsite=SimpleNamespace(signers=()))
        monkeypatch.setattr(moment_offsite, "trusted_signers", lambda *_: None)
        fault = NotIntactError("damaged")
        for count in (0, 1):
            monkeypatch.setattr(
                moment_offsite, "fetch_from_all", lambda *_, n=count: SimpleNamespace(count=n, faults=(fault,))
            )
            faults: list[Any] = []
            assert _brought_wal(None, settings, faults) is (count > 0)  # type: ignore[arg-type]
            assert faults == [fault]

        def busy(*_: object) -> None:
            raise BusyError("it runs")

        monkeypatch.setattr(moment_offsite, "fetch_from_all", busy)
        faults = []
        assert not _brought_wal(None, settings, faults)  # type: ignore[arg-type]
        assert [str(one) for one in faults] == [
            "no WAL is fetched from off-site while the WAL service runs: it runs\n  hint: Stop the WAL service and "
            "start this again, or name a moment inside the recovery window."
        ]


class TestSource:
    def test_a_chain(self, tmp_path: Path) -> None:
        """With uploads all of it is read; without them the archive alone. What has no sidecar is not confirmed."""
        name = put_archive(tmp_path, BackupType.MEDIA, NOON)
        path = tmp_path / f"{name}.tar.gz"
        archive = ArchiveFile(path=path, size=1, modified=NOON, backup_id=None)
        source = RestoreSource(archive=archive)
        (digest,) = source.needed().values()
        assert digest
        assert (list(source.needed()), source.unchecked(), source.recovery) == ([path], [], None)
        with source.lock(0):
            assert path.exists()
        source.open().close()
        RestoreSource(archive=archive, with_uploads=False).open().close()
        path.with_name(f"{path.name}.sha256").unlink()
        assert (source.needed(), source.unchecked()) == ({path: None}, [path])

    def test_a_moment(self, tmp_path: Path) -> None:
        """Everything that its choice needs."""
        paths = tuple(tmp_path / f"{put_archive(tmp_path, BackupType.MEDIA, NOON, request=one)}.tar.gz" for one in "ab")
        choice: Any = SimpleNamespace(needed=paths, recovery="plan")
        archive = ArchiveFile(path=paths[0], size=1, modified=NOON, backup_id=None)
        source = RestoreSource(archive=archive, choice=choice, with_uploads=False)
        assert tuple(source.needed()) == paths
        assert str(source.recovery) == "plan"


class TestDatabase:
    def plan(self, mode: RestoreMode) -> Any:
        """The plan of the restore into the live server."""
        return SimpleNamespace(
            mode=mode,
            warnings=("one", UNKNOWN_ROWS),
            blockers=("b",),
            lines=lambda: ["In the backup: x", "Live: y"],
        )

    def recovery(self) -> Any:
        """How the cluster is recovered."""
        return SimpleNamespace(
            cluster_bytes=1000, needed_bytes=5000, major=17, lines=lambda *, with_dump: [f"recovery {with_dump}"]
        )

    def test_in_words(self) -> None:
        """Rows are counted in the scratch server, so that they are not known is no warning."""
        made = _RecoveredPlan(database=self.plan(RestoreMode.SWAP), recovery=self.recovery())
        assert made.warnings == ("one",)
        assert list(map(str, made.blockers)) == ["b"]
        assert made.lines() == [
            "recovery True",
            "The rows of every table are counted in the scratch server, and after the restore",
            "Live: y",
        ]

    @pytest.mark.parametrize(
        ("mode", "place", "size"),
        [(RestoreMode.IN_PLACE, Path("/staged"), 2000), (RestoreMode.SWAP, Path("/scratch"), 5000)],
    )
    def test_room(self, monkeypatch: pytest.MonkeyPatch, mode: RestoreMode, place: Path, size: int) -> None:
        """For the scratch server; in place for two dumps."""
        asked: list[dict[str, Any]] = []

        def plan_of(**given: Any) -> Any:
            asked.append(given)
            return self.plan(mode)

        restore: Any = SimpleNamespace(plan=plan_of)
        part = object.__new__(RecoveredDatabasePart)
        part._restore = restore
        part._recovery = self.recovery()
        part._directory = Path("/staged")
        part._repository = SimpleNamespace(path=Path("/repository"))  # type: ignore[assignment]
        monkeypatch.setattr(RecoveredDatabasePart, "record", lambda _: {"database": "x"})
        monkeypatch.setattr(recovered_database, "scratch_parent", lambda path, _: Path("/scratch"))
        archive: Any = None
        planned = part.plan(archive, archive)
        assert asked == [{"dump_major": 17, "dump_bytes": 1000, "row_counts": {}}]
        assert (planned.stage_place, planned.stage_bytes, planned.content_bytes) == (place, size, 2000)
        assert planned.record == {"database": "x", "mode": mode.value}

    def test_a_database_that_was_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Those that were are named."""
        target = DatabaseTarget(host="h", port=1, name="new", user="u")

        class Connection:
            def __enter__(self) -> Any:
                return self

            def __exit__(self, *_: object) -> None:
                pass

            def execute(self, _query: str) -> list[tuple[str]]:
                """Two names."""
                return [("old",), ("other",)]

        def connect(asked: Any) -> Any:
            if asked == target:
                raise DatabaseAbsentError("no")
            assert asked == "postgres"
            return Connection()

        monkeypatch.setattr(recovered_database, "connect", connect)
        server: Any = SimpleNamespace(target=lambda name: name)
        with pytest.raises(ConfigurationError) as caught:
            _must_be_there(target, server)
        assert caught.value.message == "the recovered server has no database new, but old, other"
        assert "DD_DATABASE_NAME" in caught.value.hint
