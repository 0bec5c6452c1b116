"""What the documents say that is printed is held against the source: nobody looks for what is no longer said."""

from __future__ import annotations

import ast
import builtins
import re
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

import worker.errors as worker_errors
from portal.ops import errors

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[2]
DOCUMENTS: Final = tuple(ROOT / "docs" / name for name in ("messages.md", "operations.md", "disaster-recovery.md"))
GAP: Final = "\0"
"""Stands in a text of the source for what is only known when it is said."""

_PLACEHOLDER: Final = re.compile(r"…|\b(?:defectdojo|uploads|pg_restore|pg_dump|permission denied|\d+)\b")
"""What stands in the documents for what is only known then, the examples with it."""

EXPLAINED: Final = (
    "portal/ops/backup/loss.py",
    "portal/ops/filesystem/refusals.py",
    "portal/ops/pitr/replication.py",
    "portal/ops/postgres/client_tools.py",
    "portal/ops/postgres/connection.py",
    "portal/ops/postgres/dump.py",
    "portal/ops/postgres/explained.py",
    "portal/ops/postgres/failures.py",
    "portal/ops/postgres/inspection.py",
    "portal/ops/postgres/locks.py",
    "portal/ops/postgres/refusals.py",
    "portal/ops/postgres/removal.py",
    "portal/ops/postgres/server.py",
    "portal/ops/postgres/supported.py",
    "portal/ops/repository/identity.py",
    "portal/ops/restore/database/means.py",
    "portal/ops/restore/database/swap.py",
    "portal/ops/restore/files/free_space.py",
    "portal/ops/restore/files/plan.py",
    "portal/ops/restore/files/preflight.py",
)
"""Modules whose errors come from the operator's servers, disks and privileges: the documents explain each of them."""

HINT_SUFFICES: Final = {
    "an argument or a setting is wrong, the message names it, and the hint or docs/settings.md has what it takes": (
        "portal/ops/backup/changes.py",
        "portal/ops/backup/config.py",
        "portal/ops/backup/run.py",
        "portal/ops/drill/",
        "portal/ops/model.py",
        "portal/ops/monitoring/",
        "portal/ops/pitr/data_dir.py",
        "portal/ops/pitr/moment.py",
        "portal/ops/pitr/plan.py",
        "portal/ops/postgres/database_names.py",
        "portal/ops/restore/config.py",
        "portal/ops/restore/database/replacement.py",
        "portal/ops/restore/database/restore.py",
        "portal/ops/restore/files/selection.py",
        "portal/ops/restore/moment.py",
        "portal/ops/restore/moment_offsite.py",
        "portal/ops/restore/recovered_database.py",
        "portal/ops/restore/select_archive.py",
        "portal/ops/retention/",
        "portal/ops/runtime/",
        "portal/ops/settings/",
        "portal/ops/verify/",
        "tools/",
    ),
    "an archive, a copy, a record or WAL is damaged or missing: 'Exit 4, not intact' says what to do": (
        "portal/ops/archive/",
        "portal/ops/chains/",
        "portal/ops/manifest.py",
        "portal/ops/offsite/",
        "portal/ops/pitr/base_chain.py",
        "portal/ops/pitr/base_manifest.py",
        "portal/ops/pitr/unpack.py",
        "portal/ops/pitr/wal_archive.py",
        "portal/ops/pitr/wal_fetch.py",
        "portal/ops/pitr/wal_objects.py",
        "portal/ops/pitr/wal_trust.py",
        "portal/ops/postgres/dump_file.py",
        "portal/ops/postgres/identity.py",
        "portal/ops/postgres/toc.py",
        "portal/ops/repository/access_log.py",
        "portal/ops/repository/records.py",
        "portal/ops/repository/sidecar.py",
        "portal/ops/repository/verifications.py",
        "portal/ops/restore/background_checksum.py",
        "portal/ops/restore/components.py",
        "portal/ops/restore/database/row_check.py",
        "portal/ops/restore/dump_source.py",
        "portal/ops/restore/files/file_writer.py",
        "portal/ops/restore/files/journal.py",
        "portal/ops/restore/files/record.py",
        "portal/ops/restore/files/tree_rules.py",
        "portal/ops/restore/journal.py",
    ),
    "the operating system, a program or a store has refused: the message passes its reason on, with path or object": (
        "portal/ops/backup/cluster.py",
        "portal/ops/backup/increment.py",
        "portal/ops/backup/search.py",
        "portal/ops/backup/walk.py",
        "portal/ops/pitr/archiver_watch.py",
        "portal/ops/pitr/base_stream.py",
        "portal/ops/pitr/combine.py",
        "portal/ops/pitr/receiver.py",
        "portal/ops/pitr/scratch.py",
        "portal/ops/pitr/scratch_server.py",
        "portal/ops/postgres/pg_restore.py",
        "portal/ops/repository/faults.py",
        "portal/ops/restore/database/fill.py",
        "portal/ops/restore/database/newcomer.py",
        "portal/ops/restore/files/helpers.py",
        "portal/ops/restore/files/refusals.py",
        "portal/ops/restore/scratch_dump.py",
        "portal/ops/storage/",
    ),
    "other work holds it, or another step comes first: the hint is the command to give": (
        "portal/ops/repository/locks.py",
        "portal/ops/repository/repository.py",
        "portal/ops/restore/context.py",
        "portal/ops/restore/database/in_place.py",
        "portal/ops/restore/files/changes.py",
        "portal/ops/restore/files/restore.py",
        "portal/ops/restore/history.py",
        "portal/ops/restore/restoration.py",
    ),
    "a task was refused, or a service is away: the hint is the command to give, and the events of both are explained": (
        "beat/",
        "worker/",
    ),
}
"""Modules (or rooms) whose errors the documents do not list one by one, by the reason why not; each has a hint."""

