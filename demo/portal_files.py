"""The files of an invented portal: uploaded scan reports, and an audit log with a hash chain."""

from __future__ import annotations

import hashlib
import json
import os
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING

from demo.words import SCANNERS, WEAKNESSES, sentence, source_path

if TYPE_CHECKING:
    from pathlib import Path

_START = datetime(2024, 1, 1, tzinfo=UTC)
_FIRST_HASH = "0" * 64
_ACTIONS = ("login", "upload", "download", "finding.close", "finding.accept", "export", "user.invite")
_LEVELS = ("error", "warning", "note")


def write_uploads(directory: Path, *, tenants: int, files_per_tenant: int, seed: int = 1, results: int = 20) -> None:
    """Write scan reports as ``<tenant>/<year>/<scanner>-<number>.sarif`` or ``.json``, mode 0600.

    Arguments:
        directory: created if necessary.
        results: the average number of findings in a report, about 400 bytes each.
        seed: the same seed gives the same files.
    """
    rng = Random(seed)  # noqa: S311  (sample data)
    for tenant in range(1, tenants + 1):
        for number in range(1, files_per_tenant + 1):
            scanner = rng.choice(SCANNERS)
            suffix = "sarif" if number % 3 else "json"
            path = (
                directory / f"tenant-{tenant:03}" / str(2024 + number % 3) / f"{scanner.lower()}-{number:05}.{suffix}"
            )
            _write_private(path, json.dumps(_report(scanner, rng.randrange(1, 2 * results + 1), rng), indent=1))


def write_audit_log(path: Path, *, entries: int, seed: int = 1) -> None:
    """Write an audit log in JSON lines, each with the SHA-256 of the line before, mode 0600."""
    rng = Random(seed)  # noqa: S311  (sample data)
    lines, previous = [], _FIRST_HASH
    for number in range(entries):
        entry = {
            "time": (_START + timedelta(seconds=37 * number)).isoformat(),
            "actor": f"analyst{rng.randrange(1, 51)}",
            "action": rng.choice(_ACTIONS),
            "tenant": f"tenant-{rng.randrange(1, 10):03}",
            "previous": previous,
        }
        lines.append(json.dumps(entry, separators=(",", ":")))
        previous = hashlib.sha256(lines[-1].encode()).hexdigest()
    _write_private(path, "".join(f"{line}\n" for line in lines))


def _report(scanner: str, results: int, rng: Random) -> dict[str, object]:
    rules = [{"id": f"CWE-{cwe}", "name": name} for cwe, name in WEAKNESSES.items()]
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": {"name": scanner, "rules": rules}},
                "results": [_result(rng) for _ in range(results)],
            }
        ],
    }


def _result(rng: Random) -> dict[str, object]:
    location = {
        "artifactLocation": {"uri": source_path(rng)},
        "region": {"startLine": rng.randrange(1, 4000), "startColumn": rng.randrange(1, 80)},
    }
    return {
        "ruleId": f"CWE-{rng.choice(list(WEAKNESSES))}",
        "level": rng.choice(_LEVELS),
        "message": {"text": sentence(rng)},
        "locations": [{"physicalLocation": location}],
        "fingerprints": {"primary": f"{rng.getrandbits(128):032x}"},
    }


def _write_private(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
