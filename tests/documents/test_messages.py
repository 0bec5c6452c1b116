"""What the documents say that is printed is held against the source: nobody looks for what is no longer said."""

from __future__ import annotations

import ast
import re
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[2]
DOCUMENTS: Final = tuple(ROOT / "docs" / name for name in ("messages.md", "operations.md", "disaster-recovery.md"))
GAP: Final = "\0"
"""Stands in a text of the source for what is only known when it is said."""

_PLACEHOLDER: Final = re.compile(r"…|\b(?:defectdojo|uploads|pg_restore|work with|permission denied|\d+)\b")
"""What stands in the documents for what is only known then, the examples with it."""

OBSTACLES: Final = ("restore/database/means.py", "restore/files/preflight.py", "postgres/removal.py", "backup/loss.py")
"""Modules whose errors are what keeps a restore or a backup from beginning."""

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
def trees() -> tuple[ast.Module, ...]:
    """Everything that is shipped."""
    directories = ("portal", "worker", "beat", "tools")
    return tuple(ast.parse(path.read_text()) for name in directories for path in sorted((ROOT / name).rglob("*.py")))


@cache
def texts() -> tuple[str, ...]:
    """Every text of the source, as it is said."""
    found = (_text(node) for tree in trees() for node in ast.walk(tree))
    return tuple({text for text in found if text is not None})


def _text(node: ast.AST) -> str | None:
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) or GAP for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def logged() -> Iterator[str]:
    """The events that are logged, as far as their names stand in the calls."""
    for node in (node for tree in trees() for node in ast.walk(tree)):
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


@pytest.mark.parametrize("module", OBSTACLES)
def test_every_obstacle_is_in_the_documents(module: str) -> None:
    """Whoever is told that a restore is not possible here finds what to do."""
    known = [_pattern(message) for message in [*rows("what it says"), *quoted()]]
    tree = ast.parse((ROOT / "portal" / "ops" / module).read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    told = [_text(call.args[0]) for call in calls if call.args and _name(call).endswith("Error")]
    assert told
    assert [text for text in told if text and not any(pattern.search(text) for pattern in known)] == []


def _name(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _pattern(message: str) -> re.Pattern[str]:
    parts = (re.escape(part.strip()) for part in _PLACEHOLDER.split(message))
    return re.compile(".*?".join(parts))
