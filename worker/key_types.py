"""A Redis client that moves keys of another type out of the way.

Redis refuses a command on a key of another type, for as long as it has that type: one planted string in place of a list
would stop a queue for ever. Such a key is renamed, so that nothing is lost if it was somebody's, and the command is
repeated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import ResponseError

from portal.ops.runtime.logs import engine_log
from portal.ops.units import printable
from worker.operations import Queue

if TYPE_CHECKING:
    from collections.abc import Iterable

log = engine_log("worker.broker")

ASIDE_PREFIX: Final = "kekkai-backup-aside-"

_NAMED: Final = {
    b"unacked": b"hash",
    b"unacked_index": b"zset",
    b"unacked_mutex": b"string",
    b"kekkai-backup-rejected": b"list",
    b"_kombu.binding_deadlines": b"zset",
}
_BEGINNINGS: Final = {
    b"_kombu.binding": b"set",
    b"celery-task-meta-": b"string",
    b"kekkai-backup-task-": b"string",
}
_REPLIES: Final = b".reply.celery.pidbox"
_MOVE: Final = """
local found = redis.call('TYPE', KEYS[1])['ok']
if found == 'none' or found == ARGV[1] then return '' end
redis.call('RENAME', KEYS[1], KEYS[2])
return found
"""
"""Looks and renames at once: another process may have renamed it, and begun to use the key."""

_ATTEMPTS: Final = 3
_STEP: Final = b"\x06\x16"
"""Between a queue's name and a priority in kombu's names of lists."""


def type_of(key: bytes) -> bytes | None:
    """The type that a key of ours has, in Redis's words; None for other keys."""
    if found := _NAMED.get(key):
        return found
    if key.split(_STEP)[0].decode(errors="replace") in set(Queue) or key.split(_STEP)[0].endswith(_REPLIES):
        return b"list"
    return next((kind for beginning, kind in _BEGINNINGS.items() if key.startswith(beginning)), None)


def is_wrong_type(error: object) -> bool:
    """True for Redis's refusal of a command because of a key's type."""
    return isinstance(error, ResponseError) and "WRONGTYPE" in str(error)


def make_way(client: Redis, keys: Iterable[Any]) -> None:
    """Rename keys of ours that have another type.

    Arguments:
        client: a connection.
        keys: names of keys; what is none of ours is passed over, so the arguments of a command do.

    Raises:
        RedisError: Redis does not answer, or refuses it.
    """
    for key in {_bytes(one) for one in keys if isinstance(one, (str, bytes))}:
        if kind := type_of(key):
            found = _plainly(client, "EVAL", _MOVE, 2, key, ASIDE_PREFIX.encode() + key, kind)
            if found:
                log.warning(
                    "broker_key_moved", key=printable(key.decode(errors="replace")), type=_bytes(found).decode()
                )


def _plainly(client: Any, *args: Any, **options: Any) -> Any:
    execute: Any = Redis.execute_command
    return execute(client, *args, **options)


class MendingRedis(Redis):
    """A connection that repeats a refused command when the key has made way."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Execute a command."""
        for _ in range(_ATTEMPTS):
            try:
                return _plainly(self, *args, **options)
            except ResponseError as error:
                if not is_wrong_type(error):
                    raise
                make_way(self, args[1:])
        return _plainly(self, *args, **options)

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Any:
        """Commands that are sent together."""
        return _MendingPipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)


class _MendingPipeline(Pipeline):
    """Repeats those commands that were refused; the others have been executed."""

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Execute the commands; return their answers."""
        commands = list(self.command_stack)
        answers = super().execute(raise_on_error=False)
        for number, answer in enumerate(answers or []):
            if is_wrong_type(answer):
                arguments, options = commands[number]
                answers[number] = self._again(arguments, options)
        if raise_on_error and (fault := next((one for one in answers or [] if isinstance(one, Exception)), None)):
            raise fault
        return answers

    def _again(self, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        client = MendingRedis(connection_pool=self.connection_pool)
        client.response_callbacks = self.response_callbacks
        execute: Any = client.execute_command
        try:
            return execute(*arguments, **options)
        except ResponseError as error:
            return error


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", "replace")
