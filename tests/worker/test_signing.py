"""Tasks and results are believed only with the signature of somebody who may read the repository."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest

from worker.errors import RejectedError, Rejection
from worker.keys import RETIRED_SECONDS, Key, TaskKeys
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
    """As it was signed, for seven days, and by clocks that differ by five minutes."""
    for now in (NOW, NOW + timedelta(days=7), NOW - timedelta(minutes=5)):
        message.now = now
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
        ({"now": NOW + timedelta(days=7, seconds=1)}, Rejection.EXPIRED),
        ({"now": NOW - timedelta(minutes=5, seconds=1)}, Rejection.EXPIRED),
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


@pytest.mark.parametrize("field_name", ["requester", "at", "mac", "key"])
@pytest.mark.parametrize("value", [None, 7, ["one"]])
def test_a_signature_without_a_part_is_malformed(message: Message, field_name: str, value: Any) -> None:
    """Or with something else in its place."""
    message.signature[field_name] = value
    with pytest.raises(RejectedError) as caught:
        message.verify()
    assert caught.value.reason is Rejection.MALFORMED


def test_a_signature_that_is_no_text_at_all_is_wrong(message: Message) -> None:
    """A lone surrogate cannot be compared with anything."""
    message.signature["mac"] = "\udc80"
    with pytest.raises(RejectedError) as caught:
        message.verify()
    assert caught.value.reason is Rejection.ALTERED


def test_a_verified_task_says_what_was_signed(tmp_path: Path) -> None:
    """In the zone of the worker, whatever that of the requester was."""
    keys, at = TaskKeys(tmp_path), NOW.astimezone(timezone(timedelta(hours=5))).replace(microsecond=7)
    signature = sign_task(keys.current(), VERIFY_ARCHIVE, "one", ASKED, Requester.BEAT, at)
    assert signature["at"] == "2026-11-22T09:00:00+00:00"
    task = verify_task("verify.archive", "one", ASKED, signature, keys.named, NOW)
    assert (task.operation, task.task_id, task.arguments) == (VERIFY_ARCHIVE, "one", ASKED)
    assert (task.requester, task.at) == (Requester.BEAT, NOW)


def test_what_another_release_signs_may_be_unknown_here(tmp_path: Path) -> None:
    """A task that there is not yet, and one that its requester may not ask for any more, are refused as such."""
    keys = TaskKeys(tmp_path)
    later = replace(RESTORE_ARCHIVE, name="restore.later")
    looser = replace(RESTORE_ARCHIVE, requesters=frozenset(Requester))
    for operation, requester, reason in (
        (later, Requester.COMMAND, Rejection.UNKNOWN_TASK),
        (looser, Requester.FLOWER, Rejection.NOT_ALLOWED),
    ):
        signature = sign_task(keys.current(), operation, "one", {}, requester, NOW)
        with pytest.raises(RejectedError) as caught:
            verify_task(operation.name, "one", {}, signature, keys.named, NOW)
        assert caught.value.reason is reason


def test_signatures_are_as_those_of_every_release() -> None:
    """A queue may hold tasks of the release before, and a key its results."""
    key = Key(name="0011aabb", secret=bytes(range(32)))
    signed = sign_task(key, VERIFY_ARCHIVE, "one", {"b": ["ü", 1], "a": None}, Requester.COMMAND, NOW)
    assert signed == {
        "key": "0011aabb",
        "requester": "command",
        "at": "2026-11-22T09:00:00+00:00",
        "mac": "95d5b9ea5a3da941028cf758ebdeeb596b2f66d809f03aa9421ed8b92f99daea",
    }
    assert sign_result(key, "one", {"success": True, "path": "/a"}, success=True)["_signature"] == {
        "key": "0011aabb",
        "mac": "7855de1099da8f1beed644ba7e3e03cf8bdd0cf9146a291e6bb37aeff414737b",
    }


@pytest.mark.parametrize(
    ("operation", "requester"),
    [(RESTORE_ARCHIVE, Requester.FLOWER), (RESTORE_ARCHIVE, Requester.BEAT), (PRUNE_REPOSITORY, Requester.FLOWER)],
)
def test_the_registry_says_who_may_request(tmp_path: Path, operation: Any, requester: Requester) -> None:
    """What it does not allow is not even signed."""
    with pytest.raises(RejectedError, match=rf"cannot be requested by {requester}\n.*by: .*\bcommand\b"):
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
    assert sign_result(keys.current(), "one", result, success=True) == result
    mine = result["_signature"]
    altered = [
        {"key": mine["key"]},
        {"mac": mine["mac"]},
        {**mine, "mac": 7},
        {**mine, "key": 7},
        {**mine, "mac": "\udc80"},
    ]
    unknown = [1, {"key": "0", "mac": "0"}, {**mine, "key": "other"}]
    for forged in (None, "yes", {}, *({**result, "_signature": one} for one in (*altered, *unknown))):
        assert not is_signed_result("one", forged, keys.named, success=True)
