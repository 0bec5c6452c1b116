"""How large modules, classes and functions may be: what no longer fits on a screen or two is hard to review."""

import ast
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = ("portal", "worker", "beat", "tools", "demo", "benchmarks", "tests")
MODULE_LINES: Final = 500
CLASS_LINES: Final = 300
FUNCTION_LINES: Final = 50


def test_nothing_outgrows_its_limit() -> None:
    """A module has at most 500 lines, a class 300, and a function 50, tests and docstrings included."""
    found = []
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        text = path.read_text("utf-8")
        if (lines := text.count("\n")) > MODULE_LINES:
            found.append(f"{path.relative_to(ROOT)}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > (CLASS_LINES if isinstance(node, ast.ClassDef) else FUNCTION_LINES):
                found.append(f"{path.relative_to(ROOT)}: {node.name}: {lines} lines")
    assert found == []
