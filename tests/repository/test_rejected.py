"""The counts of rejected messages, whoever is killed while they are written."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from portal.ops.repository import rejected
from portal.ops.repository.rejected import count_rejected, rejected_counts

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_counts_are_never_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever change of the file is the last one before a kill, the file has the old counts or the new ones."""
    for _ in range(9):
        count_rejected(tmp_path, "unsigned")
    seen = []

    def watched(real: Any) -> Any:
        def change(*arguments: Any) -> Any:
            found = real(*arguments)
            seen.append((tmp_path / rejected.NAME).read_bytes())
            return found

        return change

    for name in ("pwrite", "ftruncate"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    count_rejected(tmp_path, "unsigned")
    assert seen == [b'{"unsigned": 10}\n'] * 2
    assert rejected_counts(tmp_path) == {"unsigned": 10}
