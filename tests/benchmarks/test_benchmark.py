"""The benchmark's arithmetic and data, and that a failure never becomes a figure; nothing in here times anything."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from benchmarks import measure
from benchmarks.case import OURS, Case, Contender
from benchmarks.cases import RANDOM, SARIF, SMALL, all_cases
from benchmarks.data import Content, CopiedSet, DataSet, content_of, files_below, planned_files, provide
from benchmarks.measure import Command, CommandFailedError, Memory, Statistic, run, tree_memory
from benchmarks.outcome import Bound, Measure, Outcome, Result, Target
from benchmarks.report import results_table, summary_table, targets_table
from benchmarks.rounds import Workshop, install_hint, play, says_success
from benchmarks.table import Table

if TYPE_CHECKING:
    from pathlib import Path

TINY = DataSet(content=Content.SARIF, files=4, size=40_000)
PEER = "peer"
SPEED = Target(measure=Measure.TIME, subject=OURS, reference=PEER, bound=Bound.AT_LEAST, wanted=3)
SIZE = Target(measure=Measure.SIZE, subject=OURS, reference=PEER, bound=Bound.AT_MOST, wanted=1.08)


def python(code: str) -> Command:
    return Command(argv=(sys.executable, "-c", code))


def case_of(*contenders: Contender, data: DataSet = TINY, targets: tuple[Target, ...] = ()) -> Case:
    return Case(name="tiny", title="a case", data=data, contenders=contenders, targets=targets)


def outcome_of(name: str, *walls: float, size: int) -> Outcome:
    return Outcome(name=name, results=tuple(Result(wall=wall, cpu=wall, size=size) for wall in walls))


def workshop_in(directory: Path, told: list[str] | None = None, rounds: int = 2) -> Workshop:
    return Workshop(directory=directory, rounds=rounds, tell=(told if told is not None else []).append)


def test_a_statistic_is_the_median_with_both_ends() -> None:
    assert Statistic.of([5.0, 1.0, 3.0]) == Statistic(median=3.0, minimum=1.0, maximum=5.0)
    assert Statistic.of([4, 1]).median == 2.5


def test_a_speed_is_the_peers_median_over_ours() -> None:
    outcomes = {OURS: outcome_of(OURS, 1.0, 2.0, 9.0, size=108), PEER: outcome_of(PEER, 6.0, size=100)}
    assert SPEED.measured(outcomes) == 3.0
    assert SPEED.is_reached(3.0)
    assert not SPEED.is_reached(2.99)


def test_a_bound_from_above_is_ours_over_the_peers() -> None:
    outcomes = {OURS: outcome_of(OURS, 1.0, size=108), PEER: outcome_of(PEER, 1.0, size=100)}
    assert SIZE.measured(outcomes) == 1.08
    assert SIZE.is_reached(1.08)
    assert not SIZE.is_reached(1.09)


def test_a_target_without_a_figure_is_neither_reached_nor_missed() -> None:
    case = case_of(Contender(name=OURS, run=python("")), targets=(SPEED,))
    outcomes = {OURS: outcome_of(OURS, 1.0, size=1), PEER: Outcome(name=PEER, trouble="not installed")}
    assert targets_table([(case, outcomes)]).rows == ((f"tiny: speed of {OURS}, against {PEER}", "≥ 3.00x", "-", "-"),)


def test_a_table_is_aligned_for_a_terminal() -> None:
    table = Table(title="Title", header=("", "time, s"), rows=(("tar czf", "20.00"), ("us", "-")))
    assert table.text().splitlines() == [
        "Title",
        "         time, s",
        "-------  -------",
        "tar czf    20.00",
        "us             -",
    ]


def test_a_table_is_markdown() -> None:
    table = Table(title="Title", header=("", "time, s"), rows=(("tar czf", "20.00"),))
    assert table.markdown() == "### Title\n\n|  | time, s |\n| --- | ---: |\n| tar czf | 20.00 |\n"


def test_results_show_median_ends_ratio_and_trouble() -> None:
    case = case_of(Contender(name=OURS, run=python("")))
    outcomes = {
        OURS: outcome_of(OURS, 1.0, 2.0, 3.0, size=3_000_000),
        PEER: outcome_of(PEER, 5.0, 5.0, 5.0, size=2_000_000),
        "borg": Outcome(name="borg", trouble="not installed: apt-get install borgbackup"),
    }
    table = results_table(case, outcomes)
    assert table.header == ("", "time, s", "CPU, s", "size, MB", "time / ours")
    assert table.rows == (
        (OURS, "2.00 (1.00 - 3.00)", "2.00 (1.00 - 3.00)", "3.0", "1.00x"),
        (PEER, "5.00", "5.00", "2.0", "2.50x"),
        ("borg (not installed: apt-get install borgbackup)", "-", "-", "-", "-"),
    )


def test_results_say_what_each_program_proves() -> None:
    """A program that syncs and hashes is not compared silently with one that does not."""
    case = case_of(Contender(name=OURS, run=python(""), proof="SHA-256; synced"), Contender(name=PEER, run=python("")))
    outcomes = {name: outcome_of(name, 1.0, size=1) for name in (OURS, PEER)}
    assert [row[-1] for row in results_table(case, outcomes).rows] == ["SHA-256; synced", ""]


def test_the_summary_has_every_row_and_marks_those_that_are_faster() -> None:
    """The README's table comes from this: nothing is left out because it looks bad."""
    case = case_of(Contender(name=OURS, run=python("")), Contender(name=PEER, run=python("")))
    outcomes = {OURS: outcome_of(OURS, 2.0, size=3_000_000), PEER: outcome_of(PEER, 1.0, size=2_000_000)}
    assert summary_table([(case, outcomes)]).rows == (
        ("a case", OURS, "2.00 s", "", "3 MB", ""),
        ("", PEER, "1.00 s", "**0.50x**", "2 MB", ""),
    )


