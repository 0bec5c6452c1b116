"""The judge of a soak sees what is lost."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from tests.soak.judge import lost

if TYPE_CHECKING:
    from pathlib import Path


def test_what_is_lost_is_seen(tmp_path: Path) -> None:
    """An archive that is gone, and one that is another; not one that a prune has removed, or that is as it was."""
    (tmp_path / "same").write_bytes(b"archive")
    (tmp_path / "other").write_bytes(b"another")
    digest = sha256(b"archive").hexdigest()
    reported = {"gone": digest, "untold": None, "pruned": digest, "same": digest, "other": digest}
    present = {name: tmp_path / name for name in ("same", "other")}
    assert lost(reported, present, {"pruned"}) == [
        "gone was reported, and is not there",
        "other has another digest than reported",
        "untold was reported, and is not there",
    ]
