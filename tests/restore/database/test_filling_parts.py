"""How a database is filled: which program gets which entries with which options, without a server."""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import psycopg
import pytest

from portal.ops.errors import ConfigurationError, DumpFailedError, OpsError, RestoreError
from portal.ops.postgres.dump_contents import Division, Run
from portal.ops.postgres.toc import Entry
from portal.ops.restore.database import replacement
from portal.ops.restore.database.fill import Filling, _Loading, _reason
from portal.ops.restore.database.in_place import Before
from portal.ops.restore.database.replacement import Replacement
from portal.ops.settings.database_url import DatabaseTarget
from tests.support.fake_runner import FakeProcess, FakeRunner, Script

if TYPE_CHECKING:
    from collections.abc import Iterator

TARGET: Final = DatabaseTarget(host="h", port=1, name="live", user="u")
HEAD: Final = Path("/head")


def entry(number: int, kind: str = "TABLE", **more: Any) -> Entry:
    return Entry(number=number, kind=kind, name=f"t{number}", schema="public", **more)


class Restorer:
    """Notes what is restored, by the numbers of the entries, with the other options and the file."""

    def __init__(self) -> None:
        self.done: list[tuple[str, list[str], Path]] = []

    def stage(self, target: DatabaseTarget, options: list[str], file: Path) -> None:
        """Note it."""
        assert target == TARGET
        (wanted,) = (option for option in options if option.startswith("--use-list="))
        numbers = " ".join(re.findall(r"\d+", Path(wanted.partition("=")[2]).read_text()))
        self.done.append((numbers, [option for option in options if option != wanted], file))


class Dump:
    """A dump in a few pieces.

    Arguments:
        fits: whether it may be put into a file.
    """

    def __init__(self, path: Path, *, fits: bool = True, fault: OSError | None = None) -> None:
        self.path = path
        self.weights: dict[str, int] = {}
        self.advanced: list[int] = []
        self.opened = 0
        self._fits = fits
        self._fault = fault

    def fits(self) -> bool:
        """As given."""
        return self._fits

    def save(self) -> None:
        """Write the file, or fail."""
        self.path.write_text("dump")
        if self._fault:
            raise self._fault

    def advance(self, count: int) -> None:
        """Note the bytes."""
        self.advanced.append(count)

    @contextmanager
    def open(self) -> Iterator[Iterator[bytes]]:
        """Three pieces."""
        self.opened += 1
        yield iter([b"one", b"two", b"three"])


def filling(tmp_path: Path, **more: Any) -> tuple[Filling, Restorer, Dump]:
    """What is filled, and what notes it."""
    restorer, dump = Restorer(), more.pop("dump", None) or Dump(tmp_path / "staged.dump")
    parts: dict[str, Any] = {
        "before": (Run(entries=(entry(1),), as_administrator=True), Run(entries=(entry(2),), as_administrator=False)),
        "rows": (entry(3, "TABLE DATA"),),
        "after": (entry(4, "INDEX"), entry(5, "RULE")),
        "privileges": (entry(6, "ACL"),),
        "views": (),
        "statistics": (),
        "last": (Run(entries=(entry(7, "EVENT TRIGGER"),), as_administrator=True),),
        "roleless": (),
    }
    around = SimpleNamespace(missing_tablespaces=(), missing_roles=("gone",), warnings=lambda: ["around"])
    given: dict[str, Any] = {
        "restorer": restorer,
        "dump": dump,
        "head": HEAD,
        "target": TARGET,
        "jobs": 2,
        "role": "owner",
        "is_superuser": True,
        "division": Division(**parts | more.pop("parts", {})),
        "around": around,
        "entries": (),
    }
    return Filling(**given | more), restorer, dump


