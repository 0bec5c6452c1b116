"""Puts checks in front of kombu's Redis transport and remote control.

Written against kombu 5.7; it depends on these internals:

    Channel._create_client       makes the connection whose `parse_response(…, 'BRPOP')` gives a message to a worker
    Channel._get                 takes a message where no event loop runs
    QoS.restore_by_tag           puts back a message that was taken and never acknowledged
    virtual.Transport._deliver   hands a message to its consumer, also one of the remote control
    pidbox.Node.dispatch         carries out a command of the remote control

kombu parses whatever it receives, and a worker ends if that fails. So nothing reaches kombu unchecked.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

from kombu import pidbox
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as redis_transport
from redis.exceptions import RedisError

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.gate import Gate


_redis: Any = redis_transport  # kombu has few type annotations
_pidbox: Any = pidbox


class _Channel(_redis.Channel):  # type: ignore[misc]
    """A channel that passes on only what the gate accepts."""

    gate: ClassVar[Gate]

    def _create_client(self, asynchronous: bool = False) -> Any:
        client = super()._create_client(asynchronous=asynchronous)
        if asynchronous:
            parse = client.parse_response
            client.parse_response = lambda connection, command, **options: self._admit(
                command, parse(connection, command, **options)
            )
        return client

    def _admit(self, command: str, found: Any) -> Any:
        """Data read from the connection, with nothing in place of a rejected message."""
        if command != "BRPOP" or not found:
            return found
        key, raw = found
        admitted = self._check(_bytes(raw), _bytes(key).decode("utf-8", "replace").rsplit(self.sep, 1)[0])
        return None if admitted is None else (key, admitted)

    def _get(self, queue: str, timeout: Any = None) -> Any:  # noqa: ARG002  # the signature is kombu's
        with self.conn_or_acquire() as client:
            for priority in self.priority_steps:
                while (raw := client.rpop(self._q_for_pri(queue, priority))) is not None:
                    if (admitted := self._check(_bytes(raw), queue)) is not None:
                        return json.loads(admitted)
        raise _redis.Empty

    def _check(self, raw: bytes, queue: str) -> bytes | None:
        with self.conn_or_acquire() as client:
            try:
                return self.gate.admit(raw, queue, client)
            except RedisError:  # it was counted; keeping it is less important than the worker's connection
                return None


class _QoS(_redis.QoS):  # type: ignore[misc]
    """Drops invalid data stored in place of an unacknowledged message."""

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        try:
            super().restore_by_tag(tag, client, leftmost)
        except (ValueError, KeyError, TypeError, AttributeError):
            with self.channel.conn_or_acquire(client) as connection:
                self.channel.gate.note(_bytes(connection.hget(self.unacked_key, tag) or b""), "unacked")
                connection.hdel(self.unacked_key, tag)
                connection.zrem(self.unacked_index_key, tag)


_Channel.QoS = _QoS


class Transport(_redis.Transport):  # type: ignore[misc]
    """The transport of workers."""

    Channel = _Channel

    def _deliver(self, message: Any, queue: str) -> None:
        if not _has_form(message):
            _Channel.gate.note(repr(message)[:65_536].encode("utf-8", "replace"), str(queue))
            return
        super()._deliver(message, queue)


def _has_form(message: Any) -> bool:
    """True if kombu made the message; other data would end the worker."""
    if not isinstance(message, dict):
        return False
    headers, properties = message.get("headers"), message.get("properties")
    if not isinstance(headers, dict) or not isinstance(properties, dict):
        return False
    return (
        isinstance(properties.get("delivery_tag"), str)
        and isinstance(properties.get("delivery_info"), dict)
        and properties.get("body_encoding") in ("base64", None)
        and isinstance(message.get("body"), str)
    )


def _bytes(text: Any) -> bytes:
    return text if isinstance(text, bytes) else str(text).encode("utf-8", "replace")


def guard_transport(gate: Gate) -> None:
    """Make all Redis connections of this process use the gate: for a process that executes tasks."""
    _Channel.gate = gate
    for name in ("redis", "rediss"):
        TRANSPORT_ALIASES[name] = f"{__name__}:Transport"


class CheckedNode(_pidbox.Node):  # type: ignore[misc]
    """A worker's end of the remote control: executes what `is_allowed` permits, and answers the rest with an error."""

    is_allowed: ClassVar[Callable[[str, dict[str, Any]], bool]]

    def dispatch(self, method: Any, arguments: Any = None, reply_to: Any = None, ticket: Any = None, **_: Any) -> Any:
        """Execute a command."""
        given = dict(arguments) if isinstance(arguments, dict) else {}
        if not isinstance(method, str) or not type(self).is_allowed(method, given):
            return None
        return super().dispatch(method, given, reply_to, ticket)


class CheckedMailbox(_pidbox.Mailbox):  # type: ignore[misc]
    """A mailbox whose nodes check commands."""

    node_cls = CheckedNode
