"""kombu's Redis transport for processes that trust nobody on the broker. Written against kombu 5.7; depends on:

    Channel._get_client          the class of connections
    Channel._connparams          reads the parameters of a connection from what may be closed
    Channel._create_client       makes the connection whose `parse_response(…, 'BRPOP')` gives a message
    Channel._handle_message      a message of a subscription, before it is parsed
    Channel._lookup, get_table   the queues that a message goes to
    Channel._restore             puts back a message that was taken and never acknowledged, as does
    QoS.restore_by_tag, restore_visible

kombu parses whatever it receives, and a process ends if that fails. So nothing reaches kombu unchecked.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final

from kombu.transport import redis as redis_transport
from redis.exceptions import ConnectionError, RedisError, ResponseError  # noqa: A004  # kombu expects it

from portal.ops.runtime.logs import engine_log
from portal.ops.units import printable
from worker.broker_messages import REPLIES, sound_broadcast, sound_reply
from worker.key_types import MendingRedis, is_wrong_type, make_way
from worker.untrusted import parse

if TYPE_CHECKING:
    from collections.abc import Mapping

log = engine_log("worker.broker")

_redis: Any = redis_transport  # kombu has few type annotations

_RESTORE: Final = """
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('ZREM', KEYS[2], ARGV[1])
if ARGV[3] ~= '' then redis.call(ARGV[4], KEYS[3], ARGV[3]) end
redis.call('HDEL', KEYS[1], ARGV[1])
return 1
"""
"""Puts a message back, if it is still the one that was read. A transaction would wait for a pause between changes."""

_MOST_AT_ONCE: Final = 1000


def taken_message(text: bytes | str) -> tuple[dict[str, Any], str, str]:
    """A message that was taken and not acknowledged, its exchange and its routing key.

    Raises:
        ValueError: it has another form.
    """
    found = parse(text)
    if not isinstance(found, list) or len(found) != 3 or not all(isinstance(one, str) for one in found[1:]):
        raise ValueError("it is no message")
    message: dict[str, Any] = found[0]
    if not isinstance(message, dict) or not isinstance(message.get("headers"), dict):
        raise ValueError("it has no headers")
    if not isinstance(message.get("properties"), dict) or not isinstance(
        message["properties"].get("delivery_info"), dict
    ):
        raise ValueError("it has no properties")
    return message, found[1], found[2]


class QoS(_redis.QoS):  # type: ignore[misc]
    """Puts messages back one by one; invalid data in place of one is dropped."""

    def restore_visible(self, start: int = 0, num: int | None = None, interval: int = 10) -> None:
        """Put back what was taken long ago and never acknowledged."""
        if self._vrestore_count % (interval or 1) == 0:
            with self.channel.conn_or_acquire() as client:
                left = client.pttl(self.unacked_mutex_key)  # kombu's own expires
                if left == -1 or left > self.unacked_mutex_expire * 1000:
                    client.delete(self.unacked_mutex_key)
        super().restore_visible(start, min(num or _MOST_AT_ONCE, _MOST_AT_ONCE), interval)

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        """Put back a message."""
        with self.channel.conn_or_acquire(client) as connection:
            if (text := connection.hget(self.unacked_key, tag)) is None:
                connection.zrem(self.unacked_index_key, tag)
                return
            queue, message = self._destination(text)
            if not message:
                self.channel.refused(_bytes(text), self.unacked_key)
            keys = [self.unacked_key, self.unacked_index_key, queue or self.unacked_key]
            command = "LPUSH" if leftmost else "RPUSH"
            try:
                connection.register_script(_RESTORE)(keys=keys, args=[tag, text, message, command], client=connection)
            except ResponseError as error:
                if not is_wrong_type(error):
                    raise
                self.channel.refused(_bytes(text), self.unacked_key)  # its queue is no list, nor to be one
                connection.zrem(self.unacked_index_key, tag)
                connection.hdel(self.unacked_key, tag)

    def _destination(self, text: bytes) -> tuple[str, str]:
        """The list for a message, and the message; empty if it has no form or nowhere to go."""
        try:
            message, exchange, key = taken_message(text)
            message["headers"]["redelivered"] = message["properties"]["delivery_info"]["redelivered"] = True
            queue = next(iter(self.channel._lookup(exchange, key)), "")  # noqa: SLF001  # kombu's
        except (ValueError, KeyError, TypeError, AttributeError):
            return "", ""
        return (queue, json.dumps(message)) if queue else ("", "")


class Channel(_redis.Channel):  # type: ignore[misc]
    """A channel that passes on only what has the form of our own messages."""

    QoS = QoS
    heard: ClassVar = 0
    """How many connections received this process's last broadcast, by Redis's own count."""

    def refused(self, raw: bytes, queue: str) -> None:
        """Note a message that is not passed on."""
        log.warning("broker_message_dropped", queue=printable(queue), bytes=len(raw))

    def admitted(self, raw: bytes, queue: str) -> bytes | None:
        """A message from a list for kombu, or None."""
        found = sound_reply(raw)
        if found is None:
            self.refused(raw, queue)
        return found

    def _get_client(self) -> Any:
        super()._get_client()  # checks the client library's version
        return MendingRedis

    def _connparams(self, asynchronous: bool = False) -> Any:
        """The parameters of a connection; a closed one has none, and without an expected error the worker would end."""
        if self.connection is None or self.connection.client is None:
            raise ConnectionError("the connection to the broker was closed")
        return super()._connparams(asynchronous=asynchronous)

    def _create_client(self, asynchronous: bool = False) -> Any:
        client = super()._create_client(asynchronous=asynchronous)
        if asynchronous:
            parse_response = client.parse_response

            def parse_safely(connection: Any, command: str, **options: Any) -> Any:
                if command != "BRPOP":
                    return parse_response(connection, command, **options)
                try:
                    found = parse_response(connection, command, **options)
                except ResponseError as error:
                    if not is_wrong_type(error):
                        raise
                    self._make_way()
                    return None
                return self._checked(*found) if found else None

            client.parse_response = parse_safely
        publish = client.publish

        def publish_counted(*arguments: Any, **options: Any) -> Any:
            Channel.heard = publish(*arguments, **options)
            return Channel.heard

        client.publish = publish_counted
        return client

    def _checked(self, key: Any, raw: Any) -> Any:
        """Data read from the connection, with nothing in place of a refused message."""
        admitted = self.admitted(_bytes(raw), text_of(key).rsplit(self.sep, 1)[0])
        return None if admitted is None else (key, admitted)

    def _make_way(self) -> None:
        """Rename what is no list in place of the lists that this channel takes messages from."""
        with self.conn_or_acquire() as client, suppress(RedisError):  # the next attempt reports it
            make_way(
                client, [self._q_for_pri(queue, one) for queue in self.active_queues for one in self.priority_steps]
            )

    def _handle_message(self, client: Any, r: Any) -> Mapping[str, Any]:
        found: dict[str, Any] = super()._handle_message(client, r)
        if not _bytes(found["type"]).endswith(b"message"):
            return found
        name, raw = text_of(found["channel"]), _bytes(found["data"] or b"")
        exchange = name.partition(".")[2].split("/", 1)[0] if name.startswith("/") else name.split("/", 1)[0]
        data = sound_broadcast(exchange, raw) if exchange in self._fanout_to_queue else None
        if data is None:
            self.refused(raw, exchange)
        return {**found, "channel": name, "data": data}

    def _lookup(self, exchange: str, routing_key: str, default: Any = None) -> Any:
        if exchange != REPLIES:
            return super()._lookup(exchange, routing_key, default)
        queue = f"{routing_key}.{REPLIES}"  # as kombu names it; the table may have anything else, too
        with self.conn_or_acquire() as client:
            member = self.sep.join([routing_key, "", queue])
            return [queue] if client.sismember(self.keyprefix_queue % (exchange,), member) else []

    def get_table(self, exchange: str) -> list[tuple[str, ...]]:
        """The bindings of an exchange."""
        with self.conn_or_acquire() as client:
            found = client.sscan(self.keyprefix_queue % (exchange,), count=_MOST_AT_ONCE)[1]
        rows = [tuple(_bytes(one).decode("utf-8", "replace").split(self.sep)) for one in found]
        return [row for row in rows if len(row) == 3]

    def _restore(self, message: Any, leftmost: bool = False) -> None:
        self.qos.restore_by_tag(message.delivery_tag, leftmost=leftmost)


class Transport(_redis.Transport):  # type: ignore[misc]
    """The transport of every process."""

    Channel = Channel


def text_of(key: Any) -> str:
    """The name of a key or channel."""
    return _bytes(key).decode("utf-8", "replace")


def _bytes(text: Any) -> bytes:
    return text if isinstance(text, bytes) else str(text).encode("utf-8", "replace")