class TestFilling:
    def test_from_a_file(self, tmp_path: Path) -> None:
        """Rows and indexes together, as the administrator; what has to wait afterwards. The file goes."""
        made, restorer, dump = filling(tmp_path)
        made.fill()
        owner = ["--role=owner"]
        assert restorer.done == [
            ("1", [], HEAD),
            ("2", owner, HEAD),
            ("3 4", ["--jobs=2"], dump.path),
            ("5", owner, HEAD),
            ("6", [], HEAD),
        ]
        assert not dump.path.exists()
        assert made.warnings == []
        made.finish()
        assert restorer.done[5:] == [("7", [], HEAD)]
        assert made.warnings == ["around"]

    @pytest.mark.parametrize(("jobs", "fits"), [(1, True), (2, False)])
    def test_through_a_pipe(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int, fits: bool) -> None:
        """With one connection, or where the dump does not fit."""
        loaded: list[Any] = []
        monkeypatch.setattr(_Loading, "run", lambda self, shares: loaded.append((self._options, shares)))
        made, restorer, _ = filling(tmp_path, jobs=jobs, dump=Dump(tmp_path / "d", fits=fits))
        made.fill()
        assert [(options, [one.number for share in shares for one in share]) for options, shares in loaded] == [
            ([], [3])
        ]
        assert [done[:2] for done in restorer.done] == [
            ("1", []),
            ("2", ["--role=owner"]),
            ("4 5", ["--role=owner", f"--jobs={jobs}"]),
            ("6", []),
        ]

    @pytest.mark.parametrize(
        ("role", "is_superuser", "plain", "administrator"),
        [
            (None, True, [], []),
            ("owner", False, ["--role=owner"], ["--role=owner"]),
            ("owner", True, ["--role=owner"], []),
        ],
    )
    def test_as_whom(
        self, tmp_path: Path, role: str | None, is_superuser: bool, plain: list[str], administrator: list[str]
    ) -> None:
        """Only a superuser does anything in another's place; tablespaces that are missing are left out."""
        made, _, _ = filling(tmp_path, role=role, is_superuser=is_superuser)
        assert (made._options(), made._options(as_administrator=True)) == (plain, administrator)
        around = SimpleNamespace(missing_tablespaces=("fast",))
        made, _, _ = filling(tmp_path, role=role, is_superuser=is_superuser, around=around)
        assert made._options() == ["--no-tablespaces", *plain]

    def test_nothing_to_restore(self, tmp_path: Path) -> None:
        """No program is started for no entries."""
        empty: dict[str, Any] = dict.fromkeys(("before", "rows", "after", "privileges", "last"), ())
        made, restorer, _ = filling(tmp_path, parts=empty)
        made.fill()
        made.finish()
        assert restorer.done == []

    def test_a_dump_that_cannot_be_written(self, tmp_path: Path) -> None:
        """It is said where, and nothing of it stays."""
        dump = Dump(tmp_path / "d", fault=OSError(28, "No space left on device"))
        made, restorer, _ = filling(tmp_path, dump=dump)
        with pytest.raises(RestoreError) as caught:
            made.fill()
        assert caught.value.message == f"cannot write the dump to {tmp_path}/d: no space left on device"
        assert not dump.path.exists()
        assert [numbers for numbers, _, _ in restorer.done] == ["1", "2"]

    def test_privileges_of_roles_that_are_missing(self, tmp_path: Path) -> None:
        """Three are named; what names no missing role is granted."""
        definition = "GRANT SELECT ON TABLE public.t TO here;\n" + "".join(
            f"GRANT {what} ON TABLE public.t TO gone;\n"
            for what in ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE")
        )
        for count, more in ((3, ""), (5, "; and 2 more")):
            text = "\n".join(definition.splitlines()[: count + 1]) + "\n"
            made, _, _ = filling(tmp_path, parts={"roleless": (entry(9, "ACL", definition=text),)})
            executed: list[bytes] = []
            connection: Any = SimpleNamespace(execute=executed.append)
            made._grant_the_rest(connection)
            assert executed == [b"GRANT SELECT ON TABLE public.t TO here"]
            (warning,) = made.warnings
            assert warning.startswith("left out, for want of the role: GRANT SELECT ON TABLE public.t TO gone")
            assert warning.count("GRANT") == 3
            assert warning.endswith(f"UPDATE ON TABLE public.t TO gone{more}")

    def test_a_view_that_cannot_be_filled(self, tmp_path: Path) -> None:
        """It is named with the reason; the others are filled, as the owner. A lost connection ends it."""
        made, _, _ = filling(tmp_path, parts={"views": (entry(1), entry(2))})
        executed: list[str] = []

        class Connection:
            closed = False

            def execute(self, statement: Any) -> None:
                """Refuse the first view."""
                executed.append(statement if isinstance(statement, str) else statement.as_string(None))
                if "t1" in executed[-1]:
                    raise psycopg.OperationalError("server away\nmore")

        connection: Any = Connection()
        made._fill_views(connection)
        assert executed[1:] == [
            'SET ROLE "owner"',
            'REFRESH MATERIALIZED VIEW "public"."t1"',
            'REFRESH MATERIALIZED VIEW "public"."t2"',
        ]
        assert made.warnings == [
            "materialized view public.t1 is there, and empty: server away; when that is fixed: "
            "REFRESH MATERIALIZED VIEW public.t1"
        ]
        connection.closed = True
        with pytest.raises(psycopg.OperationalError):
            made._fill_views(connection)
        assert _reason(psycopg.OperationalError("one\ntwo")) == "one"