HINT_COMES_LATER: Final = (
    "portal/ops/archive/frame.py",
    "portal/ops/archive/index.py",
    "portal/ops/archive/reader.py",
    "portal/ops/chains/state_cache.py",
)
"""Modules that say what is wrong inside of an archive; who tells the operator adds the archive and the hint."""

_LEVELS: Final = frozenset({"debug", "info", "warning", "error", "exception"})


def rows(*heads: str) -> list[str]:
    """The first column of the tables whose first column has one of these heads."""
    found, inside = [], False
    for line in chain.from_iterable(document.read_text().splitlines() for document in DOCUMENTS):
        first = line.split("|")[1].strip() if line.startswith("|") else ""
        if inside and first and not first.startswith("---"):
            found += first.split("; ")
        inside = bool(first) and (inside or first in heads)
    return found


def quoted() -> list[str]:
    """What paragraphs explain that begin with a message."""
    return re.findall(r'^\*\*"(.+?)"\.\*\*', DOCUMENTS[0].read_text(), re.MULTILINE)


@cache
def modules() -> dict[str, ast.Module]:
    """Everything that is shipped, by its path."""
    directories = ("portal", "worker", "beat", "tools")
    paths = [path for name in directories for path in sorted((ROOT / name).rglob("*.py"))]
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in paths}


@cache
def texts() -> tuple[str, ...]:
    """Every text of the source, as it is said."""
    found = (_text(node) for tree in modules().values() for node in ast.walk(tree))
    return tuple({text for text in found if text is not None})


def _text(node: ast.AST) -> str | None:
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) or GAP for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def logged() -> Iterator[str]:
    """The events that are logged, as far as their names stand in the calls."""
    for node in (node for tree in modules().values() for node in ast.walk(tree)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _LEVELS:
            where, what = node.func.value, node.args[:1]
            if isinstance(where, ast.Name) and where.id == "log" and what and isinstance(what[0], ast.Constant):
                yield str(what[0].value)


def documented() -> list[str]:
    """The events that tables explain."""
    return [name for row in rows("event", "it says") for name in re.findall(r"`(\w+)`", row)]


def test_every_event_of_the_documents_is_logged() -> None:
    """No table explains an event that is gone or has another name."""
    assert len(documented()) > 50
    assert [name for name in documented() if name not in texts()] == []


def test_every_event_that_is_logged_is_in_the_documents() -> None:
    """Whoever finds a line in a log finds what it means."""
    assert sorted(set(logged()) - set(documented())) == []


@pytest.mark.parametrize("message", [*rows("what it says"), *quoted()])
def test_every_message_of_the_documents_is_said(message: str) -> None:
    """A message stands in the source as in the documents, but for what is only known when it is said."""
    assert any(_pattern(message).search(text) for text in texts())


@cache
def known() -> tuple[re.Pattern[str], ...]:
    """The messages that the documents explain."""
    return tuple(_pattern(message) for message in [*rows("what it says"), *quoted()])


@cache
def raising() -> dict[str, ast.Module]:
    """The modules that make errors with a text, by their paths."""
    return {path: tree for path, tree in modules().items() if next(errors_of(tree), None)}


def errors_of(tree: ast.Module) -> Iterator[tuple[ast.Call, str]]:
    """The errors that a module makes, as far as their text stands there."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = call.func.id if isinstance(call.func, ast.Name) else ""
        is_error = name.endswith("Error") and not hasattr(builtins, name)
        place = 0 if is_error else 2 if name == "_refusal" else None  # phrase, error, message, hint
        if place is not None and len(call.args) > place and (text := _text(call.args[place])):
            yield call, text


@pytest.mark.parametrize("module", EXPLAINED)
def test_every_message_of_these_modules_is_in_the_documents(module: str) -> None:
    """Whoever is told that something is in the way finds what to do."""
    told = [text for _, text in errors_of(raising()[module])]
    assert [text for text in told if not any(pattern.search(text) for pattern in known())] == []


def test_it_is_decided_for_every_module_whether_the_documents_explain_its_errors() -> None:
    """Each is explained or left out for one reason, and nothing is decided that is not there."""
    left_out = [place for places in HINT_SUFFICES.values() for place in places]
    assert len(set(left_out)) == len(left_out)
    undecided, useless = [], set(left_out)
    for module in raising():
        fitting = [place for place in left_out if module == place or (place[-1] == "/" and module.startswith(place))]
        useless -= set(fitting)
        if not fitting and module not in EXPLAINED:
            undecided.append(module)
    assert (undecided, useless) == ([], set())
    assert set(EXPLAINED) <= raising().keys()


def test_every_error_says_what_to_do() -> None:
    """An error that the documents may leave out has a hint of its own."""
    without = {
        module
        for module, tree in raising().items()
        for call, _ in errors_of(tree)
        if _is_told(call) and not any(keyword.arg in ("hint", None) for keyword in call.keywords)
    }
    assert without == set(HINT_COMES_LATER)


def _is_told(call: ast.Call) -> bool:
    """True if it is an error of the tree that operators see; others are caught before."""
    name = call.func.id if isinstance(call.func, ast.Name) else ""
    kinds = [kind for room in (errors, worker_errors) if (kind := getattr(room, name, None))]
    return any(issubclass(kind, errors.OpsError) for kind in kinds)


def _pattern(message: str) -> re.Pattern[str]:
    parts = (re.escape(part.strip()) for part in _PLACEHOLDER.split(message))
    return re.compile(".*?".join(parts))
