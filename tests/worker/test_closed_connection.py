"""A connection that kombu has given up while a message was being worked on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from portal.ops.settings.load import load_settings
from tests.support.workers import client_environ
from worker.application import make_app

if TYPE_CHECKING:
    from demo.redis import EmbeddedRedis


def test_closing_it_ends_no_worker(redis: EmbeddedRedis) -> None:
    """A worker closes what it has lost, with a message that was never acknowledged: that is an error it expects.

    A broker that goes away at the wrong moment leaves a channel open whose transport has no client any more.
    """
    connection = make_app(load_settings(client_environ(redis), lambda _: "")).connection_for_write()
    channel = connection.default_channel
    channel.qos._delivered["of a task that runs"] = None
    channel._disconnect_pools()
    connection.transport.client = None
    connection.release()
    assert channel.closed