class TestLoading:
    def loading(self, runner: FakeRunner, dump: Dump, finished: list[Any]) -> _Loading:
        """Programs that are played."""

        def start(target: DatabaseTarget, options: list[str]) -> Any:
            return runner.start(["pg_restore", *options], environment={})

        def finish(process: FakeProcess) -> None:
            finished.append(process)
            if process.wait():
                raise DumpFailedError("it failed", hint="")

        restorer: Any = SimpleNamespace(start_stage=start, finish=finish)
        given: Any = dump
        return _Loading(restorer, given, TARGET, ["--option"])

    def test_each_gets_the_whole_dump(self, tmp_path: Path) -> None:
        """Progress is that of the first; all are waited for."""
        runner, dump, finished = FakeRunner({"pg_restore": Script()}), Dump(tmp_path), list[Any]()
        written: list[list[bytes]] = []
        start = runner.start

        def noted(*given: Any, **more: Any) -> Any:
            process = start(*given, **more)
            own: list[bytes] = []
            written.append(own)
            process.stdin.write = own.append  # type: ignore[method-assign, assignment]
            return process

        runner.start = noted  # type: ignore[method-assign]
        self.loading(runner, dump, finished).run([[entry(1)], [entry(2)]])
        assert written == [[b"one", b"two", b"three"]] * 2
        assert (dump.advanced, dump.opened, len(finished)) == ([3, 3, 5], 2, 2)
        assert [command[1:3] for command in runner.commands] == [["--option", "--section=data"]] * 2
        assert all(process.stdin.closed for process in runner.processes)

    def test_one_that_has_all_it_needs(self, tmp_path: Path) -> None:
        """The dump of the first is read to the end all the same; another one's is not."""
        for count in (1, 2):
            runner, dump, finished = FakeRunner({"pg_restore": Script()}), Dump(tmp_path), list[Any]()
            start = runner.start

            def deaf(*given: Any, start: Any = start, **more: Any) -> Any:
                process = start(*given, **more)

                def refuse(_: bytes) -> None:
                    raise BrokenPipeError

                process.stdin.write = refuse
                return process

            runner.start = deaf  # type: ignore[method-assign]
            self.loading(runner, dump, finished).run([[entry(number)] for number in range(count)])
            assert dump.advanced == [3, 3, 5]
            assert all(process.stdin.closed for process in runner.processes)

    def test_one_that_fails(self, tmp_path: Path) -> None:
        """Its error is raised, and all programs are ended."""
        runner, dump = FakeRunner({"pg_restore": [Script(hangs=True), Script(returncode=1)]}), Dump(tmp_path)
        start = runner.start

        def second(*given: Any, **more: Any) -> Any:
            process = start(*given, **more)
            if len(runner.processes) == 2:

                def refuse(_: bytes) -> None:
                    raise BrokenPipeError

                process.stdin.write = refuse  # type: ignore[method-assign, assignment]
            return process

        runner.start = second  # type: ignore[method-assign]
        with pytest.raises(DumpFailedError, match="it failed"):
            self.loading(runner, dump, []).run([[entry(1)], [entry(2)]])
        assert all(process.returncode is not None for process in runner.processes)