def test_every_contender_says_what_it_proves() -> None:
    """In a case that writes or checks, each program's digests and syncing are named."""
    named = [case for case in all_cases() if any(contender.proof for contender in case.contenders)]
    assert named
    assert [case.name for case in named if not all(contender.proof for contender in case.contenders)] == []


def test_the_same_seed_makes_the_same_files(tmp_path: Path) -> None:
    first, second = (provide(TINY, tmp_path / name) for name in ("a", "b"))
    relative = [path.relative_to(first) for path in files_below(first)]
    assert relative == [path.relative_to(second) for path in files_below(second)]
    for path in relative:
        assert (first / path).read_bytes() == (second / path).read_bytes()
        assert (first / path).stat().st_mtime_ns == (second / path).stat().st_mtime_ns
        assert (first / path).stat().st_mode & 0o777 == 0o600


def test_another_seed_makes_other_files() -> None:
    other = DataSet(content=Content.SARIF, files=4, size=40_000, seed=2)
    assert [*map(content_of, planned_files(TINY))] != [*map(content_of, planned_files(other))]


@pytest.mark.parametrize("data", [SARIF, SMALL, RANDOM], ids=lambda data: data.content.name)
def test_a_data_set_has_the_size_and_number_of_files_it_says(data: DataSet) -> None:
    small = data.scaled(0.005)
    contents = [content_of(plan) for plan in planned_files(small)]
    assert len(contents) == small.files
    assert sum(map(len, contents)) == pytest.approx(small.size, rel=0.05)


@pytest.mark.parametrize("content", [Content.SARIF, Content.REPORTS])
def test_documents_are_json(content: Content) -> None:
    plans = list(planned_files(DataSet(content=content, files=5, size=50_000)))
    assert len(plans) == 5
    for plan in plans:
        assert isinstance(json.loads(content_of(plan)), dict)


def test_a_data_set_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    made = provide(TINY, tmp_path)
    (made / "mark").touch()
    assert (provide(TINY, tmp_path) / "mark").exists()


def test_an_unfinished_data_set_is_made_anew(tmp_path: Path) -> None:
    remains = tmp_path / f".{TINY.directory_name()}.partial"
    remains.mkdir()
    (remains / "half").touch()
    assert len(files_below(provide(TINY, tmp_path))) == TINY.files


def test_copies_are_distinct_files_of_the_size_asked_for(tmp_path: Path) -> None:
    files = files_below(provide(CopiedSet(sources=(TINY,), size=200_000), tmp_path))
    assert len({path.read_bytes() for path in files}) == len(files)
    assert all(path.stat().st_nlink == 1 for path in files)
    assert 200_000 <= sum(path.stat().st_size for path in files) < 230_000


def test_a_command_gets_its_words() -> None:
    command = Command(argv=("tar", "{out}/x"), env={"WHERE": "{data}"}).filled({"out": "/o", "data": "/d"})
    assert command == Command(argv=("tar", "/o/x"), env={"WHERE": "/d"})


def test_a_command_without_its_word_is_an_error() -> None:
    with pytest.raises(CommandFailedError, match="there is no archive"):
        Command(argv=("tar", "{archive}")).filled({"out": "/o"})


def test_a_command_sees_none_of_our_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("BACKUP_RETENTION_COUNT", "3")
    environment = Command(argv=("true",), env={"BACKUP_LOCAL_PATH": "/r"}).environment()
    assert environment.keys() & {"PYTHONDONTWRITEBYTECODE", "BACKUP_RETENTION_COUNT"} == set()
    assert environment["BACKUP_LOCAL_PATH"] == "/r"


def test_a_run_yields_time_and_output() -> None:
    measured = run(python("print('done')"))
    assert measured.stdout == "done\n"
    assert measured.wall > 0
    assert measured.cpu > 0


