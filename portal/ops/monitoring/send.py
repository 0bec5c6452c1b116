"""Sends one message or calls one URL in a separate process: if it hangs it is killed, and its output is dropped.

The request is JSON on standard input, since everyone can read a process's arguments:

    {"notify": "json://… mailto://…", "title": "…", "body": "…"}      by Apprise
    {"ping": "https://…"}                                            a GET

The exit code is 0 if it was delivered.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit, urlunsplit

from portal.ops.runtime.logs import engine_log
from portal.ops.units import system_reason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from portal.ops.settings.database_url import Secret

log = engine_log("portal.ops.monitoring.send")

LONGEST_SECONDS: Final = 10.0

_ENTRY: Final = "import sys; from portal.ops.monitoring.send import main; sys.exit(main())"
_ALARM_SECONDS: Final = 15
_WEB: Final = ("http", "https")
_USELESS_URL: Final = 2


def notify(urls: Secret, title: str, body: str, *, seconds: float = LONGEST_SECONDS) -> bool:
    """Send a message; return whether everyone received it. Never raises, and never logs a URL.

    Arguments:
        urls: Apprise URLs, separated by spaces.
        seconds: the time limit.
    """
    return _send("notify", {"notify": urls.reveal(), "title": title, "body": body}, seconds)


def ping(url: Secret, *, failed: bool, seconds: float = LONGEST_SECONDS) -> bool:
    """Call a dead-man's URL, with ``/fail`` added after a failure; return whether it answered. Never raises."""
    return _send("ping", {"ping": ping_url(url.reveal(), failed=failed)}, seconds)


def ping_url(url: str, *, failed: bool) -> str:
    """The URL to call; ``/fail`` is added to the path, before a query."""
    if not failed:
        return url
    try:
        parts = urlsplit(url)
    except ValueError:
        return url
    return urlunsplit(parts._replace(path=parts.path.rstrip("/") + "/fail"))


def _send(what: str, order: Mapping[str, str], seconds: float) -> bool:
    """Run the sending process; its output could contain the URL, so only its exit code is used."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        ended = subprocess.run(
            [sys.executable, "-P", "-c", _ENTRY],
            env=environment,
            input=json.dumps(order).encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=seconds,
            start_new_session=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        log.warning("message_undelivered", kind=what, reason=f"no answer within {seconds:g} s")
        return False
    except OSError as error:
        log.warning("message_undelivered", kind=what, reason=f"cannot start a process: {system_reason(error)}")
        return False
    if ended.returncode:
        useless = ended.returncode == _USELESS_URL
        log.warning("message_undelivered", kind=what, reason="the URL is invalid" if useless else "not delivered")
    return ended.returncode == 0


def main() -> int:
    """Do what standard input says; return the exit code."""
    signal.alarm(_ALARM_SECONDS)  # the parent may be gone by then
    order = json.load(sys.stdin)
    return _ping(order["ping"]) if "ping" in order else _notify(order["notify"], order["title"], order["body"])


def _notify(urls: str, title: str, body: str) -> int:
    import apprise

    sender = apprise.Apprise()
    understood = [sender.add(url) for url in urls.split()]
    delivered = bool(sender) and sender.notify(title=title, body=body)
    if not all(understood):
        return _USELESS_URL
    return 0 if delivered else 1


def _ping(url: str) -> int:
    from urllib.error import URLError
    from urllib.request import Request, urlopen

    if urlsplit(url).scheme not in _WEB:
        return _USELESS_URL
    try:
        with urlopen(Request(url, headers={"User-Agent": "kekkai-backup"}), timeout=LONGEST_SECONDS):  # noqa: S310
            return 0
    except (URLError, OSError, ValueError):
        return 1
