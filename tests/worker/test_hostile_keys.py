"""Every key and every channel that our processes read, with values that none of them has written."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any, Final

import pytest
from redis import Redis

from portal.ops.repository.rejected import rejected_counts
from portal.ops.settings.load import load_settings
from tests.support.impostor import Impostor
from tests.support.portal import portal_with_broker
from tests.support.workers import (
    MOMENT,
    WorkerProcess,
    client_environ,
    client_of,
    result_of,
    run_task,
    submit,
    wait_until,
)
from worker.application import make_app
from worker.health import check_queues
from worker.key_types import ASIDE_PREFIX
from worker.operations import BACKUP_MEDIA, PING, Queue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from demo.redis import EmbeddedRedis
    from tests.support.portal import Portal

    Plant = Callable[[Redis, str], object]

DEEP: Final = b"[" * 100_000
MANY_DIGITS: Final = b"9" * 4300


def as_string(broker: Redis, key: str) -> None:
    broker.delete(key)
    broker.set(key, "planted")


def as_list(broker: Redis, key: str) -> None:
    broker.delete(key)
    broker.lpush(key, "planted")


def as_hash(broker: Redis, key: str) -> None:
    broker.delete(key)
    broker.hset(key, "planted", "planted")


def as_set(broker: Redis, key: str) -> None:
    broker.delete(key)
    broker.sadd(key, "planted")


LISTS: Final = ("backup", "maintenance", "backup\x06\x163", "backup\x06\x169", "kekkai-backup-rejected")
WRONG_TYPES: Final[dict[str, tuple[str, Plant]]] = {
    **{f"{key.encode()!r} as a string": (key, as_string) for key in LISTS},
    **{f"{key.encode()!r} as a hash": (key, as_hash) for key in LISTS[:1]},
    "unacked as a string": ("unacked", as_string),
    "unacked as a list": ("unacked", as_list),
    "unacked_index as a string": ("unacked_index", as_string),
    "unacked_index as a set": ("unacked_index", as_set),
    "unacked_mutex as a list": ("unacked_mutex", as_list),
    "the bindings of a queue as a string": ("_kombu.binding.backup", as_string),
    "the permanent bindings as a string": ("_kombu.binding_permanent.backup", as_string),
    "the deadlines of bindings as a string": ("_kombu.binding_deadlines", as_string),
    "the bindings of commands as a list": ("_kombu.binding.celery.pidbox", as_list),
    "the bindings of answers as a hash": ("_kombu.binding.reply.celery.pidbox", as_hash),
    "the bindings of events as a string": ("_kombu.binding.celeryev", as_string),
}


def message(body: bytes, headers: Any = None, **properties: Any) -> bytes:
    """A broadcast as kombu makes them."""
    whole = {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"clock": 1, "expires": 0} if headers is None else headers,
        "properties": {
            "delivery_mode": 1,
            "delivery_info": {"exchange": "celery.pidbox", "routing_key": ""},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": "one",
            **properties,
        },
    }
    return json.dumps(whole).encode()


def command(**fields: Any) -> bytes:
    return json.dumps({"method": "ping", "arguments": {}, "destination": None, **fields}).encode()


PING_COMMAND: Final = command()
COMMANDS: Final = {
    "no JSON": b"\xff",
    "deep": DEEP,
    "a number": b"7",
    "a decimal that is none": b'{"a": {"__type__": "decimal", "__value__": "x"}}',
    "no headers": message(PING_COMMAND, headers=[]),
    "a clock that is text": message(PING_COMMAND, headers={"clock": "x"}),
    "a clock of many digits": message(PING_COMMAND, headers={"clock": 0}).replace(
        b'"clock": 0', b'"clock": ' + MANY_DIGITS
    ),
    "an endless clock": message(PING_COMMAND, headers={"clock": float("inf")}),
    "a compressed body": message(PING_COMMAND, headers={"compression": "zlib"}),
    "a body that is a list": message(b"[]"),
    "a body that is deep": message(DEEP),
    "a body with a decimal that is none": message(b'{"a": {"__type__": "decimal", "__value__": "x"}}'),
    "another encoding of the body": message(PING_COMMAND, body_encoding="other"),
    "a tag in a list": message(PING_COMMAND, delivery_tag=["x"]),
    "no information": message(PING_COMMAND, delivery_info=None),
    "a method that is a list": message(command(method=["ping"])),
    "arguments that are text": message(command(arguments="x")),
    "a destination that is a number": message(command(destination=7)),
    "an expression without end": message(command(pattern="(.*)*(.*)*(.*)*(.*)*!", matcher="pcre")),
    "a matcher that does not exist": message(command(pattern="x", matcher="x")),
    "an answer to a number": message(command(reply_to=7, ticket="x")),
    "an answer to a queue": message(command(reply_to={"exchange": "", "routing_key": "backup"}, ticket="x")),
    "an answer to nobody": message(command(reply_to={"exchange": "reply.celery.pidbox", "routing_key": 7}, ticket="x")),
    "arguments of another name": message(command(method="stats", arguments={"x": 1})),
}

RESULTS: Final = {
    "no JSON": b"\xff",
    "nothing": b"",
    "null": b"null",
    "a number": b"7",
    "deep": DEEP,
    "a number of many digits": b'{"status": "SUCCESS", "result": ' + MANY_DIGITS + b"0}",
    "no result": b'{"status": "FAILURE"}',
    "no result of a success": b'{"status": "SUCCESS"}',
    "a status that is a list": b'{"status": ["x"], "result": 1}',
    "an unknown status": b'{"status": "DONE", "result": 1}',
    "an unsigned success": b'{"status": "SUCCESS", "result": {"success": true}}',
    "a function": json.dumps(
        {"status": "FAILURE", "result": {"exc_type": "system", "exc_module": "os", "exc_message": ["exit 7"]}}
    ).encode(),
    "an exception that ends processes": json.dumps(
        {"status": "FAILURE", "result": {"exc_type": "SystemExit", "exc_module": "builtins", "exc_message": [0]}}
    ).encode(),
    "our exception with something else": json.dumps(
        {
            "status": "FAILURE",
            "result": {"exc_type": "OperationFailedError", "exc_module": "worker.errors", "exc_message": [7]},
        }
    ).encode(),
    "a decimal that is none": b'{"status": "SUCCESS", "result": {"__type__": "decimal", "__value__": "x"}}',
    "a compressed one": b"\x00celery-compressed\x00application/x-gzip\x00x",
}

UNACKED: Final = {
    "deep": DEEP,
    "no JSON": b"\xff",
    "nothing": b"",
    "a list of one": b"[{}]",
    "an exchange that is none": json.dumps([json.loads(message(b"[[],{},{}]")), "odd", "backup"]).encode(),
    "a decimal that is none": b'[{"__type__": "decimal", "__value__": "x"}, "", "backup"]',
    "a key that is a list": json.dumps([json.loads(message(b"x")), "", ["backup"]]).encode(),
}


class Attacked:
    """A worker of two queues, whose broker had every key planted before it started."""

    def __init__(self, portal: Portal, redis: EmbeddedRedis, worker: WorkerProcess, broker: Redis) -> None:
        self.portal = portal
        self.redis = redis
        self.worker = worker
        self.broker = broker
        self.processes = set(worker.queues())

    def works(self) -> None:
        """Both queues do tasks, by the processes that were started at first."""
        pings = {queue: client_of(self.redis).send_ping(queue, 300) for queue in (Queue.BACKUP, Queue.MAINTENANCE)}
        for ping in pings.values():
            assert result_of(self.redis, ping).result["success"]
        assert set(self.worker.queues()) == self.processes


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory, postgres: Any) -> Iterator[Attacked]:
    with portal_with_broker(tmp_path_factory.mktemp("attacked"), postgres) as (portal, redis):
        assert portal.job().backup_media().success
        with Redis(unix_socket_path=str(redis.socket)) as broker:
            for key, plant in WRONG_TYPES.values():
                plant(broker, key)
            with WorkerProcess(portal, redis, "backup", "maintenance") as worker:
                yield Attacked(portal, redis, worker, broker)


def test_a_worker_starts_whatever_is_there(attacked: Attacked) -> None:
    """What has another type was moved out of the way, and a backup is made."""
    attacked.works()
    assert run_task(attacked.redis, BACKUP_MEDIA, moment=MOMENT).result["success"]


@pytest.mark.parametrize("name", WRONG_TYPES)
def test_a_key_of_another_type_stops_nothing(attacked: Attacked, name: str) -> None:
    """The process that meets it moves it out of the way."""
    key, plant = WRONG_TYPES[name]
    attacked.broker.delete(f"{ASIDE_PREFIX}{key}")
    plant(attacked.broker, key)
    attacked.works()
    if key in ("backup", "maintenance"):
        assert attacked.broker.exists(f"{ASIDE_PREFIX}{key}")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_of_another_form_stops_nothing(attacked: Attacked, name: str) -> None:
    """The remote control answers afterwards."""
    attacked.broker.publish("/0.celery.pidbox", COMMANDS[name])
    attacked.works()


def test_odd_names_of_channels_stop_nothing(attacked: Attacked) -> None:
    """Those of events may have anything at their end."""
    for name in (b"/0.celery.pidbox/\xff", b"/0.celeryev/\xff", b"/0.celeryev/", b"/0.", b"celery.pidbox"):
        attacked.broker.publish(name, message(PING_COMMAND))
    attacked.works()


def test_the_remote_control_answers_all_the_same(attacked: Attacked) -> None:
    """A command can be sent, and each worker's clock goes by its own events alone."""
    for queue in (Queue.BACKUP, Queue.MAINTENANCE):
        wait_until(lambda queue=queue: client_of(attacked.redis).loads(queue))  # type: ignore[misc]


