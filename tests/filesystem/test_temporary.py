"""Names of temporary files: nobody else has them, and a prune knows them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from portal.ops.filesystem.temporary import temporary_name
from portal.ops.repository.durable import unfinished

ROOT: Final = Path(__file__).parents[2]
_OF_A_PROCESS: Final = re.compile(r"getpid\(\).*(tmp|TEMPORARY)|with_name\(.*getpid\(\)")


def test_no_name_comes_twice(tmp_path: Path) -> None:
    """One process may write a file twice at once, and all of them are swept if it is killed."""
    names = {temporary_name(".state.json") for _ in range(100)}
    assert len(names) == 100
    for name in names:
        (tmp_path / name).touch()
    assert {path.name for path in unfinished(tmp_path)} == names


def test_none_is_made_of_a_process_number() -> None:
    """Processes in two containers have the same one."""
    sources = [path for room in ("portal", "worker", "beat", "tools") for path in ROOT.joinpath(room).rglob("*.py")]
    assert len(sources) > 200
    assert not [str(path) for path in sources if _OF_A_PROCESS.search(path.read_text())]
