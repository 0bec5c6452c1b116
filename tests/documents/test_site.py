"""The documentation as a site: links lead somewhere, and every command in it is one that there is."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

import pytest

from tests.support.commands import ROOT
from tools.command_line import Commands
from tools.commands import BACKUP_COMMANDS
from tools.restore import restore_parser

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from pathlib import Path

PAGES = [ROOT / "README.md", ROOT / "examples" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMAND = re.compile(
    r"^ *(?:sudo (?:-u \S+ )?)?(?:\w+=\S+ )*(?:tools|scripts)/(backup|restore)\.sh((?: [^#|>\n]*)?)", re.MULTILINE
)
BLOCK = re.compile(r"^ *```(\w*).*?\n(.*?)^ *```", re.MULTILINE | re.DOTALL)

IN_TEXT = re.compile(r"`(?:sudo (?:-u \S+ )?)?(?:tools|scripts)/(backup|restore)\.sh((?: [^`]*)?)`")


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


def commands() -> Iterator[tuple[str, str, list[str]]]:
    for page in PAGES:
        text = page.read_text()
        for kind, block in BLOCK.findall(text):
            for program, rest in COMMAND.findall(block) if kind in ("bash", "sh", "shell") else ():
                yield page.name, program, shlex.split(rest)
        for program, rest in IN_TEXT.findall(BLOCK.sub("", text)):
            yield page.name, program, shlex.split(rest.partition("|")[0])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file, and a heading of it if it has an anchor."""
    dead = []
    for link in LINK.findall(page.read_text()):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if "://" not in link and not (target.exists() and (not anchor or anchor in anchors(target))):
            dead.append(link)
    assert dead == []


def test_every_command_is_one_that_there_is() -> None:
    """Commands in blocks and in the text have the words and options that their parsers take."""
    found = list(commands())
    assert len(found) > 90
    known = Commands("backup.sh", BACKUP_COMMANDS, default="full")
    for page, program, words in found:
        if words[:1] in (["--version"], ["--completion"]):
            continue
        arguments = [word for word in words if word not in ("…",)]
        parser: argparse.ArgumentParser
        if program == "restore":
            parser = restore_parser()
        else:
            name, arguments = known.choose(arguments)
            assert name is not None, f"{page}: {words}"
            parser = known.parser(name)
        try:
            parser.parse_args(arguments)
        except SystemExit:
            pytest.fail(f"{page}: {program}.sh {' '.join(words)}")


def test_every_page_is_in_the_index() -> None:
    """Whoever opens docs/ finds every page."""
    index = (ROOT / "docs" / "README.md").read_text()
    assert all(f"({page.name})" in index for page in (ROOT / "docs").glob("*.md") if page.name != "README.md")