def test_answers_of_others_stop_no_question(attacked: Attacked) -> None:
    """Whatever they say, a worker's own answer is among those that are understood."""
    with Impostor(attacked.redis) as impostor:
        client = client_of(attacked.redis)
        wait_until(lambda: client.is_attended(Queue.BACKUP, 1))
        assert all(load.worker.isprintable() for load in client_of(attacked.redis).loads(Queue.BACKUP))
        assert {one.is_healthy for one in check_queues(client, [Queue.BACKUP, Queue.MAINTENANCE], 60)} == {True}
        assert impostor.answered >= 2
    attacked.works()


@pytest.mark.parametrize("content", ["one", "a\x06\x16b", b"\xff\x06\x16\x06\x16\xff"])
def test_odd_bindings_keep_no_answer_away(attacked: Attacked, content: str | bytes) -> None:
    """An answer goes to whoever asked, whatever else is in the table."""
    for exchange in ("reply.celery.pidbox", "celery.pidbox", "backup"):
        if attacked.broker.type(f"_kombu.binding.{exchange}") != b"set":
            attacked.broker.delete(f"_kombu.binding.{exchange}")
        attacked.broker.sadd(f"_kombu.binding.{exchange}", content)
    wait_until(lambda: client_of(attacked.redis).is_attended(Queue.BACKUP, 1))
    attacked.works()


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_of_another_form_keeps_no_task_from_being_done(attacked: Attacked, name: str) -> None:
    """It gives way to the true one, which is signed, whether it was there before or came while the task was queued."""
    task_id = f"planted-{list(RESULTS).index(name)}"
    key = f"celery-task-meta-{task_id}"
    attacked.broker.set(key, RESULTS[name])
    attacked.broker.publish(key, RESULTS[name])
    make_app(load_settings(client_environ(attacked.redis), lambda _: "")).send_task(PING.name, task_id=task_id)
    wait_until(lambda: client_of(attacked.redis).look(task_id).is_signed)
    assert client_of(attacked.redis).look(task_id).result["success"]
    assert set(attacked.worker.queues()) == attacked.processes