def replaced(**more: Any) -> Replacement:
    given: dict[str, Any] = {
        "runner": FakeRunner({}),
        "bin_dir": None,
        "jobs": 1,
        "create_database": False,
        "owner": None,
    }
    return Replacement(TARGET, "restore_1", more.pop("safety_dump", None), **given | more)


class TestReplacement:
    def test_without_a_safety_dump(self) -> None:
        """Nothing is replaced, and nothing can come back."""
        dump: Any = None
        with pytest.raises(ConfigurationError, match="a restore in place needs a path for its safety dump"):
            replaced().replace(dump, {}, None)
        assert replaced().before() is None
        with pytest.raises(OpsError):
            replaced().replace_back()

    @pytest.mark.parametrize("came_through", [True, False])
    def test_a_connection_that_breaks(self, monkeypatch: pytest.MonkeyPatch, came_through: bool) -> None:
        """The server may have committed all the same: it is asked, after the sessions have ended."""
        done: list[str] = []

        def fails(*_: object, **__: object) -> None:
            raise OpsError("broken")

        before: Any = SimpleNamespace(is_replaced=lambda _: came_through)
        monkeypatch.setattr(Replacement, "_create_where_absent", lambda *_: ("created",))
        monkeypatch.setattr(Replacement, "restorer", lambda *_: None)
        monkeypatch.setattr(Before, "save", lambda *_, **__: before)
        monkeypatch.setattr(replacement, "replace_contents", fails)
        monkeypatch.setattr(replacement, "end_orphans", lambda *given: done.append(given[1]))
        monkeypatch.setattr(replacement, "settle", lambda *_: {"a": 1, "b": 2})
        monkeypatch.setattr(replacement, "disabled_subscriptions", lambda _: ("disabled",))
        monkeypatch.setattr(
            replacement, "check", lambda *given: SimpleNamespace(wrong=tuple(given[1]), warnings=lambda: ("warned",))
        )
        made, dump = replaced(safety_dump=Path("/safe")), SimpleNamespace(major=lambda: 17, path=Path("/d"))
        given: Any = dump
        if came_through:
            result = made.replace(given, {"a": 1}, None)
            assert result.warnings == ("created", "a", "warned", "disabled")
            assert 0 <= result.downtime_seconds < 60
        else:
            with pytest.raises(OpsError, match="broken"):
                made.replace(given, {"a": 1}, None)
        assert done == ["restore_1"]

    def test_what_was_there_comes_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Then the planner gets its statistics, and the safety dump goes."""
        done: list[str] = []
        before: Any = SimpleNamespace(dump=Path("/safe"), remove=lambda: done.append("removed"))
        monkeypatch.setattr(Replacement, "before", lambda _: before)
        monkeypatch.setattr(Replacement, "restorer", lambda *given: done.append(f"restorer {given[1]}"))
        monkeypatch.setattr(replacement, "read_dump_major", lambda path: f"of {path}")
        monkeypatch.setattr(replacement, "roll_back", lambda *_, **__: done.append("rolled back"))
        monkeypatch.setattr(replacement, "settle", lambda *_: done.append("settled"))
        assert 0 <= replaced().replace_back().downtime_seconds < 60
        assert done == ["restorer of /safe", "rolled back", "settled", "removed"]
