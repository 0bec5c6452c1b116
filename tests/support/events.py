"""What a module of the engine writes into its log, for tests that look at it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest


class Events:
    """Stands in for the logger of a module: every event with its level and facts, in order.

    Arguments:
        module: the module whose `log` it replaces.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
        self.all: list[tuple[str, str, dict[str, Any]]] = []
        monkeypatch.setattr(f"{module}.log", self)

    def __getattr__(self, level: str) -> Callable[..., None]:
        def note(event: str, **facts: Any) -> None:
            self.all.append((level, event, facts))

        return note