@pytest.mark.parametrize("plant", [as_list, as_hash, as_set])
def test_a_result_of_another_type_neither(attacked: Attacked, plant: Plant) -> None:
    """It is replaced."""
    plant(attacked.broker, f"celery-task-meta-{plant.__name__}")
    plant(attacked.broker, f"kekkai-backup-task-{plant.__name__}")
    submit(attacked.redis, PING, plant.__name__)
    assert result_of(attacked.redis, plant.__name__).is_signed


def test_invalid_data_among_taken_messages_keeps_none_from_coming_back(attacked: Attacked) -> None:
    """All of it is dropped; a message whose process was killed returns, wherever it is among them."""
    for number, text in enumerate(UNACKED.values()):
        attacked.broker.hset("unacked", f"odd{number}", text)
        attacked.broker.zadd("unacked_index", {f"odd{number}": 1})
    tag = take_away(attacked, "lost")
    attacked.broker.hset("unacked", tag, attacked.broker.hget("aside", tag) or b"")
    (attacked.portal.archives / ".deliveries").mkdir(exist_ok=True)
    (attacked.portal.archives / ".deliveries" / "lost").write_text(".")
    assert result_of(attacked.redis, "lost").is_signed
    wait_until(lambda: not any(attacked.broker.hexists("unacked", f"odd{number}") for number in range(len(UNACKED))))
    assert not attacked.worker.events("recovery_failed")


