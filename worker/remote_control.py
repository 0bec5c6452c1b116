"""Protects the workers' remote control: questions are open to everyone on the broker, changes need a signature.

`celery inspect`, `status`, Flower and the health check ask questions. Revoking a task, stopping a worker or changing
its pool needs the repository's key; `celery control` signs automatically if it can read the key.
"""

from __future__ import annotations

import hmac
import json
import secrets
import time
from typing import TYPE_CHECKING, Any, Final

from celery.app.control import Control

from portal.ops.errors import OpsError
from portal.ops.runtime.logs import engine_log
from portal.ops.units import printable
from worker.kombu_internals import CheckedMailbox, CheckedNode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.keys import Key, TaskKeys

log = engine_log("worker.control")

FIELD: Final = "kekkai"

ASKING: Final = frozenset(
    {
        "active",
        "active_queues",
        "clock",
        "enable_events",
        "ping",
        "query_task",
        "registered",
        "report",
        "reserved",
        "revoked",
        "scheduled",
        "stats",
    }
)
"""Commands without a signature, which change nothing in a worker. `hello` is missing, since it can revoke tasks."""

_VALID_SECONDS: Final = 300


class SignedControl(Control):  # type: ignore[misc]  # Celery has no types
    """Signs the commands that need a signature."""

    Mailbox = CheckedMailbox

    def broadcast(self, command: str, arguments: Any = None, *rest: Any, **options: Any) -> Any:
        """Send a command to workers."""
        given = dict(arguments or {})
        if command not in ASKING:
            given[FIELD] = sign_command(self.app.task_keys.current(), command, given)
        return super().broadcast(command, given, *rest, **options)


def sign_command(key: Key, command: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The signature of a command."""
    said = {"key": key.name, "at": time.time(), "once": secrets.token_hex(8)}
    return {**said, "mac": _mac(key, command, arguments, said)}


def check_commands(keys: TaskKeys) -> None:
    """Make this process's nodes execute only questions and signed commands."""
    used: dict[str, float] = {}

    def is_allowed(command: str, arguments: dict[str, Any]) -> bool:
        signature = arguments.pop(FIELD, None)
        if command in ASKING:
            return True
        try:
            if _is_signed(keys, used, command, arguments, signature):
                return True
        except (OpsError, ValueError, TypeError, AttributeError):
            pass
        log.warning("command_rejected", command=printable(command))
        return False

    CheckedNode.is_allowed = staticmethod(is_allowed)


def _is_signed(
    keys: TaskKeys, used: dict[str, float], command: str, arguments: Mapping[str, Any], signature: Any
) -> bool:
    """True if the signature is valid, recent, and used for the first time."""
    if not isinstance(signature, dict) or not isinstance(signature.get("mac"), str):
        return False
    key, now, at = keys.named(str(signature.get("key"))), time.time(), signature.get("at")
    if key is None or not isinstance(at, (int, float)) or abs(now - at) > _VALID_SECONDS:
        return False
    said = {"key": key.name, "at": at, "once": signature.get("once")}
    if not hmac.compare_digest(_mac(key, command, arguments, said).encode(), signature["mac"].encode()):
        return False
    for mac in [mac for mac, moment in used.items() if now - moment > 2 * _VALID_SECONDS]:
        del used[mac]
    if signature["mac"] in used:
        return False
    used[signature["mac"]] = now
    return True


def _mac(key: Key, command: str, arguments: Mapping[str, Any], said: Mapping[str, Any]) -> str:
    text = json.dumps([1, "command", command, dict(arguments), dict(said)], sort_keys=True, separators=(",", ":"))
    return hmac.new(key.secret, text.encode("ascii"), "sha256").hexdigest()
