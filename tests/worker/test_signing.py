"""Tasks and results are believed only with the signature of somebody who may read the repository."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from worker.errors import RejectedError, Rejection
from worker.keys import RETIRED_SECONDS, TaskKeys
from worker.operations import PRUNE_REPOSITORY, RESTORE_ARCHIVE, VERIFY_ARCHIVE, Requester
from worker.signing import is_signed_result, sign_result, sign_task, verify_task

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 11, 22, 9, tzinfo=UTC)
ASKED = {"archive": "latest", "actor": "ann\udc80"}


@dataclass
class Message:
    """What an attacker can change of a task."""

    keys: TaskKeys
    name: str = VERIFY_ARCHIVE.name
    task_id: str = "one"
    arguments: dict[str, Any] = field(default_factory=lambda: dict(ASKED))
    signature: Any = None
    now: datetime = NOW

    def __post_init__(self) -> None:
        self.signature = sign_task(self.keys.current(), VERIFY_ARCHIVE, "one", ASKED, Requester.COMMAND, NOW)

    def verify(self) -> None:
        """What a worker does."""
        verify_task(self.name, self.task_id, self.arguments, self.signature, self.keys.named, self.now)


@pytest.fixture
def message(tmp_path: Path) -> Message:
    return Message(TaskKeys(tmp_path))


def test_a_signed_task_is_believed(message: Message) -> None:
    """As it was signed, for seven days."""
    message.verify()
    message.now = NOW + timedelta(days=6)
    message.verify()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"name": "prune.repository"}, Rejection.ALTERED),
        ({"task_id": "two"}, Rejection.ALTERED),
        ({"arguments": {**ASKED, "archive": "other"}}, Rejection.ALTERED),
        ({"arguments": {**ASKED, "actor": "bob"}}, Rejection.ALTERED),
        ({"signature": None}, Rejection.UNSIGNED),
        ({"signature": {"key": 1}}, Rejection.MALFORMED),
        ({"now": NOW + timedelta(days=8)}, Rejection.EXPIRED),
        ({"now": NOW - timedelta(hours=1)}, Rejection.EXPIRED),
    ],
)
def test_an_altered_task_is_rejected(message: Message, change: dict[str, Any], reason: Rejection) -> None:
    """Name, id, arguments, actor and time are covered by the signature."""
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(RejectedError) as caught:
        message.verify()
    assert caught.value.reason is reason


@pytest.mark.parametrize("field_name", ["requester", "at", "mac", "key"])
def test_each_part_of_a_signature_counts(message: Message, field_name: str) -> None:
    """Neither who requested a task nor when can be exchanged."""
    message.signature[field_name] = {"requester": "beat", "at": NOW.isoformat()}.get(field_name, "0" * 8)
    if field_name == "at":
        message.signature["at"] = (NOW + timedelta(seconds=1)).isoformat(timespec="seconds")
    with pytest.raises(RejectedError):
        message.verify()


@pytest.mark.parametrize(
    ("operation", "requester"),
    [(RESTORE_ARCHIVE, Requester.FLOWER), (RESTORE_ARCHIVE, Requester.BEAT), (PRUNE_REPOSITORY, Requester.FLOWER)],
)
def test_the_registry_says_who_may_request(tmp_path: Path, operation: Any, requester: Requester) -> None:
    """What it does not allow is not even signed."""
    with pytest.raises(RejectedError, match="cannot be requested by"):
        sign_task(TaskKeys(tmp_path).current(), operation, "one", {}, requester, NOW)


def test_the_key_is_its_owners_alone(tmp_path: Path) -> None:
    """As the archives are."""
    keys = TaskKeys(tmp_path)
    keys.current()
    assert stat.S_IMODE(keys.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(keys.path.parent.stat().st_mode) == 0o700
    assert keys.current().secret.hex() not in repr(keys.current())


def test_processes_that_begin_together_have_one_key(tmp_path: Path) -> None:
    """Each of them reads what one of them has created."""
    assert len({TaskKeys(tmp_path).current().name for _ in range(5)}) == 1


def test_a_rotated_key_is_valid_until_nothing_can_be_signed_with_it(
    message: Message, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that is queued survives a rotation, and one of another process is seen at once."""
    other = TaskKeys(message.keys.path.parent.parent)
    new = other.rotate()
    assert message.keys.current().name == new.name
    message.verify()
    long_ago = RETIRED_SECONDS + 60
    monkeypatch.setattr("worker.keys.time.time", lambda: datetime.now(UTC).timestamp() + long_ago)
    other.rotate()
    with pytest.raises(RejectedError) as caught:
        message.verify()
    assert caught.value.reason is Rejection.UNKNOWN_KEY


def test_a_result_is_believed_as_a_worker_has_signed_it(tmp_path: Path) -> None:
    """Not for another task, not as another end, not with another archive."""
    keys = TaskKeys(tmp_path)
    result = sign_result(keys.current(), "one", {"success": True, "path": "/a"}, success=True)
    assert is_signed_result("one", result, keys.named, success=True)
    assert not is_signed_result("two", result, keys.named, success=True)
    assert not is_signed_result("one", result, keys.named, success=False)
    assert not is_signed_result("one", {**result, "path": "/b"}, keys.named, success=True)
    for forged in (None, "yes", {}, {"_signature": 1}, {"_signature": {"key": "0", "mac": "0"}}):
        assert not is_signed_result("one", forged, keys.named, success=True)