@pytest.mark.parametrize("plant", [None, as_string, as_list])
def test_nor_when_their_time_is_up(attacked: Attacked, plant: Plant | None) -> None:
    """Whoever looks then drops what is invalid, and waits for no lock that never ends."""
    tag = take_away(attacked, f"late-{plant.__name__ if plant else 0}")
    with Redis(connection_pool=attacked.broker.connection_pool) as broker:
        for number, text in enumerate(UNACKED.values()):
            broker.hset("other", f"odd{number}", text)
            broker.zadd("other_index", {f"odd{number}": number + 2, "gone": 1})
        broker.set("none", "no list")
        broker.hset("other", "elsewhere", json.dumps([json.loads(message(b"x")), "", "none"]))
        broker.zadd("other_index", {"elsewhere": 99})
        broker.hset("other", tag, broker.hget("aside", tag) or b"")
        broker.zadd("other_index", {tag: 1})
        if plant:
            plant(broker, "other_mutex")
    app = make_app(load_settings(client_environ(attacked.redis), lambda _: ""))
    names = {"unacked_key": "other", "unacked_index_key": "other_index", "unacked_mutex_key": "other_mutex"}
    app.conf.broker_transport_options = {**app.conf.broker_transport_options, **names}
    with app.connection_for_write() as connection:
        connection.default_channel.qos.restore_visible(interval=1)
    assert result_of(attacked.redis, f"late-{plant.__name__ if plant else 0}").is_signed
    assert not attacked.broker.exists("other", "other_index")


def take_away(attacked: Attacked, task_id: str) -> str:
    """A genuine message as a worker keeps it that was killed, in the hash `aside`; its tag."""
    app = make_app(load_settings(client_environ(attacked.redis), lambda _: ""))
    app.conf.task_routes = {}
    app.send_task(PING.name, queue="elsewhere", task_id=task_id)
    text = attacked.broker.rpop("elsewhere")
    assert isinstance(text, bytes)
    found = json.loads(text)
    tag = str(found["properties"]["delivery_tag"])
    attacked.broker.hset("aside", tag, json.dumps([found, "", "maintenance"]))
    return tag


def test_a_queue_full_of_invalid_messages_is_emptied(attacked: Attacked) -> None:
    """Genuine tasks behind them are done, and all of them are counted, though not each is logged."""
    before, told = (
        sum(rejected_counts(attacked.portal.archives).values()),
        len(attacked.worker.events("message_rejected")),
    )
    with attacked.broker.pipeline(transaction=False) as pipe:
        for _ in range(3000):
            pipe.lpush("backup", b"\xff")
        pipe.execute()
    attacked.works()
    wait_until(lambda: sum(rejected_counts(attacked.portal.archives).values()) >= before + 3000)
    assert len(attacked.worker.events("message_rejected")) - told < 3000
    assert attacked.broker.llen("backup") == 0
