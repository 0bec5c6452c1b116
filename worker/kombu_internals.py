"""Puts the gate in front of the transport of workers, and checks in front of their remote control.

Written against kombu 5.7; besides those of `transport`, it depends on these internals:

    Channel._get                 takes a message where no event loop runs
    pidbox.Node.handle_message   takes a command of the remote control
    pidbox.Node.dispatch         carries it out
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from itertools import takewhile
from typing import TYPE_CHECKING, Any, ClassVar, Final

from kombu import pidbox
from kombu.transport import redis as redis_transport
from redis.exceptions import RedisError

from worker import transport
from worker.transport_choice import use_transport

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.gate import Gate


_redis: Any = redis_transport  # kombu has few type annotations
_pidbox: Any = pidbox


_PEEK: Final = """
local found, size = {}, 0
for number = 1, tonumber(ARGV[1]) do
    local one = redis.call('LINDEX', KEYS[1], -number)
    if not one then break end
    size = size + #one
    if size > tonumber(ARGV[2]) then break end
    found[number] = one
end
return found
"""
"""The next messages of a list, not taken."""

_DROP: Final = """
for number, one in ipairs(ARGV) do
    if redis.call('LINDEX', KEYS[1], -1) ~= one then return number - 1 end
    redis.call('RPOP', KEYS[1])
end
return #ARGV
"""
"""Removes messages as long as they are still the next ones."""

_SWEPT_AT_ONCE: Final = 200
_SWEPT_BYTES: Final = 1 << 20
_SWEEP_SECONDS: Final = 0.2


class _Channel(transport.Channel):
    """A channel that passes on only what the gate accepts."""

    gate: ClassVar[Gate]

    def refused(self, raw: bytes, queue: str) -> None:
        self.gate.note(raw, queue)

    def admitted(self, raw: bytes, queue: str) -> bytes | None:
        with self.conn_or_acquire() as client:
            try:
                return self.gate.admit(raw, queue, client)
            except RedisError:  # it was counted; keeping it is less important than the worker's connection
                return None

    def _checked(self, key: Any, raw: Any) -> Any:
        found = super()._checked(key, raw)
        if found is None:
            with suppress(RedisError):  # the next attempt to read reports it
                self._sweep(key)
        return found

    def _sweep(self, key: Any) -> None:
        """Drop messages that are refused as well, many at once: each by itself, a million would take hours."""
        queue = transport.text_of(key).rsplit(self.sep, 1)[0]
        deadline = time.monotonic() + _SWEEP_SECONDS
        with self.conn_or_acquire() as client:
            while time.monotonic() < deadline:
                texts = client.eval(_PEEK, 1, key, _SWEPT_AT_ONCE, _SWEPT_BYTES)
                refused = list(takewhile(lambda text: self.admitted(text, queue) is None, texts))
                if not refused or client.eval(_DROP, 1, key, *refused) < len(texts):
                    return

    def _get(self, queue: str, timeout: Any = None) -> Any:  # noqa: ARG002  # the signature is kombu's
        with self.conn_or_acquire() as client:
            for priority in self.priority_steps:
                while (raw := client.rpop(self._q_for_pri(queue, priority))) is not None:
                    if (admitted := self.admitted(raw, queue)) is not None:
                        return json.loads(admitted)
        raise _redis.Empty


class Transport(transport.Transport):
    """The transport of workers."""

    Channel = _Channel


def guard_transport(gate: Gate) -> None:
    """Make all Redis connections of this process use the gate: for a process that executes tasks."""
    _Channel.gate = gate
    use_transport(f"{__name__}:Transport")


class CheckedNode(_pidbox.Node):  # type: ignore[misc]
    """A worker's end of the remote control: executes what `is_allowed` permits, and answers the rest with an error."""

    is_allowed: ClassVar[Callable[[str, dict[str, Any]], bool]]

    def handle_message(self, body: Any, message: Any = None) -> Any:  # noqa: ARG002  # the signature is kombu's
        """Take a command; the clock in its message is the sender's, and nobody's concern."""
        return super().handle_message(body)

    def dispatch(self, method: Any, arguments: Any = None, reply_to: Any = None, ticket: Any = None, **_: Any) -> Any:
        """Execute a command."""
        given = dict(arguments) if isinstance(arguments, dict) else {}
        if not isinstance(method, str) or not type(self).is_allowed(method, given):
            return None
        return super().dispatch(method, given, reply_to, ticket)


class CheckedMailbox(_pidbox.Mailbox):  # type: ignore[misc]
    """A mailbox whose nodes check commands."""

    node_cls = CheckedNode
