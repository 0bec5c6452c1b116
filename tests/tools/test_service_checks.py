"""The doctor's checks of services."""

from __future__ import annotations

from typing import TYPE_CHECKING

from portal.ops.monitoring.doctor.run import State
from tools.commands import service_checks

if TYPE_CHECKING:
    import pytest


def test_a_health_check_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a finding that says what to do, and no fault of the doctor's own."""
    monkeypatch.setattr(service_checks, "_SECONDS", 0.001)
    found = service_checks._service("beat", "beat")
    assert found.state is State.WARNING
    assert found.what == "its health check has not ended within 0.001 s"
    assert "tools/service.sh beat" in found.mend
