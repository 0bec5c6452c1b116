"""The index of decisions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

DECISIONS: Final = Path(__file__).parents[2] / "docs" / "adr"


def test_the_index_lists_every_decision() -> None:
    """Each page once, in order, with its own number and title."""
    listed = re.findall(r"^\| (\d+) \| \[(.+)\]\((.+)\) \|$", (DECISIONS / "README.md").read_text(), re.MULTILINE)
    pages = sorted(DECISIONS.glob("[0-9]*.md"))
    titles = [re.fullmatch(r"# (\d+)\. (.+)", page.read_text().splitlines()[0]) for page in pages]
    assert pages and listed == [
        (*(title.groups() if title else ()), page.name) for title, page in zip(titles, pages, strict=True)
    ]
