"""The commands, run to their end as cron and programs start them: without a terminal."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
BACKUP: Final = ROOT / "tools" / "backup.sh"
RESTORE: Final = ROOT / "tools" / "restore.sh"

Ended = subprocess.CompletedProcess[str]


def run(*arguments: str, environ: dict[str, str], script: Path = BACKUP, cwd: Path = Path("/")) -> Ended:
    """Run a command, however it ends."""
    return subprocess.run(
        [script, *arguments],
        env=environ,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def done(*arguments: str, environ: dict[str, str], script: Path = BACKUP, code: int = 0) -> tuple[dict[str, Any], str]:
    """Run a command that ends with that code; its result, and what a person reads."""
    ended = run(*arguments, environ=environ, script=script)
    assert ended.returncode == code, ended.stderr
    return answer(ended), ended.stderr


def answer(ended: Ended) -> dict[str, Any]:
    """The one JSON object that standard output is."""
    assert ended.stdout.endswith("}\n")
    assert ended.stdout.count("\n") == 1
    found: dict[str, Any] = json.loads(ended.stdout)
    return found
