"""Signs tasks and results, and checks signatures. This module reads no clock.

A task's signature covers its name, id, arguments (including the actor), requester and time. A result's covers the
task's id, its success and the result. Both are HMAC-SHA256 over canonical JSON.
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
"""The message header with the signature."""

RESULT_FIELD: Final = "_signature"
"""The result's field with the signature."""

LIFETIME: Final = timedelta(days=7)
CLOCKS_DIFFER: Final = timedelta(minutes=5)


@dataclass(frozen=True, kw_only=True)
class SignedTask:
    """A task from a message with a verified signature.

    Arguments:
        operation: the requested operation.
        task_id: the task's id.
        arguments: the arguments as received, as types of JSON.
        requester: the kind of requester.
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
    """The signature of a task, as a message header.

    Raises:
        RejectedError: the registry does not permit that requester to request the operation.
    """
    check_requester(operation, requester)
    said = {"key": key.name, "requester": requester.value, "at": at.astimezone(UTC).isoformat(timespec="seconds")}
    return {**said, "mac": _mac(key, "task", [operation.name, task_id, said["requester"], said["at"], dict(arguments)])}


def check_requester(operation: Operation, requester: Requester) -> None:
    """Refuse an operation that the registry does not permit to a requester.

    Raises:
        RejectedError: it is refused.
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
    """Check a task's signature; return the task.

    Arguments:
        signature: the header of the message.
        find_key: returns a key by its name.

    Raises:
        RejectedError: the signature is missing, wrong, too old or from the future, or the requester may not request the
            operation.
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
    """True if a worker has signed this result of this task."""
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
