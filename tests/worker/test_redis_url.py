"""URLs of Redis: those that kombu and Celery understand pass, and errors show nothing of the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from portal.ops.errors import ConfigurationError
from portal.ops.runtime.progress import read_text
from portal.ops.settings.load import load_settings
from worker.application import make_app
from worker.client import Client
from worker.redis_url import check_redis_url

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "5ecret"


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost:6379/5",
        "redis://localhost",
        "redis:///3",
        f"redis://user:{SECRET}@[::1]:6379/0",
        f"redis://:p@{SECRET}@host/1",
        "rediss://host:6380/0?ssl_cert_reqs=required",
        "redis+socket:///run/redis.sock?virtual_host=2",
    ],
)
def test_sound_urls(url: str, tmp_path: Path) -> None:
    """Broker and results are reached, or are at least asked for."""
    check_redis_url("CELERY_BROKER_URL", url)
    app = make_app(load_settings({"BACKUP_LOCAL_PATH": str(tmp_path), "CELERY_BROKER_URL": url}, read_text))
    assert app.backend.client is not None
    assert app.connection_for_write().transport.Channel.__module__.startswith("worker.")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (f"redis://:{SECRET}/x@host:6379/0", "cannot be understood"),
        (f"redis://[{SECRET}", "cannot be understood"),
        (f"redis://host:99999/{SECRET}", "cannot be understood"),
        (f"{SECRET}:6379", "has a scheme that is none of redis, rediss, redis+socket"),
        (f"amqp://user:{SECRET}@host", "has a scheme that is none of"),
        (f"sentinel://:{SECRET}@host:26379", "has a scheme that is none of"),
        (f"redis://host:6379/{SECRET}", "has no number of a database at its end"),
        (f"redis://:{SECRET}@a/0;redis://b/0", "has no number of a database at its end"),
        (f"redis://host/0#{SECRET}", "has a character in it that must be percent-encoded"),
        (f"redis://:{SECRET} 1@host/0", "has a character in it that must be percent-encoded"),
        (f"redis+socket://:{SECRET}@", "names no socket"),
        (f"rediss://:{SECRET}@host/0", "does not say how the certificate is checked"),
        (f"redis://:{SECRET}@host/0?ssl_cert_reqs=none", "has options of TLS"),
    ],
)
@pytest.mark.parametrize("name", ["CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"])
def test_invalid_urls(url: str, message: str, name: str, tmp_path: Path) -> None:
    """They are refused before they are used, with what is expected; commands without a worker do not need them."""
    environ = {"BACKUP_LOCAL_PATH": str(tmp_path), "CELERY_BROKER_URL": "redis://localhost", name: url}
    settings = load_settings(environ, read_text)
    with pytest.raises(ConfigurationError, match=name) as caught:
        Client(settings)
    assert message in caught.value.message
    assert "--local" in caught.value.hint
    assert SECRET not in str(caught.value)
