"""Signatures of tasks and results: what is signed, how it is written, and when it is valid. It reads no clock.

A task's signature covers its name, id, arguments (the actor is one of them), who requested it and when. A result's
covers the task's id, whether it succeeded, and the result. Both are HMAC-SHA256 over canonical JSON.
"""

from __future__ import annotations

import hmac
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from worker.errors import RejectedError, Rejection
from worker.operations import OPERATIONS, Requester

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from worker.keys import Key
    from worker.operations import Operation

HEADER: Final = "kekkai"
"""The header of a message that has the signature."""

RESULT_FIELD: Final = "_signature"
"""The field of a result that has the signature."""

LIFETIME: Final = timedelta(days=7)
CLOCKS_DIFFER: Final = timedelta(minutes=5)


@dataclass(frozen=True, kw_only=True)
class SignedTask:
    """A task as its message has it, once the signature is verified.

    Arguments:
        operation: what it asks for.
        task_id: its id.
        arguments: as they came, in the types of JSON.
        requester: who requested it.
        at: when it was signed.
    """

    operation: Operation
    task_id: str
    arguments: Mapping[str, Any]
    requester: Requester
    at: datetime


def sign_task(
    key: Key, operation: Operation, task_id: str, arguments: Mapping[str, Any], requester: Requester, at: datetime
) -> dict[str, str]:
    """The signature of a task, as the header of its message has it.

    Raises:
        RejectedError: the registry does not let that requester start the operation.
    """
    check_requester(operation, requester)
    said = {"key": key.name, "requester": requester.value, "at": at.astimezone(UTC).isoformat(timespec="seconds")}
    return {**said, "mac": _mac(key, "task", [operation.name, task_id, said["requester"], said["at"], dict(arguments)])}


def check_requester(operation: Operation, requester: Requester) -> None:
    """Refuse an operation that the registry does not let the requester start.

    Raises:
        RejectedError: it does not.
    """
    if requester not in operation.requesters:
        allowed = ", ".join(sorted(operation.requesters))
        raise RejectedError(
            Rejection.NOT_ALLOWED,
            f"{operation.name} cannot be requested by {requester}",
            hint=f"It can be requested by: {allowed}.",
        )


def verify_task(
    name: str,
    task_id: str,
    arguments: Mapping[str, Any],
    signature: object,
    find_key: Callable[[str], Key | None],
    now: datetime,
) -> SignedTask:
    """The task, where its signature is valid now.

    Arguments:
        signature: the header of its message.
        find_key: a key by its name.

    Raises:
        RejectedError: it is not signed, was altered, is too old or from the future, or its requester may not start it.
    """
    if not isinstance(signature, dict):
        raise RejectedError(Rejection.UNSIGNED, "the task is not signed", hint=_UNSIGNED)
    said = {field: signature.get(field) for field in ("key", "requester", "at", "mac")}
    if not all(isinstance(value, str) for value in said.values()):
        raise RejectedError(Rejection.MALFORMED, "the task's signature is malformed", hint=_UNSIGNED)
    key = find_key(str(said["key"]))
    if key is None:
        raise RejectedError(
            Rejection.UNKNOWN_KEY, "the task is signed with a key that the repository does not have", hint=_UNSIGNED
        )
    mac = _mac(key, "task", [name, task_id, said["requester"], said["at"], dict(arguments)])
    if not hmac.compare_digest(mac.encode(), str(said["mac"]).encode("utf-8", "replace")):
        raise RejectedError(Rejection.ALTERED, "the task was altered after it was signed", hint=_UNSIGNED)
    operation, at = OPERATIONS.get(name), datetime.fromisoformat(str(said["at"]))
    if operation is None:
        raise RejectedError(
            Rejection.UNKNOWN_TASK, "this release knows no such task", hint="Run the same release everywhere."
        )
    if not now - LIFETIME <= at <= now + CLOCKS_DIFFER:
        raise RejectedError(
            Rejection.EXPIRED,
            f"the task was signed at {said['at']}, and is valid for {LIFETIME.days} days",
            hint="Request it again; look at the clocks of both machines if it was requested just now.",
        )
    requester = Requester(str(said["requester"]))
    check_requester(operation, requester)
    return SignedTask(operation=operation, task_id=task_id, arguments=arguments, requester=requester, at=at)


_UNSIGNED: Final = (
    "Request tasks with backup.sh, restore.sh, beat or the watcher of this release, with access to the repository."
)


def sign_result(key: Key, task_id: str, result: Mapping[str, Any], *, success: bool) -> dict[str, Any]:
    """The result with its signature."""
    bare = {name: value for name, value in result.items() if name != RESULT_FIELD}
    return {**bare, RESULT_FIELD: {"key": key.name, "mac": _mac(key, "result", [task_id, success, bare])}}


def is_signed_result(task_id: str, result: object, find_key: Callable[[str], Key | None], *, success: bool) -> bool:
    """True if a worker has signed this very result of this task."""
    if not isinstance(result, dict) or not isinstance(signature := result.get(RESULT_FIELD), dict):
        return False
    key, mac = signature.get("key"), signature.get("mac")
    if not isinstance(key, str) or not isinstance(mac, str) or (found := find_key(key)) is None:
        return False
    bare = {name: value for name, value in result.items() if name != RESULT_FIELD}
    return hmac.compare_digest(_mac(found, "result", [task_id, success, bare]).encode(), mac.encode("utf-8", "replace"))


def _mac(key: Key, purpose: str, facts: list[Any]) -> str:
    text = json.dumps([1, purpose, key.name, *facts], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hmac.new(key.secret, text.encode("ascii"), "sha256").hexdigest()
