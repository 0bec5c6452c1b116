"""Peers of recoveries to a second are compared with where they are installed."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from benchmarks import pitr_peers

if TYPE_CHECKING:
    import pytest


def test_peers_that_are_not_installed_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what to install; no server is started, and no figure is printed."""
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "pgbackrest" else f"/bin/{name}")
    pitr_peers.compare_with_peers(1000, 1, None)
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "apt-get install pgbackrest, as" in said
