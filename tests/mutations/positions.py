"""What can be mutated in a module: Cosmic Ray's operators and one of our own, at the places where code runs."""

from __future__ import annotations

import ast
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cosmic_ray.ast import ast_nodes, get_ast_from_path  # type: ignore[import-not-found]
from cosmic_ray.operators.operator import Operator  # type: ignore[import-not-found]
from cosmic_ray.plugins import get_operator, operator_names  # type: ignore[import-not-found]
from parso.python.tree import Keyword  # type: ignore[import-not-found]

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Point = tuple[int, int]
Span = tuple[Point, Point]


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """One change of a module.

    Arguments:
        operator: what makes it.
        occurrence: at the how manieth place where the operator can.
    """

    operator: Any
    occurrence: int


class RemoveCall(Operator):  # type: ignore[misc]
    """Leaves out a call that is a statement by itself: a sync, an unlink, a check."""

    def mutation_positions(self, node: Any) -> Iterator[Span]:
        """Where such a call is."""
        if _is_call(node):
            yield (node.children[0].start_pos, node.children[0].end_pos)

    def mutate(self, node: Any, index: int) -> Any:  # the signature is Cosmic Ray's
        """Put `None` in its place."""
        first = node.children[0].get_first_leaf()
        node.children[0] = Keyword("None", first.start_pos, first.prefix)
        node.children[0].parent = node
        return node

    @classmethod
    def examples(cls) -> tuple[()]:
        """None: they are for Cosmic Ray's own tests."""
        return ()


def _is_call(node: Any) -> bool:
    if node.type != "simple_stmt" or node.children[0].type != "atom_expr":
        return False
    last = node.children[0].children[-1]
    return bool(last.type == "trailer" and last.children[0].value == "(")


def mutations(path: Path) -> dict[Span, list[Mutation]]:
    """Every mutation of a module, by its place."""
    tree = get_ast_from_path(path)
    idle = _idle(path) + [(leaf.start_pos, leaf.end_pos) for leaf in ast_nodes(tree) if _is_marker(leaf)]
    found: defaultdict[Span, list[Mutation]] = defaultdict(list)
    for operator in _operators():
        spans = (span for node in ast_nodes(tree) for span in operator.mutation_positions(node))
        for occurrence, (start, end) in enumerate(spans):
            if not any(first <= start and end <= last for first, last in idle):
                found[start, end].append(Mutation(operator=operator, occurrence=occurrence))
    return dict(sorted(found.items()))


def _is_marker(node: Any) -> bool:
    """Whether it is the `*` before parameters that are given by name."""
    return bool(node.type == "operator" and node.value == "*" and node.parent.type == "parameters")


def _operators() -> Iterator[Any]:
    for name in operator_names():
        kind = get_operator(name)
        if not kind.arguments() and not name.endswith("/NoOp"):
            yield kind()
    yield RemoveCall()


def _idle(path: Path) -> list[Span]:
    """Where nothing runs: hints, and what only a type checker reads; also constants that say how long or how much."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        hints: list[ast.expr | ast.stmt | None] = []
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            hints = [node.returns]
        elif isinstance(node, ast.arg):
            hints = [node.annotation]
        elif isinstance(node, ast.AnnAssign):
            hints = [node.annotation, node.value if _is_tuning(node) else None]
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            hints = [node]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("cast", "TypeVar"):
            hints = list(node.args)
        elif isinstance(node, ast.ClassDef) and any(getattr(base, "id", "") == "Protocol" for base in node.bases):
            hints = [node]
        elif isinstance(node, ast.ClassDef):
            hints = [one for one in node.decorator_list if isinstance(one, ast.Call)]  # frozen, keyword-only
        found += [_span(hint) for hint in hints if hint is not None]
    return found


def _is_tuning(node: ast.AnnAssign) -> bool:
    """Whether it gives a number to a private constant of the module."""
    if not isinstance(node.target, ast.Name) or node.value is None:
        return False
    parts = (ast.Constant, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop)
    is_private = node.target.id.startswith("_") and node.target.id.isupper()
    return is_private and all(isinstance(part, parts) for part in ast.walk(node.value))


def _span(node: Any) -> Span:
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)