def test_the_memory_of_children_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = tmp_path / "seen"

    def noted(pid: int) -> Memory:
        found = tree_memory(pid)
        if found.pss > 60_000_000:
            seen.touch()
        return found

    monkeypatch.setattr(measure, "tree_memory", noted)
    child = "import os, time; held = bytearray(60_000_000)\n"
    child += f"for _ in range(6000):\n    os.path.exists({str(seen)!r}) or time.sleep(0.01)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    peak = run(python(code), watches_memory=True).peak
    assert peak is not None
    assert 60_000_000 < peak.pss <= peak.rss < 200_000_000


def test_memory_adds_up_by_kind() -> None:
    assert Memory(pss=1, rss=5) + Memory(pss=2, rss=6) == Memory(pss=3, rss=11)
    assert Memory(pss=1, rss=6).maximum(Memory(pss=2, rss=5)) == Memory(pss=2, rss=6)


def test_a_failed_command_is_an_error_that_shows_its_output() -> None:
    with pytest.raises(CommandFailedError, match=r"(?s)exit code 3.*no space"):
        run(python("import sys; print('no space', file=sys.stderr); sys.exit(3)"))


def test_a_command_that_cannot_start_is_an_error() -> None:
    with pytest.raises(CommandFailedError, match="could not be started"):
        run(Command(argv=("/nowhere/at/all",)))


def test_a_contender_that_fails_once_has_no_figures_and_the_others_have(tmp_path: Path) -> None:
    told: list[str] = []
    mark = tmp_path / "mark"
    second_time = f"import pathlib, sys; m = pathlib.Path({str(mark)!r}); sys.exit(m.exists()); "
    failing = Contender(name=OURS, run=python(second_time), check=(python(f"open({str(mark)!r}, 'w')"),))
    outcomes = play(case_of(failing, Contender(name=PEER, run=python(""))), workshop_in(tmp_path / "work", told))
    assert outcomes[OURS].failed
    assert outcomes[OURS].median(Measure.TIME) is None
    assert len(outcomes[PEER].results) == 2
    assert any("FAILED" in line and "exit code 1" in line for line in told)


def test_a_run_that_does_not_say_success_has_no_figure(tmp_path: Path) -> None:
    silent = Contender(name=OURS, run=python("print('done')"), says_success=True)
    assert play(case_of(silent), workshop_in(tmp_path))[OURS].failed


def test_a_run_that_writes_nothing_has_no_figure(tmp_path: Path) -> None:
    idle = Contender(name=OURS, run=python(""), output="*.tar.gz")
    assert play(case_of(idle), workshop_in(tmp_path))[OURS].failed


def test_a_missing_program_is_named_with_its_package_and_is_no_failure(tmp_path: Path) -> None:
    absent = Contender(name=PEER, run=Command(argv=("no-such-program",)), needs=("no-such-program",))
    outcome = play(case_of(Contender(name=OURS, run=python("")), absent), workshop_in(tmp_path))[PEER]
    assert outcome.trouble == "not installed: apt-get install no-such-program"
    assert not outcome.failed
    assert install_hint([sys.executable]) == ""


def test_contenders_take_turns_in_fresh_directories(tmp_path: Path) -> None:
    told: list[str] = []
    write = Command(argv=(sys.executable, "-c", "open('{out}/written', 'x').write('1')"))
    contenders = [Contender(name=name, run=write, output="written") for name in (OURS, PEER)]
    outcomes = play(case_of(*contenders), workshop_in(tmp_path, told))
    assert [line.split(":")[0] for line in told[1:]] == [
        "tiny 1/2  ours",
        "tiny 1/2  peer",
        "tiny 2/2  ours",
        "tiny 2/2  peer",
    ]
    assert [result.size for result in outcomes[PEER].results] == [1, 1]
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize(
    ("output", "success"),
    [('{"success": true}', True), ('{"success": "yes"}', False), ("[true]", False), ("done", False), ("", False)],
)
def test_success_is_a_json_object_that_says_so(output: str, success: bool) -> None:
    assert says_success(output) is success


def test_no_run_remembers_the_repository_of_another() -> None:
    """A repository that is gone is missed by what noted it; each run has a new one in a directory of the same name."""
    commands = [
        command
        for case in all_cases()
        for each in case.contenders
        for command in (*each.setup, *each.prepare, each.run)
        if "BACKUP_LOCAL_PATH" in command.env
    ]
    assert commands
    assert all(command.env["XDG_STATE_HOME"] == f"{command.env['BACKUP_LOCAL_PATH']}/.state" for command in commands)


def test_every_target_names_contenders_of_its_case() -> None:
    assert list(all_cases())
    for case in all_cases():
        names = {contender.name for contender in case.contenders}
        assert len(names) == len(case.contenders)
        for target in case.targets:
            assert {target.subject, target.reference or target.subject} <= names
