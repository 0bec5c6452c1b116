"""Every test can fail: it asserts something, and not only in a loop that may be empty."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

TESTS: Final = Path(__file__).parents[1]
RAISING: Final = frozenset({"raises", "fail", "warns", "check_call"})
"""Calls that fail a test by themselves."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST) -> Iterator[Function]:
    for node in ast.walk(tree):
        if isinstance(node, Function):
            yield node


def called(node: ast.AST) -> str:
    """The name of what is called, without what it belongs to."""
    function = node.func if isinstance(node, ast.Call) else None
    return str(getattr(function, "attr", "") or getattr(function, "id", ""))


def asserts(node: ast.AST, helpers: frozenset[str]) -> bool:
    """Whether a statement, or one in it that is certainly reached, can fail a test."""
    if isinstance(node, ast.Assert):
        return True
    if isinstance(node, (ast.For, ast.AsyncFor)):
        return is_filled(node.iter) and any(asserts(inner, helpers) for inner in node.body)
    if isinstance(
        node, (Function, ast.Lambda, ast.ClassDef, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    ):
        return False
    if isinstance(node, ast.Call) and (called(node) in helpers or is_checked_run(node)):
        return True
    return any(asserts(inner, helpers) for inner in ast.iter_child_nodes(node))


def is_filled(iterated: ast.expr) -> bool:
    """Whether a loop is certain to be entered: over what is written down, by name in capitals or in place."""
    if isinstance(iterated, (ast.Tuple, ast.List, ast.Set, ast.Dict)):
        return bool(ast.dump(iterated))
    if isinstance(iterated, ast.Name):
        return iterated.id.isupper()
    if isinstance(iterated, ast.Call):
        if called(iterated) in ("items", "keys", "values") and isinstance(iterated.func, ast.Attribute):
            return is_filled(iterated.func.value)
        return called(iterated) in ("range", "enumerate", "zip", "sorted", "reversed", "product") and any(
            is_filled(one) or isinstance(one, (ast.Constant, ast.Name)) for one in iterated.args
        )
    return isinstance(iterated, ast.Attribute) and iterated.attr.isupper()


def is_checked_run(node: ast.Call) -> bool:
    """Whether it runs a program that must succeed."""
    return any(word.arg == "check" and getattr(word.value, "value", None) is True for word in node.keywords)


def helpers_of(trees: dict[Path, ast.Module]) -> frozenset[str]:
    """The functions of the tests that can fail a test, and those that call one of them."""
    found = RAISING
    every = [function for tree in trees.values() for function in functions(tree)]
    while True:
        more = found | {one.name for one in every if any(asserts(node, found) for node in one.body)}
        if more == found:
            return found
        found = more


def test_every_test_can_fail() -> None:
    """No test passes whatever the code does."""
    trees = {path: ast.parse(path.read_text()) for path in sorted(TESTS.rglob("*.py"))}
    helpers = helpers_of(trees)
    tests = [
        (path, one)
        for path, tree in trees.items()
        if path.name.startswith(("test_", "check_"))
        for one in functions(tree)
        if one.name.startswith("test_")
    ]
    assert len(tests) > 1000
    idle = [
        f"{path.relative_to(TESTS)}:{one.lineno} {one.name}"
        for path, one in tests
        if not any(asserts(node, helpers) for node in one.body)
    ]
    assert idle == []
